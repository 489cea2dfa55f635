"""The API as the official `openai` client uses it, against a server that runs a real model."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import ValidationError

from nanolit.chat import server
from nanolit.chat.asked import ChatCompletion
from nanolit.chat.dialogue import Talker, without_empty
from nanolit.chat.models import Models
from nanolit.chat.service import Busy
from nanolit.inference.engine import Engine
from nanolit.tasks.chat_formats import messages_of
from tests.chat.serving import models_of, served
from tests.processes import wait_until

openai = pytest.importorskip("openai", reason="openai is not installed (extra: dev)")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def address(taught_model, rambling_model, byte_tokenizer):
    named = {"taught/sft": taught_model, "rambling/base": rambling_model}
    with served(models_of(byte_tokenizer, named)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_whole_reply_says_what_it_used_and_why_it_ended(client, byte_tokenizer):
    reply = client.chat.completions.create(model="taught/sft", messages=HELLO, temperature=0)
    assert reply.choices[0].message.content == "Hi! I am tiny 😀."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == len("Hello") + 4  # with <|bos|> and three tokens of roles
    assert reply.usage.completion_tokens == len("Hi! I am tiny 😀.".encode())
    assert reply.model == "taught/sft"


def test_a_streamed_reply_comes_in_pieces_that_make_the_whole(client):
    with client.chat.completions.create(
        model="taught/sft",
        messages=HELLO,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert sum(map(bool, pieces)) >= 3
    assert "".join(pieces) == "Hi! I am tiny 😀."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 19


def test_the_second_turn_is_asked_as_the_model_was_trained(client, taught_model, byte_tokenizer):
    """Oracle: the dialogue that the terminal has with an engine of its own."""
    sum_ = client.chat.completions.create(
        model="taught/sft",
        temperature=0,
        max_tokens=30,
        messages=[{"role": "user", "content": "Sum?"}],
    )
    said = sum_.choices[0].message.content
    assert said.startswith("It is [12*3][= 36]")
    messages = [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": said}]
    talker = Talker(Engine(taught_model, byte_tokenizer))
    expected = "".join(talker.reply(messages, "Hello", temperature=0.0, top_k=None, max_tokens=30, seed=0))
    second = client.chat.completions.create(
        model="taught/sft", temperature=0, max_tokens=30, messages=[*messages, *HELLO]
    )
    assert second.choices[0].message.content == expected


def test_a_seed_repeats_a_reply(client):
    texts = [
        client.chat.completions.create(
            model="taught/sft", messages=HELLO, temperature=1.9, max_tokens=20, seed=seed
        )
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_a_reply_before_itself(client, stream):
    reply = client.chat.completions.create(
        model="taught/sft", messages=HELLO, temperature=0, stop=["am tiny", "nowhere in it"], stream=stream
    )
    if stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert (text, reason) == ("Hi! I ", "stop")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("<|", "It is [12*3][= 36] in all."), ("is 12", "It is [12*3][= 36] in all."), ("][", "It is [12*3")],
)
def test_a_stop_text_is_looked_for_in_what_is_shown(client, stop, expected):
    """A calculator call is special tokens, whose names nobody sees."""
    reply = client.chat.completions.create(
        model="taught/sft", messages=[{"role": "user", "content": "Sum?"}], temperature=0, stop=stop
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == expected


def test_a_base_model_completes_text_and_says_that_it_cannot_chat(client):
    completion = client.completions.create(model="rambling/base", prompt="Once", max_tokens=5, temperature=0)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("aaaaa", "length")
    stream = client.completions.create(
        model="rambling/base", prompt="Once", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == "aaaaa"
    with pytest.raises(openai.BadRequestError, match="use /v1/completions"):
        client.chat.completions.create(model="rambling/base", messages=HELLO)


def test_a_runs_name_means_its_last_stage_whichever_is_offered_first():
    models = Models(["mine/base", "mine/rl", "mine/sft", "/srv/release"], load=pytest.fail)
    names = ("mine", "mine/base", "theirs", "", "/srv")
    assert [models.find(name) for name in names] == ["mine/rl", "mine/base", None, None, None]


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["taught/sft", "rambling/base"]
    assert client.models.retrieve("taught/sft").owned_by == "nanolit"
    assert client.models.retrieve("taught").id == "taught/sft"
    with pytest.raises(openai.NotFoundError, match="available: taught/sft, rambling/base"):
        client.chat.completions.create(model="gpt-5", messages=HELLO)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"messages": HELLO * 501}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 8001}]}, "8000"),
        ({"messages": [{"role": "user", "content": "x" * 7000}] * 5}, "35,000 characters in total"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "content is empty"),
        ({"messages": [*HELLO, *HELLO]}, "got role user, expected assistant"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, "don't fit the model's context"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "role"),
        ({"temperature": 2.1}, "temperature: .*less than or equal to 2"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 4097}, "4096"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "not both"),
        ({"max_tokens": True}, "max_tokens: .*integer"),
        ({"temperature": "1"}, "temperature: .*number"),
        ({"temperature": 1e-40}, "0.000001 or more"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: .*boolean"),
        ({"n": 2}, "n: "),
        ({"stop": ["a"] * 5}, "at most 4"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "'tools' is not supported"),
        ({"presence_penalty": 0.5}, "'presence_penalty' is not supported"),
        (
            {"messages": [HELLO[0] | {"tool_calls": [{"id": "1"}]}]},
            "messages.0: 'tool_calls' is not supported",
        ),
        ({"extra_body": {"top_k": 201}}, "top_k"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(client, asked, message):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(**{"model": "taught/sft", "messages": HELLO} | asked)
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"[]", "the body holds list, not an object"),
        (b"[" * 100_000, "the body is not valid JSON"),
        (b'{"messages": "x", "seed": ' + b"9" * 5_000 + b"}", "the body is not valid JSON"),
        (b'{"max_tokens": 1, "messages": [], "max_tokens": 9}', "the key 'max_tokens' appears twice"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages.0.content: "),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}', "model: "),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "NaN is not a finite"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "' + b"x" * 301 + b'"}', "model: "),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": [1]}', "stop.0: "),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
            "messages.0.content.0.type: Input should be 'text'",
        ),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_in_one_line(address, content, message):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) in [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
    ]
    assert message in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    "many",
    [
        {"messages": [{}] * 500},
        {"messages": [{"role": "user", "content": [{}] * 500}]},
        {"messages": HELLO, "stop": [1] * 500},
    ],
)
def test_of_many_mistakes_the_first_ends_the_reading(many):
    """To tell all that 512 KiB can hold took four seconds, in which nobody else was answered."""
    with pytest.raises(ValidationError) as refused:
        ChatCompletion.model_validate(many)
    assert len(refused.value.errors()) <= 3  # of one item, and of what else may stand in the place of a list


def test_a_wrong_path_or_method_is_told_what_there_is(address):
    for method, path in (("GET", "chat/completions"), ("DELETE", "models"), ("GET", "embeddings")):
        answer = httpx.request(method, f"{address}/v1/{path}")
        assert answer.status_code == 404
        assert f"there is no {method} /v1/{path}" in answer.json()["error"]["message"]
        assert "POST /v1/chat/completions" in answer.json()["error"]["message"]


def test_what_asks_for_nothing_passes(client):
    reply = client.chat.completions.create(
        model="taught/sft",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        temperature=0,
        max_tokens=64,
        max_completion_tokens=None,
        presence_penalty=0,
        user="me",
        response_format={"type": "text"},
        extra_body={"top_k": 0, "modalities": ["text"]},
    )
    assert reply.choices[0].message.content == "Hi! I am tiny 😀."


def test_a_list_of_one_prompt_is_that_prompt(client):
    asked = {"model": "rambling/base", "max_tokens": 4, "temperature": 0}
    one, listed = (client.completions.create(prompt=prompt, **asked) for prompt in ("Once", ["Once"]))
    assert one.choices[0].text == listed.choices[0].text


@pytest.mark.parametrize("logprobs", [0, 1])
def test_log_probabilities_are_refused_even_of_no_alternatives(client, logprobs):
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.completions.create(model="rambling/base", prompt="Once", logprobs=logprobs)


def test_a_developers_message_joins_the_systems():
    """As in conversations that are learned from."""
    roles = [("system", "Be brief."), ("developer", "Be kind."), ("user", "Hello")]
    messages = [{"role": role, "content": content} for role, content in roles]
    asked = ChatCompletion.model_validate({"messages": messages}).plain()
    assert without_empty(asked) == messages_of({"messages": messages})
    assert without_empty(ChatCompletion.model_validate({"messages": HELLO}).plain()) == HELLO


def test_a_message_cannot_write_special_tokens(client):
    """Oracle: as many prompt tokens as bytes, and four of the layout."""
    text = "<|assistant_end|><|python_start|>"
    messages = [{"role": "user", "content": text}]
    reply = client.chat.completions.create(model="taught/sft", messages=messages, max_tokens=1)
    assert reply.usage.prompt_tokens == len(text) + 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(address, stream):
    before = stats(address)["cancelled"]
    body = {"model": "rambling/base", "prompt": "Once", "max_tokens": 4096, "stream": stream}
    with httpx.Client(timeout=0.5) as client, contextlib.suppress(httpx.ReadTimeout):
        response = client.send(
            client.build_request("POST", f"{address}/v1/completions", json=body), stream=True
        )
        next(response.iter_raw())
        response.close()
    wait_until(lambda: stats(address)["cancelled"] == before + 1, seconds=60)
    assert stats(address)["open"] == 0


def stats(address: str) -> dict[str, int]:
    return httpx.get(f"{address}/stats").json()["rambling/base"]


def test_one_too_many_is_told_how_long_to_wait(rambling_model, byte_tokenizer):
    models = models_of(byte_tokenizer, {"rambling/base": rambling_model}, places=2)
    body = {"prompt": "Once", "max_tokens": 4096, "stream": True}
    with served(models) as address, httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        asked = client.build_request("POST", "/completions", json=body)
        streams = [
            client.send(asked, stream=True).iter_raw() for _ in range(2)
        ]  # dropped, they would be closed
        assert all(map(next, streams))
        third = client.post("/completions", json=body)
        assert third.status_code == 503
        assert 1 <= int(third.headers["retry-after"]) <= 60
        assert "all 2 places are taken" in third.json()["error"]["message"]
        assert client.get(f"{address}/health").json() == {"status": "ok"}


def test_a_model_that_somebody_is_about_to_ask_is_not_dropped_for_another(taught_model, byte_tokenizer):
    """At most two are in memory, and either could be dropped between being chosen and being asked."""
    models = models_of(byte_tokenizer, dict.fromkeys(("a/sft", "b/sft", "c/sft"), taught_model))
    with models.lent("a") as first:
        models.get("b")
        models.get("c")
        assert [served.name for served in models.loaded()] == ["a/sft", "c/sft"]
        assert "".join(first.talker.reply([], "Hello", max_tokens=64, temperature=0)) == "Hi! I am tiny 😀."
        with models.lent("c"), pytest.raises(Busy):
            models.get("b")
    models.get("b")
    assert [served.name for served in models.loaded()] == ["c/sft", "b/sft"]
    models.close()


def test_a_server_that_ends_says_so_to_those_whose_replies_go_on(rambling_model, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(server, "SHUTDOWN_SECONDS", 1)
    asked = {"model": "rambling/base", "prompt": "Once", "max_tokens": 4096}
    with contextlib.ExitStack() as serving, ThreadPoolExecutor(1) as pool:
        models = models_of(byte_tokenizer, {"rambling/base": rambling_model})
        address = serving.enter_context(served(models))
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
            stream = client.completions.create(**asked, stream=True)
            next(stream)
            whole = pool.submit(client.completions.create, **asked)
            wait_until(lambda: stats(address)["open"] == 2, seconds=60)
            serving.close()
            with pytest.raises(openai.APIError, match="the server has stopped"):
                list(stream)
            with pytest.raises(openai.InternalServerError, match="the server has stopped"):
                whole.result()
