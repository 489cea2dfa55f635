"""What a job learns from is looked for before its first stage begins, and offline means no network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.config.schema import Job, Target
from nanolit.jobs.execute import run
from nanolit.jobs.inputs import hub_forbidden, leaves, nodes
from nanolit.machine.paths import write_json, write_yaml
from nanolit.planning.plans import fresh_plans


def job(root: Path, *overrides: str):
    return compose(["experiment=demo", "fast_dev_run=true", f"root={root}", *overrides])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("identity=who.jsonl", "who.jsonl: no such file .*; generate it with: python -m nanolit.identity"),
        ("identity={folder}/two_users.jsonl", "two_users.jsonl line 2, message 2: got role user"),
        ("chat_tasks=full", "not a folder.*; or skip the chat tasks: chat_tasks=none"),
        ("chat_tasks={folder}/twice.yaml", "2 chat tasks are named WorkedSums; names must differ"),
    ],
)
def test_a_missing_or_malformed_source_of_a_later_stage_stops_before_base_begins(
    override: str, fault: str, tmp_path: Path
) -> None:
    user = '{"role": "user", "content": "Hi"}'
    (tmp_path / "two_users.jsonl").write_text(f"[{user}]\n[{user}, {user}]\n")
    sums = '{"_target_": "nanolit.tasks.sums.WorkedSums", "split": "test", "size": 20}'
    (tmp_path / "twice.yaml").write_text(f"mirror: sample\nmax_tokens: 16\ntasks: [{sums}, {sums}]\n")
    overrides = [override.format(folder=tmp_path)]
    if "full" in override:
        overrides.append(f"recipe.mirror={tmp_path / 'absent'}")
    result = run(job(tmp_path, *overrides))
    assert result["status"] == "failed"
    assert not list((tmp_path / "runs" / "demo").glob("*/plan.json"))
    assert re.search(fault, result["error"])
    assert "\n" not in result["error"]


def nodes_of(job: Job) -> list[Target]:
    return list(nodes(job, fresh_plans(job)))


def test_every_task_of_the_stages_is_looked_for_and_no_other(tmp_path: Path) -> None:
    assert nodes_of(job(tmp_path, "phase=base")) == []
    sft = nodes_of(job(tmp_path, "phase=sft"))
    targets = [node["_target_"].rpartition(".")[2] for node in sft]
    assert targets[:2] == ["Identity", "ConversationFile"]
    assert targets[-2:] == ["SimpleSpelling", "WorkedSums"]  # the last of the chat tasks
    assert nodes_of(job(tmp_path, "phase=sft", "chat_tasks=none")) == sft[:-2]
    rl = nodes_of(job(tmp_path, "stages=[rl]", "start_from=other"))
    assert [node["size"] for node in rl[:2]] == [9_000, 250]


def test_what_differs_between_two_mixtures_is_named_to_the_leaf() -> None:
    old = [{"path": "a.jsonl", "part": "train"}, {"path": "b"}]
    new = [{"path": "c.jsonl", "part": "train"}, {"path": "b"}]
    assert list(leaves("sources", old, new)) == [("sources.0.path", "a.jsonl", "c.jsonl")]
    assert list(leaves("sources", old, new[:1])) == [("sources", old, new[:1])]


def test_another_model_than_the_one_begun_from_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    demo = job(tmp_path)
    base = tmp_path / "runs" / "demo" / "base"
    write_json(base / "result.json", {"status": "done"})
    write_json(base / "release" / "gpt.json", {"format": 1, **fresh_plans(demo)["base"].gpt})
    write_yaml(base / "job.yaml", demo)
    words = ["phase=sft", "model=d2", "start_from=demo", "recipe.mirror=absent", f"root={tmp_path}"]
    said = "demo/base is a different model: depth is 4, but the job has 2, .*: experiment=demo run=NAME$"
    assert re.search(said, run(compose(words))["error"])


@pytest.mark.parametrize("before", [None, "0"])
def test_offline_is_told_to_hugging_faces_libraries_and_taken_back(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: what `datasets` says in a child process, as a rank is one."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    with hub_forbidden():
        code = "from nanolit.tasks.smoltalk import SmolTalk; SmolTalk(split='train', source='hub')"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert os.environ.get("HF_HUB_OFFLINE") == before
    assert "HuggingFaceTB/smol-smoltalk train can't be read from the hub" in child.stderr
    assert "recipe.mirror=FOLDER" in child.stderr
