"""Kill a tiny run over and over, in every phase, and compare it bit for bit with an undisturbed one.

    python dev/chaos.py                                    a minute: some kills, damages and a full disk
    python dev/chaos.py kills=120 ranks=6 disks=5 damages=60 at=/tmp/chaos     an hour on two shared cores

A run fetches its text from a stand-in hub, trains a tokenizer, and goes through base, mid, sft and rl. In
each phase it is killed or gets a signal: at a file operation, during a checkpoint, a release, an evaluation
or sampling, or after some time. Then the same command is run again. Nothing may be lost: it resumes from the
newest complete checkpoint, and weights, tokenizer, samples and metrics.csv end up equal. `ranks` kills one of
two ranks, or only their parent; `disks` fills the disk; `damages` damages a file of the run, which must then
end with an equal result or with one line of error. The last line is JSON; the exit code is 1 if anything
failed.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "launch"), str(ROOT / "tests" / "data")]
from hub import Hub, serving  # noqa: E402  # pyright: ignore[reportMissingImports]

from dev import chaos_child  # noqa: E402
from dev.chaos_child import PHASES, STRUCK, Blow, End  # noqa: E402
from dev.chaos_compare import differences, left_overs, newest_whole, phase_reached  # noqa: E402
from dev.damages import BYTES, PLACES, changing  # noqa: E402
from nanolit.data.shards import FineWebEdu, shard_name  # noqa: E402
from nanolit.machine.arguments import read, setting  # noqa: E402
from nanolit.machine.exit import command  # noqa: E402

SAMPLE = ROOT / "nanolit" / "data" / "sample"
TINY = ROOT / "dev" / "tiny"
WORDS = (
    *(f"stage.{stage}.mixture={TINY}/mixture.yaml" for stage in ("mid", "sft")),
    *("experiment=demo", "recipe=classic", "data=fineweb_edu"),
    *("model.depth=1", "model.width=64", "model.heads=2", "model.context=64"),
    *("stage.tokenizer.vocab_size=600", "stage.tokenizer.max_chars=1000000"),
    *("total_batch=512", "micro_batch=2", "compile=false", "stage.base.eval_tokens=512"),
    *("stage.base.max_steps=32", "stage.base.save_every=4", "stage.base.eval_every=8"),
    *("stage.mid.max_steps=16", "stage.mid.save_every=3", "stage.mid.eval_every=4"),
    *("stage.sft.max_steps=16", "stage.sft.save_every=3", "stage.sft.eval_every=4"),
    *("stage.rl.max_steps=12", "stage.rl.save_every=2", "stage.rl.eval_every=3"),
    *("stage.rl.questions=4", "stage.rl.samples=4", "stage.rl.max_new_tokens=4"),
    *("stage.rl.validation.size=20", f"chat_tasks={TINY}/chat.yaml"),
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIZES = ("4m", "16k", "3m", "5m", "7m")
MISSES = 2  # a blow to the last phase may come too late; another life for it is not worth the time
PER_PHASE = (2, 2, 4, 4, 4, 8)  # kills of one life; the last ones may come too late


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the chaos test: how often to do what. The defaults take about a minute."""

    kills: int = setting("kills and signals, over all phases", 6, least=0)
    ranks: int = setting("kills in two-rank runs: of a rank, or of the parent alone", 0, least=0)
    disks: int = setting("runs on a full disk, each of another size", 1, least=0, most=5)
    damages: int = setting("files to damage", 6, least=0)
    seed: int = setting("random seed", 1)
    at: Path | None = setting("working folder (default: a temporary one)", None)


class Chaos:
    """The runs in `folder`, what was done to them, and what failed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.counts: dict[str, Counter[str]] = {}
        self.failed: list[str] = []
        self.lives = 0

    def run(self, root: Path, blow: Blow | None = None) -> End:
        return chaos_child.run_child(WORDS, root, log=self.folder / "child.log", blow=blow)

    def count(self, kind: str, what: str) -> None:
        self.counts.setdefault(kind, Counter())[what] += 1

    def fail(self, what: str, text: str = "") -> None:
        """Note a failure, and print the end of the output."""
        self.failed.append(what)
        print(f"FAILED: {what}\n{text[-1500:]}", flush=True)

    def check_end(self, end: End, what: str, codes: Sequence[int]) -> None:
        if end.code is None:
            self.fail(f"{what}: hang", end.text)
        elif "Traceback (most recent call last)" in end.text:
            self.fail(f"{what}: traceback", end.text)
        elif end.code not in codes:
            self.fail(f"{what}: exit code {end.code}", end.text)

    def reference(self) -> Path:
        root = self.folder / "reference"
        if not (root / "runs/demo/rl/release").is_dir():
            end = self.run(root)
            if end.code != 0:
                raise ValueError(f"the undisturbed run ended with exit code {end.code}:\n{end.text[-3000:]}")
        return root

    def live(self, kills: int) -> int:
        """Lead one run through kills in every phase to its end; return how many there were."""
        self.lives += 1
        root, died = self.folder / f"life-{self.lives}", 0
        shutil.rmtree(root, ignore_errors=True)
        blows = [self.blow(phase) for phase, n in zip(PHASES, PER_PHASE, strict=True) for _ in range(n)]
        if kills < len(blows):  # about as many in every phase
            chosen = sorted(index % len(PHASES) for index in range(kills))
            blows = [self.blow(PHASES[index]) for index in chosen]
        before: dict[str, int] = {}
        for blow in [*blows, None]:
            end = self.run(root, blow)
            self.check_resumed(end, before)
            if end.code == 0:
                if re.search(r"^demo · ", end.text.partition(STRUCK)[2], re.MULTILINE):
                    self.fail(f"{blow}: began another stage in spite of the signal", end.text)
                break
            if blow is None:
                self.check_end(end, "the last run", [0])
                return died
            died += 1
            self.count("by", signal.Signals(blow.signal).name if blow.signal != 9 else blow.where)
            self.check_end(end, f"{blow}", [-blow.signal, 130])
            before = {phase: newest_whole(root, phase) for phase in PHASES[2:]}
            phase = phase_reached(root)
            self.count("kills", phase)
            print(f"life {self.lives}, kill {died}: {phase}, {blow}, exit code {end.code}", flush=True)
            shutil.copytree(root, self.folder / f"halfway-{phase}", dirs_exist_ok=True)
        self.compare(root, f"life {self.lives}")
        shutil.rmtree(root)
        return died

    def blow(self, phase: str) -> Blow:
        source, model = self.random, phase not in PHASES[:2]
        where = source.choice(["file", "file", "time", *(["checkpoint", "evaluation", "release"] * model)])
        most = {"file": 30 if model else 6, "checkpoint": 20, "release": 4, "evaluation": 30, "time": 9}
        number = source.randint(1, most[where])
        return Blow(phase, where, number, source.choice([*[signal.SIGKILL] * 7, *SIGNALS]))

    def check_resumed(self, end: End, before: dict[str, int]) -> None:
        """Nothing is lost: each stage continues after its newest whole checkpoint."""
        for phase, step in re.findall(r"^(\w+): resuming after step ([\d,]+)", end.text, re.MULTILINE):
            self.count("resumed", phase)
            if int(step.replace(",", "")) < before.get(phase, 0):
                self.fail(f"{phase} lost steps: resumed after step {step}, not {before[phase]}", end.text)

    def compare(self, root: Path, what: str) -> None:
        for difference in [*differences(root, self.folder / "reference"), *left_overs(root)]:
            self.fail(f"{what}: {difference}")

    def fill_disk(self, size: str) -> None:
        root = self.folder / "from-disk"
        shutil.rmtree(root, ignore_errors=True)
        ends = chaos_child.run_on_full_disk(WORDS, root, log=self.folder / "disk.log", size=size)
        if ends is None:
            return self.count("disks", "not possible here")
        self.count("disks", size)
        self.check_end(ends[0], f"a disk of {size}", [1, 2])
        if "No space left" not in ends[0].text and "the disk has" not in ends[0].text:
            self.fail(f"a disk of {size}: no message about the full disk", ends[0].text)
        self.check_end(ends[1], f"a disk of {size}, enlarged", [0])
        self.compare(root, f"a disk of {size}, enlarged")

    def strike_ranks(self, strikes: int) -> None:
        """Kill one of two ranks, or their parent alone, again and again; then let the run end."""
        words, root = [*WORDS, *chaos_child.RANK_WORDS], self.folder / "ranks"
        reference, log = self.folder / "ranks-reference", self.folder / "ranks.log"
        for folder, victims in ((reference, []), (root, ["rank", "parent"] * strikes)):
            shutil.rmtree(folder, ignore_errors=True)
            for victim in [*victims[:strikes], None]:
                before = {"base": newest_whole(folder, "base")}
                end, left = chaos_child.strike(
                    words, folder, log=log, victim=victim, after=self.random.uniform(0, 3)
                )
                self.check_resumed(end, before)
                self.check_end(end, f"two ranks, {victim} killed", [1, -signal.SIGKILL] if victim else [0])
                if left:
                    self.fail(f"two ranks, {victim} killed: {left} processes still run after 30 s")
                if victim:
                    self.count("kills", "two ranks")
                    self.count("by", victim)
                    print(
                        f"two ranks: {victim} killed, exit code {end.code}, {left} processes left", flush=True
                    )
        for difference in differences(root, reference, phases=("base",)):
            self.fail(f"two ranks: {difference}")

    def damage(self, source: Path) -> None:
        """Damage a file of a finished or unfinished run; it must end in an equal result or an error line."""
        root = self.folder / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)
        path = self.random.choice(damageable(root))
        applies = {name: changing(change) for name, change in BYTES.items()} | PLACES
        kind = self.random.choice([*applies])
        what = f"{path.relative_to(root)} {kind}"
        applies[kind](path)
        end = self.run(root)
        self.count("damages", kind)
        self.check_end(end, what, [0, 1, 2])
        if end.code == 0:
            for difference in differences(root, self.folder / "reference", weights_only=True):
                if difference.split()[0] not in path.as_posix():
                    self.fail(f"{what}: {difference}, silently", end.text)
        print(f"damage: {what}: exit code {end.code} {end.text.strip().splitlines()[-1:]}", flush=True)


def damageable(root: Path) -> list[Path]:
    """Return the files of a root's runs and tokenizers; there are none while data is being fetched."""
    files = [*(root / "runs").rglob("*"), *(root / "tokenizers").rglob("*")]
    left_out = (".png", ".lock")
    return sorted(
        path for path in files if path.is_file() and path.suffix not in left_out and path.name != ".lock"
    )


@contextmanager
def serve_hub() -> Iterator[None]:
    """Serve the sample's text as FineWeb-Edu on loopback, from a process of its own, until closed."""
    texts = {0: "train.parquet", 1: "train.parquet", 1822: "validation.parquet"}
    files = {shard_name(index): (SAMPLE / name).read_bytes() for index, name in texts.items()}
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with serving(Hub(FineWebEdu.repository, files)) as address:
            os.write(writing, address.encode())
            signal.pause()
    os.environ["HF_ENDPOINT"] = os.read(reading, 100).decode()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@command
def main(words: Sequence[str]) -> int:
    settings = read(Settings, words, about=__doc__)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.at or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chaos_child.warm()
        with serve_hub():
            chaos = Chaos(folder.resolve(), settings.seed)
            attack(chaos, settings)
    report = {kind: dict(counter) for kind, counter in chaos.counts.items()}
    print(json.dumps({**report, "lives": chaos.lives, "failed": chaos.failed}))
    return 1 if chaos.failed else 0


def attack(chaos: Chaos, settings: Settings) -> None:
    reference, died = chaos.reference(), 0
    while died + MISSES < settings.kills:
        died += chaos.live(settings.kills - died)
    for size in SIZES[: settings.disks]:
        chaos.fill_disk(size)
    for index in range(settings.damages):
        runs = [reference, *filter(damageable, sorted(chaos.folder.glob("halfway-*")))]
        chaos.damage(runs[index % len(runs)])
    if settings.ranks:
        chaos.strike_ranks(settings.ranks)


if __name__ == "__main__":
    sys.exit(main())
