"""What README and docs/ say is so: commands are read, tables and maps are whole, links lead somewhere."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import launch.__main__
from nanolit import convert, identity, plan
from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.machine.arguments import Root, read, read_some
from nanolit.model.gpt import GPT
from nanolit.model.release import save_release
from nanolit.planning.plans import fresh_plans, total
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
COMMAND = re.compile(r"-m (nanolit\.\w+|launch|benchmarks)\b(.*)")
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
# What stands for something of the reader's, and what it is here
YOURS = {"=PATH": "=books", "=FOLDER": "=books", "=FILE": "=mine.jsonl", "[RUN]": "RUN", " …": ""}


JOBS = ("nanolit.train", "nanolit.plan", "nanolit.describe")  # their words are those of a job


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Return the module and the words of every command, on a line of its own or between backticks."""
    lines = [line.partition(" #")[0] for line in text.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`([^`\n]+)`", text)
    found = [match for code in [*lines, *inline] if "NAME" not in code and (match := COMMAND.search(code))]
    return [(match[1], shlex.split(yours(match[2]))) for match in found if "|" not in match[2]]


def yours(words: str) -> str:
    for name, value in YOURS.items():
        words = words.replace(name, value)
    return words


COMMANDS = [(name, *command) for name, text in TEXTS.items() for command in commands_of(text)]


def plans(words: list[str]) -> None:
    """Compose a job; of a sweep the first."""
    firsts = [re.sub(r"^([\w.]+=[^\[',]+),[^\[\]]*$", r"\1", word) for word in words]
    assert compose([word for word in firsts if word not in ("cluster=all", "--json")])["stages"]


def read_words(module: str, words: list[str]) -> None:
    """Read a command's words as it does itself, before it does anything; what describes a job is composed."""
    name = words.pop(0) if module in ("launch", "benchmarks", "nanolit.convert") else ""
    if module == "launch":
        read(launch.__main__.COMMANDS[name][0], words, about=None)
        return
    inside = {"benchmarks": f".{name}", "nanolit.chat": ".__main__", "nanolit.report": ".__main__"}
    source = importlib.import_module(f"{module}{inside.get(module, '')}")
    settings = convert.ModelSettings if source == convert else getattr(source, "Settings", Root)
    if module in JOBS or (module == "benchmarks" and name not in ("loader", "tokenizer")):
        plans(read_some(settings, words, about=None)[1])
    elif module == "nanolit.chat":
        source.parse(words)
    else:
        read(settings, words, about=None)


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents speak of, made the current one."""
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("A book. " * 2_000)
    (tmp_path / "story.txt").write_text("A story. " * 2_000)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for name in ("mine.jsonl", "identity.jsonl"):
        (tmp_path / name).write_text(f"{json.dumps({'messages': talk})}\n" * 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOLIT_HOME", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize(("document", "module", "words"), COMMANDS)
def test_every_command_is_read(document: str, module: str, words: list[str], readers_folder: Path) -> None:
    read_words(module, list(words))


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 70
    assert {module for _, module, _ in COMMANDS} >= {
        *("launch", "benchmarks", "nanolit.train", "nanolit.plan", "nanolit.chat", "nanolit.evaluate"),
        *("nanolit.report", "nanolit.runs", "nanolit.describe", "nanolit.identity", "nanolit.doctor"),
    }


def test_the_readme_has_the_commands_of_the_whole_pipeline() -> None:
    needed = [
        "python -m nanolit.train phase=base model=d26 cluster=modal_8xh100",
        "python -m nanolit.train phase=base model=d12 recipe=classic,modern seed=1,2,3",
        "python -m nanolit.plan ",
        "web=true cluster=modal_a10g",
        "tasks=core",
        "python -m nanolit.report compare=",
        "data=PATH",
        "mixture=FILE",
        "make demo",
        "make test",
    ]
    assert [text for text in needed if text not in TEXTS["README.md"]] == []


def test_the_readme_is_one_page() -> None:
    assert TEXTS["README.md"].count("\n") <= 120


def anchors_of(text: str) -> set[str]:
    """Return the headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(document: str) -> None:
    lost = []
    for link in (one or other for one, other in LINK.findall(TEXTS[document])):
        target, _, anchor = link.partition("#")
        file = (ROOT / document).parent / target if target else ROOT / document
        if link.startswith("https://"):
            continue
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
            lost.append(link)
    assert lost == []


def test_the_index_names_every_page() -> None:
    pages = {Path(name).name for name in TEXTS if name.startswith("docs/")} - {"README.md"}
    assert {link for link, _ in LINK.findall(TEXTS["docs/README.md"]) if "/" not in link} == pages
    assert pages <= {Path(link).name for link, _ in LINK.findall(TEXTS["README.md"])}


def test_every_file_that_a_page_names_exists() -> None:
    named = {
        name
        for text in TEXTS.values()
        for name in re.findall(r"`((?:nanolit|launch|conf|tests|dev|notebooks)/[\w/]+\.\w+)`", text)
    }
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_pictures_are_small_and_are_shown() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []
    shown = " ".join(TEXTS.values())
    assert [path.name for path in pictures if f"images/{path.name}" not in shown] == []


def test_the_plan_command_plans(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = "phase=base model=d26 cluster=modal_8xh100"
    assert f"    python -m nanolit.plan {command}\n" in TEXTS["docs/plan.md"]
    monkeypatch.setattr("sys.argv", ["plan", *command.split()])
    assert plan.main() == 0
    assert "1,681,786,938" in capsys.readouterr().out


def test_the_table_of_clusters_is_what_the_plan_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the lines of this machine and of what nobody bills, which the page leaves out."""
    (command,) = [line for line in TEXTS["docs/plan.md"].splitlines() if line.endswith(" cluster=all")]
    monkeypatch.setattr("sys.argv", ["plan", *shlex.split(command)[3:]])
    assert plan.main() == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "$" in line]
    assert len(printed) == 5
    table = [line for line in TEXTS["docs/plan.md"].splitlines() if line.startswith("      modal_")]
    assert [line.strip() for line in table] == [line.strip() for line in printed]


def test_the_costs_in_the_readme_are_what_the_plan_says() -> None:
    """Rounded to dollars, of all stages of each experiment on rented GPUs."""
    rows = re.findall(r"^\| `(experiment=[^`]+)` \|.*\| \$([\d,]+) \|", TEXTS["README.md"], re.MULTILINE)
    assert len(rows) == 3
    for words, dollars in rows:
        _, planned = total(list(fresh_plans(compose(words.split())).values()))
        assert planned is not None
        assert f"{planned:,.0f}" == dollars


def test_the_identity_commands_say_what_they_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "about.md").write_text("Ada was trained in Delft.")
    commands = [words for _, module, words in COMMANDS if module == "nanolit.identity"]
    assert len(commands) == 2
    for words in commands:
        assert identity.main([*(word for word in words if "dry_run" not in word), "dry_run=true"]) == 0
        said = capsys.readouterr().out
        assert "1,000 requests, about" in said
        assert "Ada was trained in Delft." in said


def test_the_sources_of_ones_own_conversations_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's lines, on the page's conversation in both of its forms and 38 others."""
    page = TEXTS["docs/data.md"]
    mixture = yaml.safe_load(page[page.index("    sources:\n") :])
    mine, held_out = mixture["sources"][0], mixture["validation"][0]
    (conversation,) = re.findall(r'\{"messages": .*\]\}', page)
    monkeypatch.chdir(tmp_path)
    lines = [conversation, json.dumps(json.loads(conversation)["messages"])]
    lines += [conversation.replace("Hi", f"Hi {number}") for number in range(38)]
    Path("mine.jsonl").write_text("\n".join(lines))
    tasks = [build(mine), build(held_out)]
    assert (sum(map(len, tasks)), tasks[0].epochs) == (40, 2)
    for task in tasks:
        for index in range(len(task)):
            check_conversation(task[index])


def test_the_python_of_the_documents_runs(
    readers_folder: Path, taught_model: GPT, byte_tokenizer: Tokenizer
) -> None:
    """On a run named demo, whose base and sft are a tiny model."""
    byte_tokenizer.save(readers_folder / "bytes")
    for stage in ("base", "sft"):
        save_release(
            readers_folder / "runs" / "runs" / "demo" / stage / "release",
            taught_model,
            tokenizer_folder=readers_folder / "bytes",
            tokenizer_hash=byte_tokenizer.hash,
            meta={"run": "demo", "stage": stage, "step": 1},
        )
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["docs/python.md"], re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["logits_BTV"].shape == (*names["ids_BT"].shape, byte_tokenizer.vocab_size)


def test_the_map_of_packages_equals_the_listing_of_the_package() -> None:
    page = TEXTS["docs/layout.md"]
    table = page[page.index("| in `nanolit/` |") : page.index("Imports point one way")].partition("\n")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name.strip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    there = {
        path.name
        for path in (ROOT / "nanolit").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("_") and path.name != "conf"
    }
    assert named == there


def test_the_table_names_every_top_level_key() -> None:
    page = TEXTS["docs/settings.md"]
    table = page[page.index("## Top-level keys") : page.index("## From nanochat")]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in first for name in re.findall(r"`([^`]+)`", row)}
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"))
    groups = {"model", "recipe", "data", "cluster", "logger", "experiment", "phase"}
    assert named == (config.keys() | groups) - {"defaults", "hydra", "stage"}
