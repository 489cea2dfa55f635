"""What a person can choose: every option composes with every other, or is refused in one line."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nanolit.config.compose import compose, options
from nanolit.config.schema import Choices
from nanolit.machine.paths import CONF, write_yaml
from nanolit.planning.plans import fresh_plan

GROUPS = {group: options(group) for group in ("model", "recipe", "phase", "data", "cluster", "logger")}
NONE = "–"  # nothing chosen
GROUPS["experiment"] = [*options("experiment"), NONE]
GROUPS["data"] += [NONE]
Option = tuple[str, str]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    """A folder whose file names are all that a plan looks at."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("a.parquet", "b.parquet", "val.parquet"):
        (folder / name).touch()
    return folder


def refused(left: Option, right: Option) -> bool:
    return {left, right} == {("recipe", "modern"), ("phase", "mid")}


def covering_rows() -> list[dict[str, str]]:
    """Few choices of one option per group that hold every pair of options between them (greedy)."""
    pairs = {
        (one, other)
        for left, right in itertools.combinations(GROUPS, 2)
        for one in itertools.product([left], GROUPS[left])
        for other in itertools.product([right], GROUPS[right])
        if not refused(one, other)
    }
    rows = []
    while pairs:
        row = dict(min(pairs))
        for group in GROUPS:
            if group not in row:
                row[group] = max(GROUPS[group], key=lambda option: gain({**row, group: option}, pairs))
        pairs -= set(itertools.combinations(row_options(row), 2))
        rows.append(row)
    return rows


def row_options(row: dict[str, str]) -> list[Option]:
    return [(group, row[group]) for group in GROUPS if group in row]


def gain(row: dict[str, str], pairs: set[tuple[Option, Option]]) -> int:
    held = list(itertools.combinations(row_options(row), 2))
    return -1 if any(refused(*pair) for pair in held) else sum(pair in pairs for pair in held)


@pytest.mark.parametrize("row", covering_rows(), ids=lambda row: " ".join(row.values()))
def test_every_pair_of_options_composes_and_plans(row, text_folder, tmp_path):
    """All pairs: a row holds one pair of each two groups, and the rows leave none out (asserted below)."""
    overrides = [f"{group}={option}" for group, option in row.items() if option != NONE]
    if row["data"] == "local":
        overrides.append(f"data.path={text_folder}")
    job = compose([*overrides, f"root={tmp_path}"])
    for stage in job["stages"]:
        if (row["experiment"], row["cluster"], stage) == ("demo", "modal_2x8xh100", "rl"):
            with pytest.raises(
                ValueError, match="must be a multiple of devices = 16"
            ):  # its 8 questions a step
                fresh_plan(job, stage)
        else:
            assert fresh_plan(job, stage).stage == stage
    write_yaml(tmp_path / "job.yaml", job)
    assert yaml.safe_load((tmp_path / "job.yaml").read_text()) == job


def test_the_rows_hold_every_pair_that_is_not_refused():
    held = {pair for row in covering_rows() for pair in itertools.combinations(row_options(row), 2)}
    wanted = {
        ((left, one), (right, other))
        for left, right in itertools.combinations(GROUPS, 2)
        for one, other in itertools.product(GROUPS[left], GROUPS[right])
    }
    assert {pair for pair in wanted - held if not refused(*pair)} == set()


def test_every_group_of_the_design_is_there():
    assert set(GROUPS["model"]) == {f"d{depth}" for depth in (2, 4, 6, 8, 12, 16, 20, 24, 26, 32)}
    assert GROUPS["recipe"] == ["classic", "modern"]
    assert set(GROUPS["phase"]) == {"tokenizer", "base", "mid", "sft", "rl", "identity", "speedrun"}
    assert set(GROUPS["data"]) == {"sample", "stories", "local", "fineweb_edu", "climbmix", NONE}
    assert len(GROUPS["cluster"]) == 7


@pytest.mark.parametrize(
    ("overrides", "got", "remedy"),
    [
        (["modle=d6"], "modle", "did you mean model?"),
        (["model.dpeth=6"], "model.dpeth", "did you mean model.depth?"),
        (["model=d7"], "model=d7", "model.depth=N takes any depth"),
        (["model.depth=six"], "model.depth is 'six' (str)", "an integer"),
        (["model.depth=2.5"], "model.depth is 2.5 (float)", "an integer"),
        (["seed=true"], "seed is True (bool)", "an integer"),
        (["compile=1"], "compile is 1 (int)", "true or false or null"),
        (["precision=fp16"], "precision is 'fp16'", "one of bf16, fp32, fp8 or null"),
        (["run=3"], "run is 3 (int)", "text"),
        (["stage.sft=null"], "stage.sft is None (NoneType)", "a mapping"),
        (["recipe.sft=null"], "recipe.sft is None (NoneType)", "a mapping"),
        (["phase=mid"], "recipe=modern has no stage mid", "tokenizer, base, sft, rl"),
        (["stage.mid.lr_scale=0.5"], "stage.mid.lr_scale=0.5", "recipe=modern has no stage mid"),
        (["stages=[sft,base]"], "stages=[sft, base]", "give stages=[base, sft]"),
        (["stages=[]"], "stages is []", "stages=[base]"),
        (["stage.base.lr=0.1"], "stage.base.lr", "did you mean stage.base.lr_scale?"),
        (["recipe.gpt.softcp=20"], "recipe.gpt.softcp", "did you mean recipe.gpt.softcap?"),
        (["+recipe.gpt.depth=3"], "recipe.gpt.depth", "softcap"),
        (["+recipe.optimizer.momentun=0.9"], "momentun", "did you mean recipe.optimizer.momentum?"),
        (["~recipe.schedule.warmup_steps"], "recipe.schedule.warmup_steps is missing", "an integer"),
        (["recipe.schedule.weight_decay=cosin"], "'cosin'", "constant, cosine, linear, none"),
        (["recipe.schedule._target_=os.system"], "'os.system'", "or nanolit.tasks. or lightning.pytorch."),
        (["recipe.schedule._target_=nanolit.optim.schedule.Shedule"], "Shedule", "check the spelling"),
        (["+recipe.schedule._partial_=true"], "recipe.schedule._partial_", "allowed in recipe.schedule"),
        (["recipe.groups.matrix.kind=sgd"], "'sgd'", "one of muon, adamw"),
        (["data=local"], "data.path", "data.path=…"),
        (["data.path=text"], "data.path needs data to be chosen first", "local"),
        (["cluster=modal_8xh200"], "cluster=modal_8xh200", "did you mean modal_8x"),
        (["cluster=modal_h100", "hydra.launcher.timeout=never"], "timeout=never", "Integer"),
        (["logger=wandb", "logger.projct=x"], "logger.projct", "did you mean logger.project?"),
        (["run=a/b"], "run is 'a/b'", "try 'a-b'"),
        (["seed=[1,2"], "seed=[1,2 has a bracket that is not closed", "close it, or quote"),
        (["+notes=hello"], "notes", "allowed"),
    ],
)
def test_a_bad_choice_is_one_line_that_names_what_is_allowed(overrides, got, remedy):
    with pytest.raises(ValueError, match=re.escape(got)) as caught:
        compose(overrides)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_is_refused_by_the_name_that_was_typed():
    """Not stage.base.max_steps, where it ends up."""
    with pytest.raises(ValueError, match=r"^max_steps is 'five' .str.; it must be an integer or null$"):
        compose(["max_steps=five"])
    with pytest.raises(ValueError, match=r"^micro_batch is 2.0 .float.; it must be an integer or one of"):
        compose(["micro_batch=2.0"])


@pytest.mark.parametrize(
    ("text", "got", "remedy"),
    [
        ("modle: {depth: 4}", "modle", "did you mean model?"),
        ("model: {dpeth: 4}", "model.dpeth", "did you mean model.depth?"),
        ("stage: {base: {max_step: 4}}", "stage.base.max_step", "did you mean stage.base.max_steps?"),
        ("defaults: [override /modle: d4]", "modle", "did you mean model?"),
        ("defaults: [override /model: d5]", "model=d5", "allowed: d"),
        ("model: d4", "model is 'd4'", "override /model"),
        ("max_steps: [", "typo.yaml", "expected"),
    ],
)
def test_a_typo_in_an_experiment_file_is_one_line(text, got, remedy, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ValueError, match=re.escape(got)) as caught:
        compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=typo"])
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["a mixture", "an experiment", "the command line"])
def test_the_environment_is_never_written_into_a_job(place, tmp_path, monkeypatch):
    """A resolved value would be stored with the run, and sent to W&B and Modal."""
    monkeypatch.setenv("A_SECRET", "t0psecret")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\nidentity: ${oc.env:A_SECRET}\n")
    source = '{_target_: nanolit.tasks.identity.Identity, path: "${oc.env:A_SECRET,x}"}'
    (tmp_path / "m.yaml").write_text(f"sources: [{source}]\nvalidation: []\n")
    words = {
        "a mixture": [f"stage.sft.mixture={tmp_path}/m.yaml"],
        "an experiment": [f"hydra.searchpath=[file://{tmp_path}]", "experiment=e"],
        "the command line": ["identity=${oc.env:A_SECRET}"],
    }
    with pytest.raises(
        ValueError, match=r"\$\{oc\.env:A_SECRET\} is not read: .*write the value itself"
    ) as caught:
        compose(["phase=sft", *words[place]])
    assert "t0psecret" not in str(caught.value)


@pytest.mark.parametrize("place", ["mixture", "experiment"])
def test_a_file_whose_aliases_unfold_without_end_is_refused(place, tmp_path):
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 8)]
    (tmp_path / "experiment").mkdir()
    path = tmp_path / ("m.yaml" if place == "mixture" else "experiment/e.yaml")
    path.write_text("\n".join(["a0: &a0 [x]", *levels]))
    words = {
        "mixture": [f"stage.sft.mixture={path}"],
        "experiment": [f"hydra.searchpath=[file://{tmp_path}]", "experiment=e"],
    }
    with pytest.raises(ValueError, match=f"{path} expands to over 100,000 values"):
        compose(["phase=sft", *words[place]])


def test_only_loggers_of_lightning_are_built():
    with pytest.raises(
        ValueError, match=r"must start with nanolit\.data\. or .* or lightning\.pytorch\.loggers\."
    ):
        compose(["data=sample", "data._target_=lightning.pytorch.cli.LightningCLI"])


def test_a_depth_without_a_file_names_its_run():
    job = compose(["model.depth=14", "seed=3"])
    assert (job["model"]["depth"], job["run"]) == (14, "d14-modern-s3")


def test_data_null_is_the_corpus_of_the_recipe():
    assert compose(["recipe=classic"])["data"]["_target_"].endswith("FineWebEdu")
    assert compose(["recipe=modern"])["data"]["_target_"].endswith("ClimbMix")


def test_a_speedrun_has_what_the_recipe_has_and_rl_on_request():
    assert compose(["phase=speedrun", "recipe=classic"])["stages"] == ["tokenizer", "base", "mid", "sft"]
    assert compose(["phase=speedrun", "rl=true"])["stages"] == ["tokenizer", "base", "sft", "rl"]
    assert compose(["phase=identity", "start_from=big"])["stages"] == ["sft"]


def test_identity_is_taught_by_the_file_that_was_given():
    """Its sources, by where they come from: classic has them, modern gets them when they are asked for."""

    def taught(*overrides: str) -> dict[str, list[tuple[str | None, int]]]:
        job = compose([*overrides])
        return {
            stage: [
                (source.get("path"), source.get("epochs", 1))
                for source in settings["mixture"]["sources"]
                if source["_target_"].endswith(".Identity")
            ]
            for stage, settings in job["stage"].items()
            if stage in ("mid", "sft")
        }

    assert taught("recipe=classic") == {"mid": [(None, 2)], "sft": [(None, 1)]}
    assert taught("recipe=classic", "identity=who.jsonl") == {
        "mid": [("who.jsonl", 2)],
        "sft": [("who.jsonl", 1)],
    }
    assert taught("recipe=modern") == {"sft": []}
    assert taught("recipe=modern", "identity=who.jsonl") == {"sft": [("who.jsonl", 2)]}
    assert taught("recipe=modern", "phase=identity", "start_from=big") == {"sft": [(None, 2)]}
    assert taught("experiment=demo") == {"sft": [(None, 1)]}
    assert taught("experiment=demo", "recipe=classic", "identity=who.jsonl") == {
        "mid": [("who.jsonl", 1)],
        "sft": [("who.jsonl", 1)],
    }


def test_only_phase_cluster_and_experiment_are_global():
    for path in CONF.rglob("*.yaml"):
        if "@package _global_" in path.read_text():
            assert path.parent.name in ("phase", "cluster", "experiment"), path


@pytest.mark.parametrize("name", options("experiment"))
def test_an_experiment_opens_with_what_it_takes(name):
    header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1:6]
    keys = [line.removeprefix("# ").split(":")[0] for line in header]
    assert keys == ["command", "hardware", "hours", "cost", "expected"]
    assert f"python -m nanolit.train experiment={name}" in header[0]


def test_the_help_names_every_top_level_key():
    text = (CONF / "hydra" / "help" / "nanolit.yaml").read_text()
    keys = set(Choices.__annotations__) - {"overrides", "stage", "phase"} - GROUPS.keys()
    assert {key for key in keys if key not in text} == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["modle=d6"]])
def test_the_command_answers_without_torch(arguments, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['nanolit.train', *{arguments!r}]\n"
        "try:\n    runpy.run_module('nanolit.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    print('code', end.code or 0)\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"code {2 if arguments == ['modle=d6'] else 0}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    if arguments == ["--help"]:
        assert "  model: d2, d4, d6, d8, d12, d16, d20, d24, d26, d32\n" in done.stdout
    if arguments == ["modle=d6"]:
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("place", ["mixture", "experiment"])
def test_a_tag_in_a_file_of_ones_own_is_refused(place, tmp_path):
    (tmp_path / "experiment").mkdir()
    path = tmp_path / ("m.yaml" if place == "mixture" else "experiment/e.yaml")
    path.write_text("# @package _global_\nmax_steps: !!bool maybe\n")
    words = {
        "mixture": [f"stage.sft.mixture={path}"],
        "experiment": [f"hydra.searchpath=[file://{tmp_path}]", "experiment=e"],
    }
    with pytest.raises(ValueError, match=f"{path} is not valid YAML .it has a tag"):
        compose(["phase=sft", *words[place]])
