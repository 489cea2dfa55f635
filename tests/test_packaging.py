"""What is installed elsewhere is whole: a wheel carries the Rust extension, conf/ and the plugin."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nanolit.machine.locks import held
from tests.fake_modal.account import Account

ROOT = Path(__file__).resolve().parent.parent
NO_RUST = not shutil.which("cargo")


def find_uv() -> str | None:
    """The uv that runs us, else one on PATH that works, else the Makefile's own."""
    for uv in (os.environ.get("UV"), shutil.which("uv"), str(ROOT / ".uv" / "bin" / "uv")):
        if (
            uv
            and Path(uv).exists()
            and subprocess.run([uv, "--version"], capture_output=True).returncode == 0
        ):
            return uv
    return None


UV = find_uv()
needs_uv = pytest.mark.skipif(UV is None, reason="no uv: run the tests with `make test`")
needs_conf = pytest.mark.skipif(not (ROOT / "conf" / "config.yaml").exists(), reason="no conf/ here")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def tracked_files() -> list[str]:
    """Every file of the checkout that git does not ignore, new ones included."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout; the crate's dependencies stay built there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    target = ROOT / "rustbpe" / "target"
    target.mkdir(exist_ok=True)
    with held(target / "wheel.lock", wait=True):  # maturin moves the library that another build is reading
        run(UV or "uv", "build", "--wheel", "-o", folder, cwd=folder / "source", CARGO_TARGET_DIR=str(target))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel installed, and the dependencies of the one that runs us."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(UV or "uv", "venv", "--python", sys.executable, venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    run(UV or "uv", "pip", "install", "--no-deps", "--python", python, wheel, cwd=venv.parent)
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv.parent
    ).strip()
    # A plain path: the .pth files inside it, which lead to the checkout, are not followed.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@needs_uv
def test_the_wheel_holds_every_file_of_the_package_conf_and_the_plugin(wheel: Path) -> None:
    expected = set()
    for name in tracked_files():
        if name.startswith(("nanolit/", "launch/hydra_plugins/", "conf/", "launch/")):
            installed = name.replace("launch/hydra_plugins/", "hydra_plugins/", 1)
            expected.add("nanolit/" + name if name.startswith("conf/") else installed)
        if name in ("pyproject.toml", "uv.lock") or name.startswith("rustbpe/"):
            expected.add(f"launch/project/{name}")  # what Modal's image is built from
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= names
    extra = {name for name in names - expected if ".dist-info/" not in name}
    assert extra == (set() if NO_RUST else {"nanolit/_rustbpe.abi3.so"})


@needs_uv
@pytest.mark.skipif(NO_RUST, reason="no Rust compiler")
def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name


@needs_uv
@pytest.mark.skipif(NO_RUST, reason="no Rust compiler")
def test_the_wheel_trains_tokenizers_in_rust(python: Path, tmp_path: Path) -> None:
    code = (
        "from nanolit.tokenizer import bpe; print(bpe.__file__);"
        "print(bpe.Tokenizer.train(['hello hello'], vocab_size=267).encode('hello'), bpe._rustbpe.__name__)"
    )
    where, ids = run(python, "-c", code, cwd=tmp_path, PYTHONPATH="").splitlines()
    assert Path(where).is_relative_to(python.parent.parent)
    assert ids == "[257, 108, 111] nanolit._rustbpe"


@needs_uv
@needs_conf
def test_the_wheel_composes_a_job_with_its_own_conf(python: Path, tmp_path: Path) -> None:
    choices = ["model=d4", "cluster=modal_8xh100"]  # the cluster's launcher is the plugin in the wheel
    job = run(python, "-m", "nanolit.train", "--cfg", "job", *choices, cwd=tmp_path, PYTHONPATH="")
    assert "name: modal_8xh100" in job


@needs_uv
@needs_conf
def test_the_wheel_installs_the_command_nanolit(python: Path, tmp_path: Path) -> None:
    nanolit = python.with_name("nanolit")
    assert "\n  train " in run(nanolit, cwd=tmp_path, PYTHONPATH="")
    choices = ["--cfg", "job", "model=d4"]
    typed = run(nanolit, "train", *choices, cwd=tmp_path, PYTHONPATH="")
    assert typed == run(python, "-m", "nanolit.train", *choices, cwd=tmp_path, PYTHONPATH="")


@needs_uv
@needs_conf
def test_the_wheel_trains_five_steps(python: Path, tmp_path: Path) -> None:
    overrides = ["experiment=demo", "phase=base", "max_steps=5", "eval_every=5", "root=here"]
    run(python, "-m", "nanolit.train", *overrides, cwd=tmp_path, PYTHONPATH="", OMP_NUM_THREADS="1")
    assert list((tmp_path / "here" / "runs").glob("*/base/release/model.safetensors"))


@needs_uv
@needs_conf
def test_the_wheel_submits_to_modal(python: Path, tmp_path: Path) -> None:
    """A dry run finds all that the image is built from, and the image's code is that of the checkout."""
    overrides = ["phase=base", "model=d12", "cluster=modal_h100", "dry_run=true"]
    said = run(python, "-m", "nanolit.train", *overrides, cwd=tmp_path, PYTHONPATH="")
    assert "dry run: d12-modern-s1 not submitted" in said
    list_files = (
        "from launch.image import collected; folder = collected(); "
        "print(*(path.relative_to(folder) for path in folder.rglob('*') if path.is_file()), sep='\\n')"
    )
    sent = run(python, "-c", list_files, cwd=tmp_path, PYTHONPATH="").split()
    code = [name for name in tracked_files() if name.startswith(("nanolit/", "launch/", "conf/"))]
    assert sorted(sent) == sorted("nanolit/" + name if name.startswith("conf/") else name for name in code)


@needs_uv
@needs_conf
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the fake ends containers through /proc")
def test_a_job_that_the_wheel_submits_trains_there(python: Path, tmp_path: Path) -> None:
    """On the fake Modal, whose containers have the files that the wheel sent."""
    account = Account(tmp_path / "modal", secrets={})
    try:
        words = account.overrides("wheel", "max_steps=2")
        code, output = account.run("nanolit.train", *words, python=python, checkout=tmp_path, PYTHONPATH="")
    finally:
        account.close()
    assert code == 0, output
    assert "── wheel: done at step 2" in output


@needs_uv
def test_the_wheel_is_small(wheel: Path) -> None:
    """The lock and the crate, which are in it for Modal's image, are a small part of it."""
    sizes = {one.filename: one.compress_size for one in zipfile.ZipFile(wheel).infolist()}
    assert sum(size for name, size in sizes.items() if name.startswith("launch/project/")) < 500_000
    assert wheel.stat().st_size < 8_000_000


def test_the_lock_names_one_index_and_no_local_paths() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    sources = {tuple(package["source"].items()) for package in lock["package"]}
    (index,) = {value for ((kind, value),) in sources if kind == "registry"}
    assert sources == {(("registry", index),), (("editable", "."),)}
    assert urlsplit(index).netloc.split(".") == ["pypi", "org"]
    files = [file["url"] for package in lock["package"] for file in package.get("wheels", [])]
    assert {urlsplit(url).scheme for url in files} == {"https"}


def test_the_makefile_has_at_most_eight_targets_and_explains_each() -> None:
    targets = run("make", "--no-print-directory", "help", cwd=ROOT).splitlines()
    assert len(targets) <= 8
    assert all(len(target.split(maxsplit=2)) == 3 for target in targets)


@needs_uv
def test_pip_is_given_the_versions_of_the_lock() -> None:
    """Oracle: uv's own export, by the command in the file's head."""
    head = (ROOT / "constraints.txt").read_text().splitlines()[1]
    command = head.removeprefix("# uv ").removesuffix(" -o constraints.txt").split()
    exported = run(UV or "uv", *command, "--quiet", cwd=ROOT)
    assert "".join((ROOT / "constraints.txt").read_text().splitlines(keepends=True)[2:]) == exported


def test_the_uv_that_make_gets_is_pinned_by_hash() -> None:
    lines = (ROOT / ".ci" / "uv.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith(("#", "    --hash=sha256:"))]
    assert len(pins) == 1
    assert pins[0].startswith("uv==")
    assert "--require-hashes -r .ci/uv.txt" in (ROOT / "Makefile").read_text()
