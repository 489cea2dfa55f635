"""What the README says is so: its commands compose, its map is the folder's, its table has every key."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from nanolit import identity, plan
from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.tokenizer.conversation import check_conversation

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for line in README.splitlines()
    if line.startswith("    python -m nanolit.")
]
TRAIN = [command for command in COMMANDS if "nanolit.train " in command]


def words(command: str) -> list[str]:
    return shlex.split(command)[3:]


@pytest.mark.parametrize("command", TRAIN)
def test_every_train_command_composes(command: str, tmp_path: Path) -> None:
    overrides = [
        word.replace("=2,4", "=2").replace("=d2,d4", "=d2").replace("=1,2", "=1") for word in words(command)
    ]
    assert compose([*overrides, f"root={tmp_path}"])["stages"]


def test_the_plan_command_plans(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [command for command in COMMANDS if "nanolit.plan " in command and "=all" not in command]
    monkeypatch.setattr("sys.argv", ["plan", *words(command)])
    assert plan.main() == 0
    assert "1,681,786,938" in capsys.readouterr().out


def test_the_table_of_clusters_is_what_the_plan_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the lines of this machine and of what nobody bills, which the README leaves out."""
    (command,) = [command for command in COMMANDS if "nanolit.plan " in command and "=all" in command]
    monkeypatch.setattr("sys.argv", ["plan", *words(command)])
    assert plan.main() == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "$" in line]
    assert len(printed) == 5
    assert [line.strip() for line in README.splitlines() if line.startswith("      modal_")] == [
        line.strip() for line in printed
    ]


def test_the_commands_for_other_places_compose(tmp_path: Path) -> None:
    section = README[README.index("### Other places") : README.index("### What it learns to talk from")]
    lines = [line.partition("#")[0] for line in section.splitlines() if "nanolit.train" in line]
    assert len(lines) == 4
    for line in lines:
        overrides = shlex.split(line.partition("nanolit.train")[2])
        assert compose([*overrides, f"root={tmp_path}"])["stages"] == ["base"]


def test_the_identity_commands_say_what_they_would_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "about.md").write_text("Ada was trained in Delft.")
    commands = [command for command in COMMANDS if "nanolit.identity " in command]
    assert len(commands) == 2
    for command in commands:
        assert (
            identity.main([*(word for word in words(command) if "dry_run" not in word), "dry_run=true"]) == 0
        )
        said = capsys.readouterr().out
        assert "1,000 requests, about" in said
        assert "Ada was trained in Delft." in said


def test_the_source_of_ones_own_conversations_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's line and its conversation, in a mixture."""
    (source,) = yaml.safe_load(next(line for line in README.splitlines() if "ConversationFile" in line))
    (conversation,) = re.findall(r'\{"messages": .*\]\}', README)
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(f"{conversation}\n{json.dumps(json.loads(conversation)['messages'])}\n")
    task = build(source)
    assert (len(task), task.epochs) == (2, 2)
    for index in range(2):
        check_conversation(task[index])


def test_commands_are_found() -> None:
    assert len(TRAIN) >= 5
    assert {"nanolit.runs", "nanolit.report", "nanolit.evaluate", "nanolit.chat"} <= {
        command.split()[2] for command in COMMANDS
    }


def test_the_map_of_packages_equals_the_listing_of_the_package() -> None:
    table = README[README.index("## What is where") : README.index("Imports point one way")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name.strip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    there = {
        path.name
        for path in (ROOT / "nanolit").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("_") and path.name != "conf"
    }
    assert named == there


def test_the_table_names_every_top_level_key() -> None:
    table = README[README.index("### Top-level keys") : README.index("### From nanochat")]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in first for name in re.findall(r"`([^`]+)`", row)}
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"))
    groups = {"model", "recipe", "data", "cluster", "logger", "experiment", "phase"}
    assert named == (config.keys() | groups) - {"defaults", "hydra", "stage"}
