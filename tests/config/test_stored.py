"""A job.yaml of an earlier version is read as this version would have written it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from typing_extensions import is_typeddict

from nanolit.config.build import check_mapping
from nanolit.config.compose import compose
from nanolit.config.names import decisive_settings
from nanolit.config.schema import SHORTHANDS, Job
from nanolit.config.stored import read_job, upgraded
from nanolit.machine.paths import write_yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FORMAT_1 = REPOSITORY / "tests" / "fixtures" / "run_format_1" / "runs" / "tiny" / "base" / "job.yaml"


def stored(tmp_path: Path, **stages: dict[str, Any]) -> Path:
    """The job of format 1 with other settings of its stages, in a file."""
    job = yaml.safe_load(FORMAT_1.read_text())
    for stage, settings in stages.items():
        job["stage"][stage] |= settings
    write_yaml(tmp_path / "job.yaml", job)
    return tmp_path / "job.yaml"


def test_a_job_of_format_1_has_the_keys_of_today():
    """Oracle: the schema, checked by pydantic."""
    later = {"core_every", "sandbox"}
    assert set(SHORTHANDS) - later <= yaml.safe_load(FORMAT_1.read_text()).keys()
    check_mapping(read_job(FORMAT_1), Job, path="")


def test_a_job_of_format_1_decides_what_the_same_words_decide_today():
    """Oracle: its own command line, composed by this version."""
    old = read_job(FORMAT_1)
    now = compose(old["overrides"])
    for stage in (None, "tokenizer", "base", "sft", "rl"):
        assert decisive_settings(old, stage) == decisive_settings(now, stage)


def test_a_key_that_came_later_has_the_value_of_before():
    assert read_job(FORMAT_1)["deterministic"] is False


def test_a_job_of_today_is_read_as_it_was_written(tmp_path):
    job = compose(["deterministic=true", "recipe=classic"])
    write_yaml(tmp_path / "job.yaml", job)
    assert read_job(tmp_path / "job.yaml") == job


def test_a_removed_option_refuses_by_name_where_it_was_chosen(tmp_path):
    with pytest.raises(ValueError, match=r"has stage\.tokenizer\.encoder=tiktoken, which this version no"):
        read_job(stored(tmp_path, tokenizer={"encoder": "tiktoken"}))


@pytest.mark.parametrize(("comparison", "refused"), [("number", False), ("string", True)])
def test_a_removed_argument_of_a_target_refuses_where_it_was_chosen(tmp_path, comparison, refused):
    task = {"_target_": "nanolit.tasks.gsm8k.GSM8K", "split": "train", "source": "hub"}
    path = stored(tmp_path, rl={"task": {**task, "comparison": comparison}})
    if refused:
        with pytest.raises(ValueError, match=r"has GSM8K\.comparison=string, which"):
            read_job(path)
    else:
        assert read_job(path)["stage"]["rl"]["task"] == task


def keys_of(kind: Any) -> Iterator[str]:
    """Every key of a TypedDict and of those below it."""
    for key, below in get_type_hints(kind).items():
        yield key
        for one in (below, *get_args(below)):
            if is_typeddict(one):
                yield from keys_of(one)


def test_a_key_that_nothing_reads_does_not_exist():
    """Oracle: the source of what composes, plans and runs a job, where a key stands in quotes."""
    source = "".join(
        path.read_text()
        for folder in ("nanolit", "launch")
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.name != "schema.py"
    )
    assert {"total_batch", "kind", "questions"} <= set(keys_of(Job))
    quoted = set(re.findall(r"""["'](\w+)["']""", source))
    assert set(keys_of(Job)) - quoted == set()


def test_an_incomplete_job_is_upgraded_as_far_as_it_goes():
    added = {"deterministic": False, "yes": False}
    assert upgraded({"seed": 2, "stage": None}) == {"seed": 2, "stage": None, **added}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("run: a\n  : - [broken", "is not valid YAML"),
        ("", "lacks run, seed, model"),
        ("- a list", "lacks run, seed, model"),
        ("run: a\nseed: 1\nrecipe: {}\ndata: {}\nstages: []\nstage: {}", "lacks model;"),
    ],
)
def test_a_damaged_job_is_refused_with_its_file(tmp_path: Path, text: str, fault: str):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=fault) as refused:
        read_job(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
