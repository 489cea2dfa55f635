"""Synthetic conversations: faults are outlived, nothing is lost or asked twice, the file is whole or absent.

The endpoint is a stand-in on loopback; the client, the retries and the files are the real ones.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_endpoint import PASSING, StandIn

from nanolit.tasks.endpoint import ATTEMPTS, Endpoint
from nanolit.tasks.identity import Identity
from nanolit.tasks.identity_generation import Order, Partial, estimate, finish, generate
from nanolit.tasks.identity_prompts import LISTS, SCHEMA, Subject, prompt
from nanolit.tokenizer.conversation import check_conversation

KEY = "sk-not-to-be-shown"
ADA = Subject.of("Ada", None)


def order(count: int, **changes: Any) -> Order:
    return Order(**{"subject": ADA, "model": "writer-1", "seed": 1, "count": count, **changes})


def run(server: StandIn, out: Path, wanted: Order, *, workers: int = 4) -> Endpoint:
    """What the command does, without pauses."""
    endpoint = Endpoint(server.base_url, wanted.model, key=KEY, first_pause_seconds=0.01)

    async def converse() -> None:
        async with endpoint:
            partial = Partial(out.with_name(f"{out.name}.partial"), wanted, check=check_conversation)
            await generate(
                wanted, endpoint, partial, workers=workers, check=check_conversation, tell=lambda line: None
            )
            finish(wanted, partial, out)

    asyncio.run(converse())
    return endpoint


@pytest.mark.parametrize("fault", PASSING)
def test_every_passing_fault_is_outlived(fault: str, tmp_path: Path) -> None:
    faults = [fault] * 3
    with StandIn(faults=faults) as server:
        endpoint = run(server, tmp_path / "identity.jsonl", order(6))
    # the first of three equal conversations is a good one
    num_faults = 2 if fault == "same_again" else 3
    assert endpoint.num_retries == num_faults
    assert len(server.requests) == 6 + num_faults
    task = Identity(path=str(tmp_path / "identity.jsonl"))
    assert len(task) == 6
    assert len({json.dumps(conversation) for conversation in task}) == 6
    for conversation in task:
        check_conversation(conversation)
        assert all(one["content"] == one["content"].strip() for one in conversation["messages"])
    assert [path.name for path in tmp_path.iterdir()] == ["identity.jsonl"]


def test_many_faults_and_workers_leave_one_whole_file(tmp_path: Path) -> None:
    with StandIn(faults=PASSING * 2, seconds=0.005) as server:
        run(server, tmp_path / "identity.jsonl", order(60), workers=8)
        assert 1 < server.most_at_once <= 8
    rows = [json.loads(line) for line in (tmp_path / "identity.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"identity-1-{number}" for number in range(60)]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("400", "status 400: .*check model, and whether it supports JSON schemas"),
        ("401", "status 401: .*check the key"),
        ("404", "status 404: .*check base_url and model"),
        ("redirect", "status 307: .*give the address it redirects to"),
    ],
)
def test_what_no_repetition_mends_stops_at_once_and_never_shows_the_key(
    fault: str, complaint: str, tmp_path: Path
) -> None:
    """The stand-in repeats the key in what it says, as some endpoints do."""
    with StandIn(always=fault) as server, pytest.raises(ValueError, match=complaint) as caught:
        run(server, tmp_path / "identity.jsonl", order(50), workers=2)
    assert len(server.requests) <= 2
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "identity.jsonl").exists()


def test_a_key_is_hidden_also_where_what_was_said_is_cut(tmp_path: Path) -> None:
    """The stand-in says 291 letters before the key, and 300 are shown."""
    with (
        StandIn(always="401", padding=270) as server,
        pytest.raises(ValueError, match="status 401") as caught,
    ):
        run(server, tmp_path / "identity.jsonl", order(1))
    assert KEY[:6] not in str(caught.value)


def test_an_endpoint_that_stays_down_is_given_up_and_what_is_done_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "identity.jsonl"
    with StandIn(always="500") as server, pytest.raises(ValueError, match=r"gave up after 8 attempts.*500"):
        run(server, out, order(10), workers=1)
    assert len(server.requests) == ATTEMPTS
    with StandIn() as server:
        run(server, out, order(4))
    out.rename(tmp_path / "of_four.jsonl")
    partial = Partial(tmp_path / "identity.jsonl.partial", order(10), check=check_conversation)
    for number, line in enumerate((tmp_path / "of_four.jsonl").read_text().splitlines()):
        partial.add(number, json.loads(line)["messages"])
    with StandIn() as server:
        run(server, out, order(10))
        asked = [body["messages"][0]["content"] for body in server.requests]
    assert sorted(asked) == sorted(order(10).prompt(number) for number in range(4, 10))
    assert out.read_text().splitlines()[:4] == (tmp_path / "of_four.jsonl").read_text().splitlines()


def test_what_a_smaller_count_leaves_over_is_kept_for_a_larger_one(tmp_path: Path) -> None:
    out = tmp_path / "identity.jsonl"
    partial = Partial(tmp_path / "identity.jsonl.partial", order(6), check=check_conversation)
    for number in range(5):
        answer = {"role": "assistant", "content": f"I am Ada, answer {number}."}
        partial.add(number, [{"role": "user", "content": "Hi"}, answer])
    with StandIn() as server:
        run(server, out, order(2))
        assert server.requests == []
        assert len(out.read_text().splitlines()) == 2
        run(server, out, order(6))
        assert len(server.requests) == 1
    assert len(out.read_text().splitlines()) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["identity.jsonl"]


def test_the_same_order_writes_the_same_file(tmp_path: Path) -> None:
    """The stand-in answers by the prompt alone; the workers finish in any order."""
    files = [tmp_path / f"{workers}.jsonl" for workers in (1, 5)]
    for workers, out in zip((1, 5), files, strict=True):
        with StandIn() as server:
            run(server, out, order(12), workers=workers)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_request_carries_model_schema_and_key(tmp_path: Path) -> None:
    with StandIn() as server:
        endpoint = run(server, tmp_path / "identity.jsonl", order(1))
    (body,) = server.requests
    assert body["path"] == "/v1/chat/completions"
    assert body["authorization"] == f"Bearer {KEY}"
    assert body["model"] == "writer-1"
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (endpoint.prompt_tokens, endpoint.completion_tokens) == (700, 40)


def test_a_line_cut_by_a_kill_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl.partial"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am Ada."}]
    partial = Partial(path, order(3), check=check_conversation)
    partial.add(0, messages)
    partial.add(2, messages)
    whole = path.read_bytes()
    for cut in (1, 30):
        path.write_bytes(whole[:-cut])
        assert set(Partial(path, order(3), check=check_conversation).done) == {0}
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    path.write_bytes(whole[:10])
    assert Partial(path, order(3), check=check_conversation).done == {}


@pytest.mark.parametrize(
    "changes", [{"seed": 2}, {"model": "writer-2"}, {"subject": Subject.of("Bea", None)}], ids=str
)
def test_a_partial_file_of_other_settings_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl.partial"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am Ada."}]
    Partial(path, order(3), check=check_conversation).add(0, messages)
    assert set(Partial(path, order(99), check=check_conversation).done) == {0}
    with pytest.raises(ValueError, match="was started with other settings"):
        Partial(path, order(3, **changes), check=check_conversation)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"number": 1}',
        '{"number": 1, "messages": []}',
        '{"number": "1", "messages": []}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_partial_file_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl.partial"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am Ada."}]
    Partial(path, order(3), check=check_conversation).add(0, messages)
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"identity\.jsonl\.partial line 3 is damaged"):
        Partial(path, order(3), check=check_conversation)


def test_prompts_depend_on_subject_seed_number_and_attempt_alone() -> None:
    prompts = [prompt(ADA, 1, number=number) for number in range(300)]
    assert prompts == [prompt(ADA, 1, number=number) for number in range(300)]
    assert len(set(prompts)) == 300
    assert prompt(ADA, 2, number=0) not in prompts
    assert prompt(ADA, 1, number=0, attempt=1) not in prompts
    together = "\n".join(prompts)
    for name in ("users", "subjects", "openings"):
        assert len(LISTS[name]) == len(set(LISTS[name])) >= 20
        assert all(one in together for one in LISTS[name])


def test_facts_are_in_the_request_to_the_letter() -> None:
    facts = "Ada has {braces} and 7 layers.\nIt lives in Delft."
    assert f"<facts>\n{facts}\n</facts>" in prompt(Subject.of("Ada", facts), 1, number=0)
    assert "Ada is a small language model" in prompt(ADA, 1, number=0)


def test_the_estimate_is_of_what_is_left() -> None:
    """Oracle: the prompts' characters, four to a token, and 300 tokens an answer."""
    whole = estimate(order(100), set(), prices=(0.25, 2.0))
    characters = sum(len(order(100).prompt(number)) for number in range(100))
    assert whole.prompt_tokens == characters // 4
    assert whole.dollars == pytest.approx((characters // 4 * 0.25 + 100 * 300 * 2.0) / 1e6)
    rest = estimate(order(100), set(range(99)), prices=None)
    assert (rest.num_requests, rest.completion_tokens, rest.dollars) == (1, 300, None)


@pytest.mark.parametrize(
    ("base_url", "key", "complaint"),
    [
        ("openrouter.ai/api/v1", None, "must be like https://"),
        ("ftp://host/v1", None, "must be like https://"),
        ("https://", None, "must be like https://"),
        ("http://[/v1", None, "must be like https://"),
        ("http://example.com/v1", KEY, "would send the key unencrypted"),
        ("https://example.com/v1", "two words", "the key contains a space"),
        ("https://example.com/v1", "line\nbreak", "the key contains a space"),
    ],
)
def test_an_address_or_key_that_cannot_work_is_refused_first(
    base_url: str, key: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        Endpoint(base_url, "writer-1", key=key)
    assert key is None or key not in str(caught.value)
