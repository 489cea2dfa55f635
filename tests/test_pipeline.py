"""The whole pipeline, a few steps of each stage: what `make demo` runs, and with the other recipe."""

import csv
import json
from pathlib import Path

import pytest
import yaml

import nanolit
from nanolit import evaluate
from nanolit.chat.__main__ import main as chat
from nanolit.chat.models import Models
from nanolit.chat.web import Page
from nanolit.config.compose import compose
from nanolit.jobs.execute import run
from nanolit.machine.paths import CONF, read_json


def overrides(recipe: str, root: Path) -> list[str]:
    """The demo's stages, three steps each; a fast_dev_run does not shorten what they are validated on."""
    stages = ("base", "mid", "sft") if recipe == "classic" else ("base", "sft")
    few = ["stage.rl.validation.size=20", *few_tokens(*stages)]
    return ["experiment=demo", f"recipe={recipe}", "fast_dev_run=true", *few, "run=dev", f"root={root}"]


def few_tokens(*stages: str) -> list[str]:
    return [f"stage.{stage}.eval_tokens=4096" for stage in stages]


@pytest.fixture(scope="module", params=["classic", "modern"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A finished run of the demo's stages: (recipe, root)."""
    root = tmp_path_factory.mktemp(request.param)
    result = run(compose(overrides(request.param, root)))
    assert result["status"] == "done", result
    return request.param, root


def test_every_stage_of_the_recipe_leaves_a_release_and_scores(pipeline: tuple[str, Path]) -> None:
    recipe, root = pipeline
    stages = ["base", "mid", "sft", "rl"] if recipe == "classic" else ["base", "sft", "rl"]
    for stage in stages:
        result = read_json(root / "runs" / "dev" / stage / "result.json")
        assert result["status"] == "done"
        assert result["step"] == 3
        assert (Path(result["release"]) / "model.safetensors").is_file()
        assert (stage == "base") == ("mean above guessing" not in result["metrics"])
        rows = (root / "runs" / "dev" / stage / "metrics.csv").read_text().splitlines()
        assert any(row["val_loss"] for row in csv.DictReader(rows)) == (stage != "rl")
    report = (root / "runs" / "dev" / "report.md").read_text()
    assert all(f" {stage.upper()} " in report for stage in stages)
    (sums,) = [line for line in report.splitlines() if line.startswith("| WorkedSums ")]
    assert " ± " in sums  # from the items that each stage left
    assert " 2 of 250 |" in sums


def test_a_second_run_says_that_it_is_finished(
    pipeline: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, root = pipeline
    before = (root / "runs" / "dev" / "base" / "metrics.csv").read_bytes()
    result = run(compose(overrides(recipe, root)))
    assert result["status"] == "done"
    assert "base: already finished at step 3" in capsys.readouterr().out
    assert (root / "runs" / "dev" / "base" / "metrics.csv").read_bytes() == before


def test_the_finished_run_answers(pipeline: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, root = pipeline
    assert chat(["run=dev", f"root={root}", "max_tokens=4", "temperature=0", "-p", "Hello"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_the_demos_own_questions_are_asked_and_shown_on_its_page(pipeline: tuple[str, Path]) -> None:
    """Oracle: the file of conf/chat_evaluation that the demo chooses."""
    folder = pipeline[1] / "runs" / "dev" / "sft"
    asked = yaml.safe_load((CONF / "chat_evaluation" / "demo.yaml").read_text())["questions"]
    lines = (folder / "samples.md").read_text().splitlines()
    assert [line.partition(" → ")[0] for line in lines if line.startswith("- ")] == [
        f"- {q!r}" for q in asked
    ]
    models = Models(["dev"], lambda _: nanolit.load(folder / "release"))
    face = Page(models, seed=None).face("dev")
    models.close()
    assert face["examples"] == [{"text": question} for question in asked]


@pytest.mark.parametrize("stage", ["base", "mid", "sft", "rl"])
def test_evaluation_by_hand_gives_what_the_pipeline_gave(
    pipeline: tuple[str, Path], capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """The oracle is the result that the stage's own evaluation wrote: its rows, its problems, its tasks."""
    recipe, root = pipeline
    if (recipe, stage) == ("modern", "mid"):
        pytest.skip("modern has no mid")
    problems = [] if stage == "base" else ["max_per_task=2"]
    assert evaluate.main([f"run=dev/{stage}", f"root={root}", *problems]) == 0
    said = capsys.readouterr().out
    assert "was changed" not in said
    scores = json.loads(said.splitlines()[-1])
    result = read_json(root / "runs" / "dev" / stage / "result.json")
    own = ("pass_at_1", "pass_at_k") if stage == "rl" else ("val_bpb",)
    for name in own:
        assert scores[name] == pytest.approx(result[name], rel=1e-5)
    assert {name: scores[name] for name in result["metrics"]} == pytest.approx(result["metrics"])
    if stage != "rl":
        assert scores["val_rows"] == result["val_rows"]
        assert f"checksum {result['val_rows']['checksum']}\n" in said
    if stage == "base":
        assert scores["val_bpb"] > scores["val_bpb of token unigrams"] > 1


def test_a_plan_that_was_changed_since_is_scored_with_a_word(pipeline: tuple[str, Path], capsys) -> None:
    """Without a key of its problems it would be asked others, and nothing in the file could show it."""
    path = pipeline[1] / "runs" / "dev" / "rl" / "plan.json"
    whole = path.read_text()
    plan = json.loads(whole)
    del plan["validation"]["below"]
    path.write_text(json.dumps(plan))
    assert evaluate.main(["run=dev/rl", f"root={pipeline[1]}", "tasks=none"]) == 0
    path.write_text(whole)
    assert (
        f"{path} has changed since the model was trained; its current settings are" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["run=dev/base", "max_per_task=2"],
            "max_per_task= is for chat tasks, but dev/base is not a",
        ),
        (["run=dev/sft", "tasks=none", "max_per_task=2"], "tasks=none asks no questions; leave it out"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(
    pipeline: tuple[str, Path], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert evaluate.main([*words, f"root={pipeline[1]}"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("stages", ["stages=null", "stages=[sft]"])
def test_who_it_is_can_be_taught_again_from_the_base(pipeline: tuple[str, Path], stages: str) -> None:
    """mid and sft where the recipe has both, or sft alone, with a file of one's own."""
    recipe, root = pipeline
    if (recipe, stages) == ("modern", "stages=[sft]"):
        pytest.skip("modern has no mid: stages=null is the same job")
    name = f"dev-identity-{len(stages)}-dev"
    mine = root / "mine.jsonl"
    mine.write_text('[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada"}]\n' * 3)
    taught = {"mid", "sft"} if (recipe, stages) == ("classic", "stages=null") else {"sft"}
    words = ["experiment=demo", f"recipe={recipe}", "fast_dev_run=true", f"root={root}", "rl=false"]
    words += few_tokens(*taught)
    result = run(
        compose([*words, "phase=identity", stages, "start_from=dev", f"run={name}", f"identity={mine}"])
    )
    assert result["status"] == "done", result
    assert {path.name for path in (root / "runs" / name).iterdir() if path.is_dir()} == taught
    for stage in taught:
        sources = yaml.safe_load((root / "runs" / name / stage / "job.yaml").read_text())["stage"][stage]
        assert str(mine) in {source.get("path") for source in sources["mixture"]["sources"]}


def test_a_missing_base_is_one_line_with_the_command_that_makes_it(tmp_path: Path) -> None:
    result = run(compose(["experiment=demo", "phase=sft", "recipe=modern", f"root={tmp_path}"]))
    assert result["status"] == "failed"
    assert "\n" not in result["error"]
    assert "python -m nanolit.train phase=base" in result["error"]
