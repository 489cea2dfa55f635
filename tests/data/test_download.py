"""Shards come whole from the hub or not at all: the real client against a stand-in that fails to order."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from corpora import texts, write_texts
from hub import Handler, Hub, serving

from nanolit.config.compose import compose
from nanolit.data.download import ATTEMPTS, PARTIAL, RECORD, fetch_shards, missing_shards
from nanolit.data.shards import FineWebEdu, shard_name
from nanolit.jobs import execute
from nanolit.machine.paths import read_json

REPOSITORY = "someone/texts"
NAMES = [shard_name(index) for index in range(4)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Four shards of 300 kB."""
    made = Hub(REPOSITORY, {name: random.Random(name).randbytes(300_000) for name in NAMES})
    with serving(made) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield made


def fetch(folder: Path, names: list[str] = NAMES, *, offline: bool = False) -> None:
    fetch_shards(folder, REPOSITORY, names, offline=offline, first_pause=0.01)


def whole(folder: Path, hub: Hub) -> list[str]:
    """The shards in the folder under their names; every one of them must be the hub's, byte by byte."""
    there = sorted(path.name for path in folder.glob("*.parquet"))
    assert all((folder / name).read_bytes() == hub.files[name] for name in there)
    return there


def refused(folder: Path, names: list[str] = NAMES, *, offline: bool = False) -> str:
    """What was said, in one line."""
    with pytest.raises(ValueError, match="; ") as caught:
        fetch(folder, names, offline=offline)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_are_fetched_once_and_nothing_else_is_left(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / ".hub.json.abcd1234.tmp").write_text("of a killed run")
    fetch(tmp_path, NAMES[:2])
    assert whole(tmp_path, hub) == NAMES[:2]
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES
    assert sorted(name for name, _ in hub.asked if name != "api") == NAMES
    asked = len(hub.asked)
    fetch(tmp_path)
    assert len(hub.asked) == asked
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".lock", RECORD, *NAMES])


def test_the_record_pins_the_revision_of_later_fetches(tmp_path: Path, hub: Hub) -> None:
    fetch(tmp_path, NAMES[:1])
    record = read_json(tmp_path / RECORD)
    assert record["shards"][NAMES[0]]["sha256"] == hashlib.sha256(hub.files[NAMES[0]]).hexdigest()
    first, hub.revision = hub.revision, "f" * 40  # the dataset moves on: the old revision is not served here
    assert f"revision {first[:8]}" in refused(tmp_path) or "404" in refused(tmp_path)
    hub.revision = first
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


def test_a_second_fetch_waits_for_the_first(tmp_path: Path, hub: Hub) -> None:
    """As a description of the data does during a training's download: the first to end removes .partial/."""
    released, others = threading.Event(), ThreadPoolExecutor(2)
    hub.faults[NAMES[0]] = [released]
    first = others.submit(fetch, tmp_path, NAMES[:2])
    assert hub.halfway.wait(20)
    second = others.submit(fetch, tmp_path, [NAMES[0], NAMES[3]])
    assert wait([second], timeout=0.3).not_done
    released.set()
    assert first.result(20) is second.result(20) is None
    assert whole(tmp_path, hub) == [*NAMES[:2], NAMES[3]]
    assert len([name for name, _ in hub.asked if name == NAMES[0]]) == 1


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "truncate", "damage", "more"])
def test_what_passes_is_tried_again(tmp_path: Path, hub: Hub, fault: object, capsys) -> None:
    hub.faults[NAMES[1]] = [fault, fault]
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES
    assert len([name for name, _ in hub.asked if name == NAMES[1]]) == 3
    assert f"{NAMES[1]}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"RateLimit": '"resolvers";r=0;t=1'},
        {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "RateLimit": '"resolvers";r=0;t=1'},
    ],
)
def test_a_rate_limit_is_waited_for_as_long_as_the_hub_says(
    tmp_path: Path, hub: Hub, headers: dict[str, str], capsys
) -> None:
    """Every pause of our own is below a second here."""
    hub.faults[NAMES[0]] = [(429, headers)]
    begun = time.monotonic()
    fetch(tmp_path, NAMES[:1])
    assert 2 <= time.monotonic() - begun < 10
    assert whole(tmp_path, hub) == NAMES[:1]
    assert "answered 429 Too Many Requests; trying again in 2 s" in capsys.readouterr().out


def test_a_limit_that_is_not_reached_delays_no_other_fault(tmp_path: Path, hub: Hub) -> None:
    hub.faults[NAMES[0]] = [(503, {"RateLimit": '"resolvers";r=0;t=300'}), (429, {"RateLimit": "r=9;t=300"})]
    begun = time.monotonic()
    fetch(tmp_path, NAMES[:1])
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_what_was_received_is_not_asked_for_again(tmp_path: Path, hub: Hub, fault: str) -> None:
    hub.faults[NAMES[0]] = [fault]
    fetch(tmp_path, NAMES[:1])
    assert whole(tmp_path, hub) == NAMES[:1]
    (_, first), (_, second) = [one for one in hub.asked if one[0] == NAMES[0]]
    assert first is None
    assert second is not None
    assert hub.sent < 300_000 * 1.5 + 1


def test_a_server_that_ignores_the_range_is_understood(tmp_path: Path, hub: Hub) -> None:
    hub.faults[NAMES[0]] = ["truncate", "ignore range"]
    fetch(tmp_path, NAMES[:1])
    assert whole(tmp_path, hub) == NAMES[:1]


def test_a_line_that_breaks_often_but_moves_on_gets_there(tmp_path: Path, hub: Hub) -> None:
    """More cuts than attempts: each brings half of what is left."""
    hub.faults[NAMES[0]] = ["truncate"] * (ATTEMPTS + 4)
    fetch(tmp_path, NAMES[:1])
    assert whole(tmp_path, hub) == NAMES[:1]


@pytest.mark.parametrize("fault", [503, "damage"])
def test_what_does_not_pass_ends_in_a_message_and_without_the_shard(
    tmp_path: Path, hub: Hub, fault: object
) -> None:
    hub.faults[NAMES[2]] = [fault] * 100
    said = refused(tmp_path)
    assert NAMES[2] in said
    assert ("503" if fault == 503 else "damaged") in said
    assert NAMES[2] not in whole(tmp_path, hub)
    hub.faults.clear()
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_no_is_not_asked_again(tmp_path: Path, hub: Hub, status: int) -> None:
    hub.faults[NAMES[0]] = [status]
    assert f"it answered {status}" in refused(tmp_path, NAMES[:1])
    assert len([name for name, _ in hub.asked if name == NAMES[0]]) == 1
    hub.faults["api"] = [status]
    assert f"it answered {status}" in refused(tmp_path / "other", NAMES[:1])


def test_the_metadata_is_asked_for_again_when_the_hub_falters(tmp_path: Path, hub: Hub) -> None:
    hub.faults["api"] = [500, 502]
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


def test_a_shard_that_the_hub_does_not_have_is_named(tmp_path: Path, hub: Hub) -> None:
    said = refused(tmp_path, [*NAMES, "shard_00009.parquet"])
    assert "someone/texts on the hub has no shard_00009.parquet at revision 01234567" in said
    assert not whole(tmp_path, hub)


@pytest.mark.parametrize("answer", ["<html>Please log in</html>", [], {"id": 7}, None])
def test_a_login_page_in_place_of_the_hub_is_told(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(Handler, "answer_json", lambda handler, _: answer_with(handler, answer))
    said = refused(tmp_path)
    assert re.search("answers, but not like a hub|no shard_00000|answered 404", said)
    assert not whole(tmp_path, hub)


def answer_with(handler: Handler, answer: object) -> None:
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_hub_that_is_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in refused(tmp_path).lower()


def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in answers as a proxy does, by whole addresses; the hub's own name leads nowhere."""
    monkeypatch.setenv("HTTP_PROXY", os.environ["HF_ENDPOINT"])
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    huggingface_hub.close_session()  # the client of other tests was made without the proxy
    try:
        fetch(tmp_path)
    finally:
        huggingface_hub.close_session()
    assert whole(tmp_path, hub) == NAMES


def test_a_disk_without_room_is_told_before_anything_is_fetched(tmp_path: Path, hub: Hub) -> None:
    hub.stated_size[NAMES[0]] = 10**18
    said = refused(tmp_path)
    assert "needs 1,000,000,000.0 GB more for 4 shards" in said
    assert "root=" in said
    assert [name for name, _ in hub.asked if name != "api"] == []


def test_a_volume_that_says_it_is_full_is_not_believed(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modal's volumes answer a question for their size with placeholders."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "GB more" in refused(tmp_path)
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_ends_in_a_message(tmp_path: Path, hub: Hub) -> None:
    """/dev/full gives the real "no space left" to whoever writes to it."""
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / NAMES[1]).symlink_to("/dev/full")
    said = refused(tmp_path)
    assert "No space left on device" in said
    assert NAMES[1] not in whole(tmp_path, hub)
    (tmp_path / PARTIAL / NAMES[1]).unlink()
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


def test_offline_nothing_is_asked_and_what_lacks_is_named(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(tmp_path, NAMES[:1])
    asked = len(hub.asked)
    fetch(tmp_path, NAMES[:1], offline=True)
    assert "lacks 3 of 4 shards (shard_00001.parquet" in refused(tmp_path, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refused(tmp_path)
    assert len(hub.asked) == asked


def test_a_shard_that_was_cut_after_it_was_fetched_is_fetched_again(tmp_path: Path, hub: Hub) -> None:
    fetch(tmp_path)
    os.truncate(tmp_path / NAMES[3], 1000)
    assert missing_shards(tmp_path, NAMES) == [NAMES[3]]
    fetch(tmp_path)
    assert whole(tmp_path, hub) == NAMES


def test_shards_that_were_put_there_by_hand_are_used(tmp_path: Path, hub: Hub) -> None:
    write_texts(tmp_path / NAMES[0], texts(3))
    fetch(tmp_path, NAMES[:1])
    assert hub.asked == []


def test_ctrl_c_leaves_what_came_and_the_next_start_goes_on_there(tmp_path: Path, hub: Hub) -> None:
    """A process of its own gets the signal while a shard is half there."""
    released = threading.Event()
    hub.faults[NAMES[0]] = [released]
    code = (
        "import sys; from pathlib import Path; from nanolit.data.download import fetch_shards\n"
        f"fetch_shards(Path({str(tmp_path)!r}), {REPOSITORY!r}, {NAMES[:2]!r}, offline=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert hub.halfway.wait(20)
    process.send_signal(signal.SIGINT)
    released.set()
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert set(whole(tmp_path, hub)) <= set(NAMES[:2])
    fetch(tmp_path, NAMES[:2])
    assert whole(tmp_path, hub) == NAMES[:2]


def test_a_dataset_fetches_its_first_shards_and_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = FineWebEdu()
    source = tmp_path / "source.parquet"
    write_texts(source, texts(5))
    names = [shard_name(index) for index in (0, 1, 1822)]
    with serving(Hub(dataset.repository, {name: source.read_bytes() for name in names})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        dataset.fetch(tmp_path, num_shards=2, offline=False)
    corpus = dataset.open_corpus(tmp_path, num_shards=2)
    assert [path.name for path in (*corpus.train_files, *corpus.validation_files)] == names


TINY_JOB = [
    "phase=base",
    "recipe=classic",  # whose corpus is FineWeb-Edu
    "model.depth=1",
    "model.width=16",
    "model.heads=2",
    "model.context=16",
    "stage.tokenizer.vocab_size=270",
    "stage.tokenizer.max_chars=20000",
    "total_batch=64",
    "max_steps=2",
    "stage.base.eval_tokens=64",
    "compile=false",
    "run=tiny",
]


@pytest.fixture
def fineweb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the first two shards of FineWeb-Edu and its last one, as small files."""
    content = write_texts(tmp_path / "source.parquet", texts(60)).read_bytes()
    hub = Hub(FineWebEdu.repository, {shard_name(index): content for index in (0, 1, 1822)})
    with serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def test_base_on_an_empty_root_fetches_what_its_plan_says_and_trains(tmp_path: Path, fineweb: Hub) -> None:
    result = execute.run(compose([*TINY_JOB, f"root={tmp_path}"]))
    assert result["status"] == "done", result
    fetched = sorted(name for name, _ in fineweb.asked if name != "api")
    assert fetched == [shard_name(0), shard_name(1822)]
    assert (
        execute.run(compose([*TINY_JOB, f"root={tmp_path}", "run=again", "offline=true"]))["status"] == "done"
    )


def test_a_finished_run_fetches_nothing_though_its_shards_are_gone(tmp_path: Path, fineweb: Hub) -> None:
    job = compose([*TINY_JOB, f"root={tmp_path}"])
    assert execute.run(job)["status"] == "done"
    (tmp_path / "data" / "fineweb_edu" / shard_name(0)).unlink()
    asked = len(fineweb.asked)
    assert execute.run(job)["status"] == "done"
    assert len(fineweb.asked) == asked


def test_a_job_that_may_not_fetch_ends_before_its_first_stage(tmp_path: Path, fineweb: Hub) -> None:
    result = execute.run(compose([*TINY_JOB, f"root={tmp_path}", "offline=true"]))
    assert result["status"] == "failed"
    assert "lacks 2 of 2 shards" in result["error"]
    assert fineweb.asked == []
    assert not (tmp_path / "runs" / "tiny" / "tokenizer" / "plan.json").exists()


def test_an_interrupted_fetch_is_an_interrupted_job(tmp_path: Path, fineweb: Hub) -> None:
    released = threading.Event()
    fineweb.faults[shard_name(0)] = [released]

    def interrupt() -> None:
        assert fineweb.halfway.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)
        released.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    job = compose([*TINY_JOB, f"root={tmp_path}"])
    result = execute.run(job)
    thread.join()
    assert (result["status"], "resumes there" in result["error"]) == ("interrupted", True)
    assert execute.run(job)["status"] == "done"
