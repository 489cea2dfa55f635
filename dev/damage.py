"""Damage every kind of file of a run in every way, and read it: `python dev/damage.py [only=NAME]`.

Trains a tiny run through all stages once. For each damage, the commands that read the file work on a damaged
copy of the run, each in a fork of this process. None may end in a traceback, hang, or silently train other
weights. The last line counts the damages, the commands and the failures; the exit code is 1 if anything
failed.
"""

import functools
import gc
import hashlib
import importlib
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.chaos_child import forked
from dev.damages import Damage, damages_of, drop_privileges
from nanolit.config.compose import compose, plain_job
from nanolit.machine.arguments import read, setting
from nanolit.machine.exit import command
from nanolit.machine.paths import write_yaml
from nanolit.report import curves

STAGES = ("base", "mid", "sft", "rl")
TINY = Path(__file__).parent / "tiny"
WORDS = (
    *("experiment=demo", "recipe=classic", "data=sample", "data.cache=true", "run=tiny", "offline=true"),
    *("model.depth=1", "model.width=32", "model.heads=2", "model.context=64", "compile=false"),
    *("stage.tokenizer.vocab_size=300", "stage.tokenizer.max_chars=20000", "total_batch=256"),
    *("micro_batch=2", "stage.base.eval_tokens=128", "stage.rl.questions=2", "stage.rl.samples=2"),
    *("stage.rl.max_new_tokens=4", "stage.rl.validation.size=4", "max_steps=8", "save_every=4"),
    *("sample_every=4", "eval_every=4", f"chat_tasks={TINY}/chat.yaml"),
    *(f"stage.{stage}.mixture={TINY}/mixture.yaml" for stage in ("mid", "sft")),
)
RUN, FIRST, LAST = Path("runs", "tiny"), "step_000004", "step_000008"
BASE, CHECKPOINT = RUN / "base", RUN / "base" / "checkpoints" / FIRST
TRAIN = "nanolit.jobs.execute"
RUNS, REPORT = ("nanolit.runs", ()), ("nanolit.report.__main__", ("run=tiny",))
Command = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    only: str = setting("try only damages whose file or name contains this text", "")
    every: int = setting("try only every Nth damage, but all swapped checkpoints and releases", 1, least=1)
    first: int = setting("skip this many damages at the beginning", 0, least=0)
    turn: int = setting("another number gives each key another odd value", 0)


def train(stage: str) -> Command:
    return TRAIN, (*WORDS, f"phase={stage}")


def files_of(stage: str) -> Iterator[tuple[str, list[tuple[str, Command]]]]:
    """Yield the files and folders of a stage, with the states and the commands that read them there.

    In the state "sft half" sft is interrupted and nothing came after it, in "sft" it is finished.
    """
    half, whole = f"{stage} half", stage
    resume = (half, train(stage))
    following = [(whole, train(STAGES[STAGES.index(stage) + 1]))] if stage != "rl" else []
    evaluate = ("rl", ("nanolit.evaluate", (f"run=tiny/{stage}",)))
    chat = (
        "rl",
        ("nanolit.chat.__main__", (f"run=tiny/{stage}", "max_tokens=4", "temperature=0", "-p", "hi")),
    )
    show = ("rl", ("nanolit.evaluate", (f"run=tiny/{stage}", "show=Sums")))
    again, runs, report = (whole, train(stage)), (half, RUNS), (half, REPORT)
    first, last = f"checkpoints/{FIRST}", f"checkpoints/{LAST}"
    yield "job.yaml", [resume, runs, report, evaluate]
    yield "plan.json", [resume, runs, report, evaluate]
    yield "metrics.csv", [resume, runs, report]
    yield "samples.md", [resume, report]
    yield "result.json", [again, *following, ("rl", RUNS), ("rl", REPORT)]
    for name in ("manifest.json", "data-00000-of-00001.json", "model.safetensors"):
        yield f"{first}/{name}", [resume]
    yield f"{first}/optimizer-00000-of-00001.safetensors", [resume]
    yield f"{first}/progress.json", [resume, runs]
    yield f"{last}/model.safetensors", following
    yield f"{last}/optimizer-00000-of-00001.safetensors", following
    yield "release/gpt.json", [*following, chat, evaluate]
    yield "release/meta.json", [*following, chat, evaluate]
    yield "release/model.safetensors", [*following, chat]
    yield "release/tokenizer/tokenizer.json", [*following, chat]
    if stage in ("mid", "sft", "rl"):
        yield "evaluation/Sums.jsonl", [("rl", REPORT), evaluate, show]
    for folder in ("", "checkpoints", first):
        yield folder, [resume, runs, report]
    for folder in ("release", "release/tokenizer", *(["evaluation"] if stage != "base" else [])):
        yield folder, [*following, chat, ("rl", REPORT), evaluate]


FILES: dict[Path, list[tuple[str, Command]]] = {
    RUN / stage / name: reading for stage in STAGES for name, reading in files_of(stage) if reading
}
FILES |= {
    Path("tokenizers", "NAME", "tokenizer.json"): [("base half", train("base")), ("base", train("mid"))],
    Path("data", "sample", "tokens", "NAME.tokens"): [("base half", train("base"))],
    RUN / ".lock": [("sft half", train("sft")), ("sft half", RUNS), ("sft half", REPORT)],
    RUN / "report.md": [("rl", REPORT)],
    RUN / "report.html": [("rl", REPORT), ("rl", train("rl"))],
    Path("tokenizers"): [("base half", train("base"))],
    Path("runs"): [("rl", RUNS), ("rl", REPORT)],
    RUN: [("rl", RUNS), ("rl", REPORT), ("rl half", train("rl"))],
}


def damages(root: Path, files: Iterable[Path] = tuple(FILES), *, turn: int = 0) -> Iterator[Damage]:
    """Yield every damage of every kind of file."""
    for file in files:
        yield from damages_of(file, find(root, file), turn=turn)


def swaps(states: dict[str, Path]) -> Iterator[Damage]:
    """Yield whole checkpoints and releases in the wrong place: from elsewhere, or renamed."""
    for stage in STAGES:
        file, other = RUN / stage / "checkpoints" / FIRST, "mid" if stage == "base" else "base"
        stranger, elsewhere = states["other"] / file, states["rl"] / RUN / other
        if stranger.exists():
            yield Damage(file, "from another run", putting(stranger))
            yield Damage(
                file, "the next step from another run", putting(stranger.with_name(LAST), "step_000006")
            )
        yield Damage(file, "from another stage", putting(elsewhere / "checkpoints" / FIRST))
        yield Damage(
            file, "copied to a later step", lambda path: shutil.copytree(path, path.with_name("step_000006"))
        )
        yield Damage(file, "an empty later step", lambda path: path.with_name("step_000006").mkdir())
        yield Damage(file, "a later step as a file", lambda path: path.with_name("step_000006").touch())
        yield Damage(file, "a later step as a pipe", lambda path: os.mkfifo(path.with_name("step_000006")))
        yield Damage(RUN / stage / "release", "from another stage", putting(elsewhere / "release"))


def putting(source: Path, name: str = "") -> Callable[[Path], object]:
    """Return a function that copies a folder to another's place, or beside it under a name."""

    def apply(path: Path) -> None:
        target = path.with_name(name or path.name)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)

    return apply


def find(root: Path, file: Path) -> Path:
    """Return the path below a root; some names have a hash in them."""
    return next(root.glob(str(file).replace("NAME", "*"))) if "NAME" in str(file) else root / file


def call(command: Command, root: Path, *, seconds: float = 120) -> tuple[int | None, str]:
    """Run a command in a fork; return its exit code (None if it hung) and its output."""
    module, words = command
    log = root.with_name("log.txt")
    if module == TRAIN:
        job: Any = {**composed(words), "root": str(root)}
        write_yaml(log.with_name("job.yaml"), job)
        words = (str(log.with_name("job.yaml")),)
    else:
        words = (*words, f"root={root}")

    def work() -> int:
        drop_privileges()
        if module == TRAIN:
            curves._png = lambda _: b""  # most of its time; the report's command draws
        sys.argv = [module, *words]
        return importlib.import_module(module).main() or 0

    end = forked(work, log=log, seconds=seconds)
    return end.code, end.text


@functools.cache
def composed(words: tuple[str, ...]) -> Any:
    """Compose a job once: Hydra would take most of the time."""
    return compose(list(words))


def result_of(command: Command, root: Path, output: str) -> str:
    """Return what may not change silently: the hash of trained weights, or the last line of the output."""
    if command[0] != TRAIN:
        return output.strip().splitlines()[-1] if output.strip() else ""
    stage = command[1][-1].removeprefix("phase=")
    path = root / RUN / stage / "release" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def said(output: str) -> set[str]:
    """Return the lines of an output without numbers and paths: a new line is a message."""
    lines = [re.sub(r"/\S+|[\d.,]+", "", line).strip() for line in output.splitlines()]
    return {line for line in lines if line and not line.startswith("step")}


def prepare(folder: Path) -> dict[str, Path]:
    """Make a run, and its states: each stage half done, and finished with nothing after it."""
    states = {"rl": folder / "rl"}
    states["rl"].mkdir()
    for stage in STAGES:
        code, output = call(train(stage), states["rl"], seconds=600)
        assert code == 0, output
    states["other"] = folder / "other"
    states["other"].mkdir()
    code, output = call((TRAIN, (*WORDS, "seed=2", "phase=base")), states["other"], seconds=600)
    assert code == 0, output
    for stage in STAGES:
        later = STAGES[STAGES.index(stage) + 1 :]
        states[stage] = folder / stage
        if later:
            shutil.copytree(states["rl"], states[stage])
        for other in later:
            shutil.rmtree(states[stage] / RUN / other)
        half = states[f"{stage} half"] = Path(shutil.copytree(states[stage], folder / f"{stage} half"))
        for name in ("release", f"checkpoints/{LAST}"):
            shutil.rmtree(half / RUN / stage / name)
        (half / RUN / stage / "result.json").unlink()
    return states


class Judge:
    """Runs commands on copies of the states, and compares them with the same on undamaged ones."""

    def __init__(self, folder: Path, states: dict[str, Path]) -> None:
        self.folder, self.states = folder, states
        self.usual: dict[tuple[str, Command], tuple[set[str], str]] = {}

    def run(self, state: str, command: Command, damage: Damage | None) -> str:
        """Return what is wrong with a command after a damage, "" if nothing is."""
        if damage and (state, command) not in self.usual:
            self.run(state, command, None)
        root = Path(shutil.copytree(self.states[state], self.folder / "damaged", symlinks=True))
        try:
            if damage:
                damage.apply(find(root, damage.file))
            code, output = call(command, root)
            if not damage:
                assert code in (0, 2), output
                self.usual[state, command] = said(output), result_of(command, root, output)
                return ""
            return wrong(code, output) or (
                "" if damage.forged or code else self.silent(state, command, root, output)
            )
        finally:
            for path in root.rglob("*"):
                if not path.is_symlink():  # whose target is not ours
                    path.chmod(0o755)
            shutil.rmtree(root)

    def silent(self, state: str, command: Command, root: Path, output: str) -> str:
        usual, right = self.usual[state, command]
        module, words = command
        if module in (RUNS[0], REPORT[0]) or "show=Sums" in words:  # they show what stands in a file
            return ""
        same = result_of(command, root, output) == right
        return "" if same or said(output) - usual else "another result, silently"


def wrong(code: int | None, output: str) -> str:
    if code is None:
        return "hung"
    if "Traceback (most recent call last)" in output:
        frames = re.findall(r'File ".*?/nanolit/(\S+)", line (\d+)', output)[-2:]
        places = " ".join(":".join(frame) for frame in frames)
        return f"traceback: {output.strip().splitlines()[-1][:150]} at {places}"
    if code not in (0, 1, 2):
        return f"exit code {code}: {output[-150:]}"
    if "\x1b]" in output:
        return "control characters reached the terminal"
    if code and len([line for line in output.splitlines() if line.startswith("error:")]) > 1:
        return "more than one line of error"
    return "" if not code or output.strip() else "no output"


def warm_up() -> None:
    """Import what the commands import, once before the forks: it is most of their time."""
    reading = (module for readers in FILES.values() for _, (module, _) in readers)
    for module in ("nanolit.jobs.worker", "nanolit.chat.terminal", "matplotlib.pyplot", *reading):
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    plain_job("recipe=classic", "model.depth=1", "seed=1")
    gc.freeze()  # each training collects once, and would copy all of this


@command
def main(words: Sequence[str]) -> int:
    settings = read(Settings, words, about=__doc__)
    warm_up()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        states = prepare(folder)
        judge, tried, failed = Judge(folder, states), Counter(), []
        of_files = [*damages(states["rl"], turn=settings.turn)]
        found = [*swaps(states), *of_files[settings.first :: settings.every]]
        for damage in found:
            label = f"{damage.file}: {damage.name}"
            if settings.only not in label:
                continue
            tried["damages"] += 1
            tried[next((part for part in damage.file.parts if part in STAGES), "outside stages")] += 1
            if tried["damages"] % 50 == 0:
                print(f"{tried['damages']} of at most {len(found)} damages", flush=True)
            for state, command in FILES[damage.file]:
                tried["commands"] += 1
                if reason := judge.run(state, command, damage):
                    failed.append(
                        f"{label}: {state}: {command[0]} {command[1][-1] if command[1] else ''}: {reason}"
                    )
                    print(failed[-1], flush=True)
        print(f"{', '.join(f'{count:,} {name}' for name, count in tried.items())}; {len(failed)} failed")
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
