"""Jobs run by the real worker on a tiny model: inputs are made, finished work kept, refusals come first."""

import gc
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.config.names import tokenizer_folder
from nanolit.config.stored import read_job
from nanolit.jobs import execute, processes, ranks, worker
from nanolit.machine.paths import read_json, stage_folder, write_json, write_yaml
from nanolit.model.gpt import GPT
from nanolit.phases.core import optimizer_settings
from nanolit.planning.plans import fresh_plan

TINY = [
    "data=sample",
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "model.context=32",
    "stage.tokenizer.vocab_size=300",
    "stage.tokenizer.max_chars=20000",
    "total_batch=256",
    "max_steps=2",
    "stage.base.eval_tokens=128",
    "compile=false",
    "run=tiny",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A root where the tiny base has been trained, on a root that was empty before."""
    root = tmp_path_factory.mktemp("root")
    result = execute.run(tiny_job(root))
    assert result["status"] == "done", result
    return root


def tiny_job(root: Path, *overrides: str):
    return compose([*TINY, f"root={root}", *overrides])


def test_float32_products_are_as_precise_as_the_recipe_says(finished, tmp_path):
    """Under any name: what a recipe is called decides nothing."""
    shutil.copytree(finished, tmp_path / "root")
    try:
        for number, wish in enumerate(("high", "highest")):
            job = tiny_job(tmp_path / "root", f"recipe.matmul_precision={wish}", f"run=other{number}")
            assert execute.run(job)["status"] == "done"
            assert torch.get_float32_matmul_precision() == wish
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("recipe", "precision"), [("classic", "high"), ("modern", "highest")])
def test_a_job_from_before_the_key_has_what_its_recipes_name_decided(tmp_path, recipe, precision):
    job: Any = tiny_job(tmp_path, f"recipe={recipe}")
    assert job["recipe"].pop("matmul_precision") == precision
    write_yaml(tmp_path / "job.yaml", job)
    assert read_job(tmp_path / "job.yaml")["recipe"]["matmul_precision"] == precision


@pytest.mark.parametrize(("said", "expected"), [("false", False), ("true", None), ("null", None)])
def test_compile_false_holds_for_the_optimizer_too(tmp_path, said, expected):
    """None: on a GPU."""
    assert optimizer_settings(tiny_job(tmp_path, f"compile={said}"))["compile"] is expected


@pytest.mark.usefixtures("deterministic_algorithms")  # which puts the process right afterwards
@pytest.mark.parametrize("said", ["false", "true"])
def test_deterministic_is_asked_for_before_the_model_is_built(said, finished, monkeypatch):
    torch.use_deterministic_algorithms(False)
    seen, build_trainer = [], worker.build_trainer

    def recording(parts, **others):
        seen.append((torch.are_deterministic_algorithms_enabled(), parts.phase.gpt.embedding.deterministic))
        return build_trainer(parts, **others)

    monkeypatch.setattr(worker, "build_trainer", recording)
    job = tiny_job(finished, f"deterministic={said}", f"run=deterministic-{said}")
    assert execute.run(job)["status"] == "done"
    assert seen == [(said == "true",) * 2]


def test_a_stage_writes_through_no_link_in_its_folder(finished, tmp_path):
    """A run's folder may come from a stranger, with links to any place of whoever resumes it."""
    job = tiny_job(finished, "run=linked")
    folder = stage_folder(job["root"], "linked", "base")
    folder.mkdir(parents=True)
    for name in ("metrics.csv", "samples.md", "release", "loss.png"):
        (folder / name).symlink_to(tmp_path / "outside" / name)
    (tmp_path / "outside").mkdir()
    assert execute.run(job)["status"] == "done"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("linked", ["", "checkpoints", "evaluation"])
def test_a_stage_whose_folder_leads_to_another_runs_is_refused(finished, tmp_path, linked):
    """It would prune the other run's checkpoints, and write its own among them."""
    job = tiny_job(finished, f"run=linked-{linked}")
    place = stage_folder(job["root"], job["run"], "base") / linked
    place.parent.mkdir(parents=True)
    (tmp_path / "other" / "step_000001").mkdir(parents=True)
    (tmp_path / "other" / "step_000001" / "manifest.json").touch()
    place.symlink_to(tmp_path / "other")
    result = execute.run(job)
    assert result["status"] == "failed"
    assert f"{place} is a link to {tmp_path}/other, where the run would write" in result["error"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


def test_a_stage_that_lacks_memory_says_so_in_one_line(finished, monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(worker, "train", full)
    result = execute.run(tiny_job(finished, "run=large"))
    assert (result["status"], result["error"][:22]) == ("failed", "base ran out of memory")
    assert "Traceback" not in capsys.readouterr().err


def test_base_on_an_empty_root_makes_its_tokenizer_and_leaves_its_records(finished):
    job = tiny_job(finished)
    folder = stage_folder(job["root"], "tiny", "base")
    assert (tokenizer_folder(job) / "tokenizer.json").exists()
    assert yaml.safe_load((folder / "job.yaml").read_text()) == job
    assert read_json(folder / "plan.json")["num_steps"] == 2
    result = read_json(folder / "result.json")
    assert (result["status"], result["stage"], result["step"]) == ("done", "base", 2)


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    path = stage_folder(finished, "tiny", "base") / "result.json"
    before = path.stat().st_mtime_ns
    assert execute.run(tiny_job(finished, "micro_batch=2", "eval_every=1"))["step"] == 2
    assert path.stat().st_mtime_ns == before
    assert "base: already finished at step 2" in capsys.readouterr().out


def test_another_run_reuses_the_tokenizer_and_compares_it_when_asked_for(finished, capsys):
    job = tiny_job(finished, "phase=tokenizer", "run=other", "seed=2", "offline=true")
    before = (tokenizer_folder(job) / "tokenizer.json").stat().st_mtime_ns
    assert execute.run(job)["status"] == "done"
    assert f"tokenizer: {tokenizer_folder(job).name} already exists" in capsys.readouterr().out
    assert (tokenizer_folder(job) / "tokenizer.json").stat().st_mtime_ns == before
    assert "validation" in (stage_folder(finished, "other", "tokenizer") / "comparison.md").read_text()


def test_a_tokenizer_of_other_settings_is_made_for_the_same_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "root")
    for size in (310, 320):
        result = execute.run(
            tiny_job(tmp_path / "root", "phase=tokenizer", f"stage.tokenizer.vocab_size={size}")
        )
        assert result["vocab_size"] == size


def test_as_many_shards_are_fetched_as_the_most_demanding_stage_reads(tmp_path, monkeypatch):
    fetched = []
    dataset = SimpleNamespace(
        is_shipped=False, fetch=lambda _, *, num_shards, **__: fetched.append(num_shards)
    )
    job = tiny_job(tmp_path, "phase=speedrun")
    shards = {"tokenizer": 3, "base": 5}
    plans = {stage: replace(fresh_plan(job, stage), shards=number) for stage, number in shards.items()}
    monkeypatch.setattr(execute, "build", lambda _: dataset)
    execute.fetch_data(job, plans)
    assert fetched == [5]


def test_what_a_killed_run_left_half_is_removed_and_never_published(finished, tmp_path):
    root = Path(shutil.copytree(finished, tmp_path / "root"))
    job = tiny_job(root)
    stage, tokenizer = stage_folder(root, "tiny", "base"), tokenizer_folder(job)
    (stage / "result.json").unlink()
    shutil.rmtree(stage / "release")
    (stage / ".release.abcd1234").mkdir()
    (stage / ".release.abcd1234" / "model.safetensors").write_bytes(b"half")
    left = [(stage, "job.yaml"), (stage, "metrics.csv"), (stage.parent, "report.md")]
    for folder, name in left:
        (folder / f".{name}.abcd1234.tmp").write_text("half")
    (stage / "checkpoints" / "step_000009").mkdir()
    (tokenizer / ".tokenizer.json.abcd1234.tmp").write_text("half")
    with pytest.warns(UserWarning, match="step_000009 is not a complete checkpoint"):
        assert execute.run(job)["status"] == "done"
    (tokenizer / ".tokenizer.json.abcd1234.tmp").unlink()  # a tokenizer that is there is not made again
    assert not [path for path in root.rglob("*") if "abcd1234" in path.name or path.name == "step_000009"]


def test_training_a_tokenizer_tells_what_it_counted(tmp_path, capsys):
    pytest.importorskip("nanolit._rustbpe", reason="NanoLit was installed without its Rust extension")
    assert execute.run(tiny_job(tmp_path, "phase=tokenizer", "offline=true"))["status"] == "done"
    assert re.search(r"^tokenizer: counted 0\.0 MB: [\d,]+ distinct words$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("phase", ["base", "tokenizer"])
def test_a_text_of_a_few_bytes_is_one_error_before_a_tokenizer_is_trained(tmp_path, phase):
    (tmp_path / "a.txt").write_text("Hello world!")
    result = execute.run(tiny_job(tmp_path, f"phase={phase}", f"data={tmp_path / 'a.txt'}"))
    assert result["status"] == "failed"
    assert re.search(r"too small: .* of its 12 bytes .*; give about 4,096 bytes or more$", result["error"])
    assert not list((tmp_path / "tokenizers").glob("*/tokenizer.json"))


@pytest.mark.parametrize(
    ("texts", "overrides", "message"),
    [
        ([1, 2], [], r"train\.parquet: column 'text' holds int64, not strings"),
        (["", ""], [], r"there is nothing to train on: the texts are empty"),
        (
            ["some words"],
            [],
            r"vocab_size \(300\) is more than this text yields: it has 8 merges; give .*=273 or less",
        ),
        (["some words"], ["stage.tokenizer.vocab_size=264"], r"vocab_size.*264.* 265"),
    ],
)
def test_what_no_tokenizer_can_be_trained_on_is_refused_with_its_place(tmp_path, texts, overrides, message):
    folder = tmp_path / "texts"
    folder.mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "train.parquet")
    pq.write_table(pa.table({"text": ["held out"]}), folder / "val.parquet")
    job = tiny_job(
        tmp_path, "phase=tokenizer", "data=local", f"data.path={folder}", "offline=true", *overrides
    )
    result = execute.run(job)
    assert result["status"] == "failed"
    assert re.search(message, result["error"])
    assert "\n" not in result["error"]


@pytest.mark.parametrize(
    "texts",
    [
        ("the sea and the stone", "rivers rivers rivers and other words", "other words again"),
        ("the sea and the stone", "rivers rivers and sea", "other words and again"),  # equally long
    ],
)
def test_replaced_text_gets_a_tokenizer_of_its_own_also_in_the_same_run(tmp_path, texts):
    folder = tmp_path / "texts"
    job = tiny_job(
        tmp_path, "data=local", f"data.path={folder}", "stage.tokenizer.vocab_size=266", "offline=true"
    )
    names = [tokenizer_folder(job).name]  # the folder isn't there yet, as in a plan made elsewhere
    folder.mkdir()
    (folder / "val.jsonl").write_text('{"text": "to be held out"}\n' * 99)
    for text in texts[:2]:
        (folder / "train.jsonl").write_text(f'{{"text": "{text}"}}\n' * 99)
        names.append(tokenizer_folder(job).name)
        assert execute.run({**job, "phase": "tokenizer", "stages": ["tokenizer"]})["status"] == "done"
    assert execute.run(job)["status"] == "done"
    assert read_json(stage_folder(tmp_path, "tiny", "base") / "plan.json")["tokenizer"] == names[2]
    made = [path.parent.name for path in (tmp_path / "tokenizers").glob("*/tokenizer.json")]
    assert set(made) == set(names[1:])
    assert len(set(names)) == 3
    shutil.rmtree(tmp_path / "tokenizers" / names[1])
    assert tokenizer_folder(job).name == names[2], "a name stays, whatever else is removed"
    (folder / "train.jsonl").write_text(f'{{"text": "{texts[2]}"}}\n' * 99)
    assert execute.run(job)["status"] == "done"  # long finished: it needs neither text nor tokenizer
    assert not tokenizer_folder(job).exists()
    (stage_folder(tmp_path, "tiny", "base") / "result.json").unlink()
    assert "was started with other text in data.path" in execute.run(job)["error"]


def test_changed_settings_are_refused_with_the_difference(finished):
    result = execute.run(tiny_job(finished, "max_steps=3", "stage.base.lr_scale=0.5"))
    assert result["status"] == "failed"
    assert "stage.base.max_steps was 2, now 3" in result["error"]
    assert "stage.base.lr_scale was 1.0, now 0.5" in result["error"]
    assert "another run=NAME" in result["error"]
    assert "to train it longer, run=tiny-2 start_from=tiny/base" in result["error"]
    folder = stage_folder(finished, "tiny", "base")
    assert result["error"].endswith(f"to start over, delete {folder}")
    assert "\n" not in result["error"]


def test_sft_without_a_base_names_the_command_that_makes_it(tmp_path):
    error = execute.run(tiny_job(tmp_path, "phase=sft", "recipe=classic"))["error"]
    assert "sft needs the finished base of run tiny" in error
    command = shlex.split(error.split("train it with: python -m nanolit.train ")[1])
    assert compose(command)["stages"] == ["base"]
    assert compose(command)["run"] == "tiny"


def test_sft_with_a_tokenizer_before_it_needs_a_base_all_the_same_and_names_other_runs(finished):
    error = execute.run(tiny_job(finished, "stages=[tokenizer,sft]", "run=other"))["error"]
    assert error.startswith("sft needs the finished base of run other")
    assert re.search(r"; start from another run, start_from=.*\btiny\b.*, or train it with: ", error)


def test_a_stage_takes_the_sizes_of_the_model_that_it_continues(finished):
    """Unless sizes are typed: then they are checked against the model's, as ever."""
    words = [word for word in TINY if not word.startswith("model.")]
    for more in (["run=more", "start_from=tiny"], ["run=tiny"]):
        job = compose([*words, f"root={finished}", "phase=sft", *more])
        assert job["model"] == tiny_job(finished)["model"]
    job = compose([*words, f"root={finished}", "phase=sft", "run=more", "start_from=tiny", "model=d4"])
    assert job["model"]["depth"] == 4 != tiny_job(finished)["model"]["depth"]


def test_identity_needs_a_model_to_teach(tmp_path):
    assert "start_from=RUN" in execute.run(tiny_job(tmp_path, "phase=identity"))["error"]


def test_a_root_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    error = execute.run(tiny_job(tmp_path / "file"))["error"]
    assert "cannot be written" in error
    assert "NANOLIT_HOME" in error


def test_a_run_that_another_process_holds_is_refused(tmp_path):
    lock = tmp_path / "runs" / "tiny" / ".lock"
    hold = (
        "import sys, time; from pathlib import Path; from nanolit.machine.locks import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        error = execute.run(tiny_job(tmp_path))["error"]
        other.kill()
    assert f"run tiny is in use by process {other.pid}" in error


@pytest.mark.slow
def test_two_devices_run_under_torchrun_whatever_the_environment_says(finished, monkeypatch):
    """The same two steps; the loss is that of one device within float tolerance."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "7", "MASTER_PORT": "1", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    result = execute.run(tiny_job(finished, "run=two", "cluster.devices=2"))
    assert (result["status"], result["step"]) == ("done", 2)
    one = read_json(stage_folder(finished, "tiny", "base") / "result.json")
    assert result["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-4)
    assert result["val_rows"] == one["val_rows"]


@pytest.mark.slow
def test_under_an_outer_torchrun_every_rank_joins_in(finished):
    """The ranks are torchrun's: the job must be for as many, and starts none of its own."""
    typed = [*TINY, f"root={finished}", "run=outer", "cluster.devices=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "nanolit.train", *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = read_json(stage_folder(finished, "tiny", "base") / "result.json")
    result = read_json(stage_folder(finished, "outer", "base") / "result.json")
    assert result["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-4)


def test_an_outer_torchrun_of_another_size_is_refused(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert "give cluster.devices=4" in execute.run(tiny_job(tmp_path))["error"]


@pytest.mark.slow
def test_ranks_that_die_without_a_result_are_a_failure(finished, monkeypatch):
    """An earlier result must not pass for theirs."""
    job = tiny_job(finished, "run=dead", "cluster.devices=2")
    write_json(stage_folder(finished, "dead", "base") / "result.json", {"status": "interrupted"})
    monkeypatch.setattr(ranks, "WORKER", "nanolit.config.build")  # a module that ends at once
    result = execute.run(job)
    assert result["status"] == "failed"
    assert "without a result" in result["error"]


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_behind(signal_number, tmp_path, monkeypatch):
    """A child and a grandchild in a session of its own, both deaf to SIGTERM, as torchrun's ranks can be."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    path = tmp_path / "pid"
    waiter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, time\nwhile not os.path.exists({str(path)!r}) or not open({str(path)!r}).read():\n"
            f"    time.sleep(0.05)\nos.kill({os.getpid()}, {int(signal_number)})",
        ]
    )
    with pytest.raises(KeyboardInterrupt):
        processes.supervise(
            [sys.executable, "-c", STUBBORN, str(path)], environment=processes.clean_environment(devices=1)
        )
    waiter.wait()
    deadline = time.monotonic() + 10
    while alive(int(path.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(path.read_text()))


def test_a_time_limit_leaves_the_grace_that_it_was_given(tmp_path, monkeypatch):
    """The checkpoint takes longer than a machine that is taken away would leave."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    saving = f"sleep 0.5; echo $NANOLIT_GRACE_SECONDS > {tmp_path}/saved; exit"
    command = ["sh", "-c", f"trap '{saving}' TERM; sleep 60 & wait"]
    with pytest.raises(subprocess.TimeoutExpired):
        processes.supervise(command, environment={**os.environ}, seconds=3, grace=30)
    assert (tmp_path / "saved").read_text() == "25\n"  # for its own ranks, and the rest for its result


def alive(pid: int) -> bool:
    """A killed orphan stays a zombie where nothing adopts it."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_descendants_are_found_across_sessions_and_none_of_a_process_that_is_gone():
    """Oracle: the ids that the processes print themselves."""
    code = (
        "import os, subprocess, sys\n"
        "inner = 'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()'\n"
        "subprocess.run([sys.executable, '-c', inner], start_new_session=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    inner = int(process.stdout.readline())
    assert inner in [child.pid for child in processes.descendants(process.pid)]
    process.communicate("")
    assert processes.descendants(process.pid) == []


def test_a_stage_leaves_no_handler_and_no_model_behind(tmp_path):
    """The next stage of the process needs the memory, and SIGTERM has to end it between stages too."""

    def models() -> list[Any]:
        gc.collect()
        return [one for one in gc.get_objects() if issubclass(type(one), (GPT, L.Trainer))]

    known = [id(one) for one in models()]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert execute.run(tiny_job(tmp_path))["status"] == "done"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not [one for one in models() if id(one) not in known]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nanolit.jobs.processes.supervise", r"must start with nanolit\.data"),
        ("nanolit.jobs.execute.run", r"must start with nanolit\.data"),
        ("nanolit.tasks.sums.pairs_of", "is not a class; give a class"),
    ],
)
def test_a_job_builds_classes_of_some_packages_and_calls_no_function(target, message):
    with pytest.raises(ValueError, match=message):
        build({"_target_": target, "command": ["true"], "job": {}})


def test_our_own_warnings_show_no_source():
    text = worker.plain_warning("skipped", UserWarning, str(Path(worker.__file__)), 3)
    assert text == "skipped\n"
    assert "/elsewhere.py:3: UserWarning" in worker.plain_warning("odd", UserWarning, "/elsewhere.py", 3)
