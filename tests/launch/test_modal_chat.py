"""A chat on a fake Modal: the real client deploys, the real entrypoint serves, the control plane is ours."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from starlette.testclient import TestClient

from launch import serve
from nanolit.chat.models import Models
from nanolit.chat.service import PLACES
from nanolit.model.release import save_release
from tests.chat.test_web import answered_load, heard, page, say  # noqa: F401
from tests.conftest import TAUGHT
from tests.fake_modal.account import REPOSITORY, Account
from tests.processes import wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fake ends containers through /proc"),
]
PASSWORD = "elm-otter"
WAIT_SECONDS = 300  # a cold start on a machine that does much else
QUESTION, REPLY = TAUGHT[0]
SERVING = ("modal_a10g", "modal_h100")
CHAT = ("run=taught", "web=true", "cluster=modal_a10g")
EVERYTHING = ("auth=modal", "gpu_snapshot=true", "domains=chat.example.org", "keep_warm=1")


def test_a_chat_that_asks_for_a_password_does_not_start_without_it(monkeypatch):
    """A secret that was emptied by hand would leave it open to everybody."""
    asked = {"locked": True, "page": False, "hosts": [], "defaults": {}}
    monkeypatch.setenv("NANOLIT_SERVE", json.dumps(asked))
    monkeypatch.setenv("NANOLIT_CHAT_PASSWORD", "")
    chat = SimpleNamespace(models=Models(["taught"], {}.__getitem__))
    with pytest.raises(ValueError, match="the chat's secret holds no password"):
        serve.web(chat)
    monkeypatch.setenv("NANOLIT_CHAT_PASSWORD", PASSWORD)
    with TestClient(serve.web(chat), base_url="https://a.modal.run") as visitor:
        assert visitor.get("/v1/models").status_code == 401


@pytest.fixture(scope="module")
def account(tmp_path_factory, taught_model, byte_tokenizer):
    """An account without volumes or secrets, and a run that is on the laptop alone."""
    account = Account(tmp_path_factory.mktemp("chat"), secrets={})
    byte_tokenizer.save(account.root / "tokenizers" / "bytes")
    release(account, taught_model, byte_tokenizer, step=150)
    yield account
    account.close()


def release(account: Account, model, tokenizer, *, step: int) -> None:
    """Make it the newest release of the run `taught`."""
    save_release(
        account.root / "runs" / "taught" / "sft" / "release",
        model,
        tokenizer_folder=account.root / "tokenizers" / "bytes",
        tokenizer_hash=tokenizer.hash,
        meta={"run": "taught", "stage": "sft", "step": step},
    )


def requests_so_far(account: Account) -> str:
    path = account.state / "rpc.jsonl"
    return path.read_text() if path.exists() else ""


def uploads(account: Account) -> list[str]:
    """The releases of the chat `taught` that are on the volume."""
    volume = account.state / "volumes" / "nanolit"
    return [str(path.relative_to(volume)) for path in sorted(volume.glob("chats/taught/*/release"))]


def last_layer(account: Account) -> dict:
    """The newest request for an image: that of the layer with the code."""
    image = account.requests("ImageGetOrCreate")[-1]["image"]
    assert image["dockerfileCommands"][-1] == "COPY . /"
    return image


REFUSED = [
    (["run=taught", "web=true", "cluster=modal_8xh100"], "has 8 GPUs, but a chat uses one"),
    (["run=taught", "web=true", "cluster=local"], "give a Modal cluster with one GPU"),
    (["run=taught", "cluster=modal_a10g"], "add run=RUN web=true"),
    (["run=taught", "web=true", "keep_warm=1"], "add cluster=modal_a10g"),
    ([*CHAT, "name=Ada_1"], "1 to 32 of a-z, 0-9 and -"),
    ([*CHAT, f"name={'a' * 33}"], "1 to 32 of a-z, 0-9 and -"),
    ([*CHAT, "auth=modal", "public=true"], "give one of them"),
    ([*CHAT, "auth=tokens"], "auth=tokens must be one of password, modal"),
    ([*CHAT, "domains=https://chat.example.org"], "give only its name, such as chat.example.org"),
    ([*CHAT, "max_tokens=128"], "max_tokens (128) must be below the model's context (128)"),
    ([*CHAT, "port=7860"], "port is for a chat on this machine"),
    (["run=taught", "web=true", "gpu_snapshot=true"], "gpu_snapshot is for a deployed chat"),
]
SHOWN = [
    [*CHAT[:2], f"cluster={name}", *more, "dry_run=true"]
    for name in SERVING
    for more in ((), ("keep_warm=1", "public=true"), EVERYTHING)
]
SCRIPT = """
import contextlib, io, json, sys
from nanolit.chat.__main__ import main
outputs = []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words)
    outputs.append([code, out.getvalue()])
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def without_calls(account):
    """What the command says to wishes that need no call, in one process; the fake saw none."""
    before = requests_so_far(account)
    words = json.dumps([words for words, _ in REFUSED] + SHOWN)
    command = [sys.executable, "-c", SCRIPT, words]
    done = subprocess.run(command, env=account.environment(), capture_output=True, text=True, check=True)
    assert requests_so_far(account) == before
    return json.loads(done.stdout)


def test_what_cannot_be_deployed_is_one_line_and_no_call(without_calls):
    for (_, message), (code, output) in zip(REFUSED, without_calls, strict=False):
        assert code == 2
        assert message in output
        assert output.count("\n") == 1


def test_a_dry_run_of_every_serving_cluster_prints_dollars_and_makes_no_call(without_calls):
    for words, (code, output) in zip(SHOWN, without_calls[len(REFUSED) :], strict=True):
        assert code in (0, None), output
        assert len(output.splitlines()) <= 10
        assert max(map(len, output.splitlines())) <= 120
        assert "taught/sft, step 150" in output
        assert "fits" in output
        assert ("per hour while someone chats" in output) == ("keep_warm=1" not in words)
        for word in words[3:-1]:
            assert word.split("=")[-1 if word.startswith("domains") else 0] in output
        assert ("per month" in output) == ("keep_warm=1" in words)


@pytest.mark.slow
def test_a_run_that_is_nowhere_is_one_line_with_the_runs_that_are_there(account):
    code, output = account.run("nanolit.chat", "run=never", *CHAT[1:])
    assert code == 2, output
    assert "run never has no release here or on the volume nanolit; runs there: " in output


@pytest.fixture(scope="module")
def deployed(account):
    """The command twice: (the outputs, the record beside the runs)."""
    outputs = []
    for _ in range(2):
        code, output = account.run("nanolit.chat", *CHAT, "temperature=0", NANOLIT_CHAT_PASSWORD=PASSWORD)
        assert code == 0, output
        outputs.append(output)
    return outputs, json.loads((account.root / "chats" / "taught.json").read_text())


@pytest.fixture
def client(deployed):
    key = {"Authorization": f"Bearer {PASSWORD}"}
    with httpx.Client(base_url=deployed[1]["url"], headers=key, timeout=WAIT_SECONDS) as client:
        yield client


def body(**more):
    return {
        "model": "taught/sft",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        **more,
    }


@pytest.mark.slow
def test_the_same_command_again_is_the_same_app_at_the_same_address(account, deployed):
    (first, second), record = deployed
    assert record["url"] in first
    assert record["url"] in second
    assert PASSWORD not in first + second
    assert len(account.requests("AppCreate")) == 1
    assert uploads(account) == [record["place"]], "uploaded once"


@pytest.mark.slow
def test_the_requests_are_those_of_the_design(account, deployed):
    function = account.requests("FunctionCreate")[-1]["function"]
    assert function["resources"]["gpuConfig"] == {"gpuType": "A10", "count": 1}
    assert function["checkpointingEnabled"]
    assert function["maxConcurrentInputs"] == 100
    assert function["autoscalerSettings"]["maxContainers"] == 1
    assert function["autoscalerSettings"]["scaledownWindow"] == 120
    assert function["timeoutSecs"] == 900
    release, kernels = sorted(function["volumeMounts"], key=lambda mount: mount["mountPath"], reverse=True)
    assert release["readOnly"]
    assert release["subPath"] == deployed[1]["place"]
    assert kernels["mountPath"] == "/kernels"
    web = function["methodDefinitions"]["web"]["webhookConfig"]
    assert web["requestedSuffix"] == "nanolit-taught"


@pytest.mark.slow
def test_a_request_wakes_one_container_that_answers_page_and_api(account, client):
    assert client.get("/health").json() == {"status": "ok"}
    assert "gradio" in client.get("/").text.lower()
    assert not client.get("/config").json()["connect_heartbeat"]
    reply = client.post("/v1/chat/completions", json=body()).json()
    assert reply["choices"][0]["message"]["content"] == REPLY
    assert len(account.containers()) == 1


@pytest.mark.slow
def test_without_the_password_nothing_is_told(client, deployed):
    with httpx.Client(base_url=deployed[1]["url"], timeout=WAIT_SECONDS) as stranger:
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.post("/v1/chat/completions", json=body()).status_code == 401
        assert "password" in stranger.get("/", follow_redirects=True).text.lower()


@pytest.mark.slow
def test_a_reply_streams_through_the_web_of_modal(client):
    with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines]
    assert "".join(pieces) == REPLY
    assert len([piece for piece in pieces if piece]) >= 3


@pytest.mark.slow
def test_the_client_of_openai_speaks_to_it_streamed_and_whole(deployed):
    openai = pytest.importorskip("openai", reason="openai is not installed (extra: dev)")
    key = {"base_url": f"{deployed[1]['url']}/v1", "api_key": PASSWORD}
    with openai.OpenAI(**key, max_retries=0, timeout=WAIT_SECONDS) as client:
        whole = client.chat.completions.create(**body())
        pieces = client.chat.completions.create(**body(stream=True))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert whole.choices[0].message.content == text == REPLY


@pytest.mark.slow
def test_an_open_tab_lets_it_sleep_and_loses_nothing_when_it_wakes(account, client, deployed, page):  # noqa: F811
    """Both exchanges are on the page and in the prompt, though the container that answered first is gone.

    The oracle of the prompt is the API, asked for the same conversation, and for its last message alone.
    """
    page.goto(deployed[1]["url"])
    page.fill("input[type=password]", PASSWORD)
    with answered_load(page):
        page.keyboard.press("Enter")
    say(page, QUESTION)
    first = heard(page, 1)
    (account.state / "idle").write_text("3")
    wait_until(lambda: not account.containers(), seconds=60)
    (account.state / "idle").unlink()
    page.set_default_timeout(90_000)
    page.locator("#box textarea").fill("Sum?")
    page.locator("#box textarea").press("Enter")
    page.locator("#status", has_text="Sending").wait_for()
    both = heard(page, 2)
    assert both[:2] == first
    roles = ("user", "assistant", "user")
    asked = [{"role": role, "content": text} for role, text in zip(roles, both[:3], strict=True)]
    answers = [client.post("/v1/chat/completions", json=body(messages=m)).json() for m in (asked, asked[-1:])]
    together, alone = (answer["choices"][0]["message"]["content"].strip() for answer in answers)
    assert both[3] == together != alone
    assert page.left_loopback == []


@pytest.mark.slow
def test_thirty_at_once_have_one_container_and_the_same_answer(account, client):
    replies = []

    def ask():
        replies.append(client.post("/v1/chat/completions", json=body()))

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.json()["choices"][0]["message"]["content"] for reply in replies] == [REPLY] * 30
    assert len(account.containers()) == 1


@pytest.mark.slow
def test_it_sleeps_when_nobody_asks_and_a_login_outlives_the_sleep(account, client, deployed):
    with httpx.Client(base_url=deployed[1]["url"], timeout=WAIT_SECONDS, follow_redirects=True) as visitor:
        visitor.post("/login", data={"password": PASSWORD})
        assert visitor.get("/stats").status_code == 200
        (account.state / "idle").write_text("2")
        beat = visitor.get("/gradio_api/heartbeat/an-open-tab")
        assert beat.status_code == 204
        wait_until(lambda: not account.containers(), seconds=60)
        (account.state / "idle").unlink()
        begun = time.monotonic()
        assert visitor.get("/stats").status_code == 200, f"woken in {time.monotonic() - begun:.0f} s"
        assert len(account.containers(live=False)) >= 2


@pytest.fixture(scope="module")
def updated(account, deployed, rambling_model, byte_tokenizer, tmp_path_factory):
    """The command once more, with another model in the run and from a checkout with other code."""
    with httpx.Client(base_url=deployed[1]["url"], timeout=WAIT_SECONDS) as visitor:
        assert visitor.get("/health").json() == {"status": "ok"}, "a container of the old code is awake"
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("nanolit", "launch", "conf", "rustbpe"):
        unneeded = shutil.ignore_patterns("__pycache__", "target")
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=unneeded)
    for name in ("pyproject.toml", "uv.lock", "hatch_build.py"):
        shutil.copy(REPOSITORY / name, checkout)
    before = last_layer(account)
    server = checkout / "nanolit" / "chat" / "server.py"
    code = server.read_text()
    assert '{"status": "ok"}' in code
    server.write_text(code.replace('{"status": "ok"}', '{"status": "new"}'))
    release(account, rambling_model, byte_tokenizer, step=300)
    code, output = account.run("nanolit.chat", *CHAT, "temperature=0", checkout=checkout)
    assert code == 0, output
    assert last_layer(account)["baseImages"] == before["baseImages"], "an edit of the code is one build"
    return output


@pytest.mark.slow
def test_an_update_removes_the_release_that_was_served_before_and_no_other(account, deployed, updated):
    now = json.loads((account.root / "chats" / "taught.json").read_text())["place"]
    assert f"removed {deployed[1]['place'].removesuffix('/release')} from the volume" in updated
    assert uploads(account) == [now] != [deployed[1]["place"]]


@pytest.mark.slow
def test_an_update_serves_the_new_code_and_weights_at_the_same_address(account, deployed, updated, client):
    assert deployed[1]["url"] in updated
    assert "password: as before" in updated
    assert "step 300" in updated
    created = [one for one in account.requests("FunctionCreate") if one["function"]["appName"]]
    assert len({one["existingFunctionId"] for one in account.requests("FunctionCreate")}) == 1, created
    assert account.containers() == [], "recreate: nobody goes on with the old weights"
    assert client.get("/health").json() == {"status": "new"}
    reply = client.post("/v1/chat/completions", json=body(max_tokens=5)).json()
    assert reply["choices"][0]["message"]["content"] == "aaaaa"


def begin_long_reply(client: httpx.Client) -> Iterator[str]:
    """The lines of a stream after its first piece; dropped, they end it."""
    asked = body(stream=True, max_tokens=4096)
    request = client.build_request("POST", "/v1/chat/completions", json=asked)
    response = client.send(request, stream=True)
    assert response.status_code == 200
    lines = response.iter_lines()
    for line in lines:
        if '"content":"a' in line:
            return lines
    raise AssertionError("the stream ended before its first piece")


def stats(client: httpx.Client) -> dict[str, float]:
    return client.get("/stats").json()["taught/sft"]


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(client, updated):
    with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=WAIT_SECONDS) as other:
        lines = begin_long_reply(other)
        before = stats(client)
        assert before["open"] == 1, "the first piece comes before the last"
        del lines
    wait_until(lambda: stats(client)["open"] == 0, seconds=WAIT_SECONDS)
    assert stats(client)["cancelled"] == before["cancelled"] + 1


@pytest.mark.slow
def test_forty_stream_at_once_and_the_next_is_told_how_long_to_wait(client, updated):
    with contextlib.ExitStack() as stack:
        others = [
            httpx.Client(base_url=client.base_url, headers=client.headers, timeout=WAIT_SECONDS)
            for _ in range(PLACES)
        ]
        with ThreadPoolExecutor(
            PLACES
        ) as pool:  # one after another, the first would end before the last begins
            streams = [*pool.map(begin_long_reply, map(stack.enter_context, others))]
        assert len(streams) == stats(client)["open"] == PLACES
        refused = client.post("/v1/chat/completions", json=body())
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    wait_until(lambda: stats(client)["open"] == 0, seconds=WAIT_SECONDS)


@pytest.mark.slow
def test_with_tokens_of_modal_the_api_alone_is_served(account, deployed):
    """On a domain of one's own too; what the snapshot asks of Modal is in the request."""
    drawn = ("temperature=0.2", "top_k=5", "max_tokens=9", "seed=3")
    code, output = account.run("nanolit.chat", *CHAT, "name=api", *EVERYTHING, *drawn)
    assert code == 0, output
    assert "the headers Modal-Key and Modal-Secret" in output
    function = account.requests("FunctionCreate")[-1]["function"]
    assert function["experimentalOptions"] == {"enable_gpu_snapshot": "True"}
    assert function["autoscalerSettings"]["minContainers"] == 1
    web = function["methodDefinitions"]["web"]["webhookConfig"]
    assert web["requiresProxyAuth"]
    assert web["customDomains"] == [{"name": "chat.example.org"}]
    assert not [name for name in function["secretIds"] if "chat" in name], "no password"
    url = json.loads((account.root / "chats" / "api.json").read_text())["url"]
    tokens = {"Modal-Key": "wk-test", "Modal-Secret": "ws-test", "Host": "chat.example.org"}
    assert httpx.get(f"{url}/v1/models", timeout=WAIT_SECONDS).status_code == 401
    with httpx.Client(base_url=url, headers=tokens, timeout=WAIT_SECONDS) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["taught/sft"]
        assert client.get("/").status_code == 404
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    code, output = account.run("launch", "stop", "chat:api")
    assert code == 0, output
    again = output.partition("python -m nanolit.chat ")[2].removesuffix(" starts it again\n").split()
    assert sorted(again) == sorted(["run=taught/sft", *CHAT[1:], "name=api", *EVERYTHING, *drawn])


@pytest.mark.slow
def test_a_chat_is_listed_logged_and_stopped_by_its_name(account, client, deployed):
    assert client.get("/health").status_code == 200
    listed = account.run("launch", "status")[1]
    assert "chat:taught" in listed
    assert "awake" in listed
    assert "awake: taught/sft on" in account.run("launch", "logs", "chat:taught")[1]
    assert "per hour while it is awake" in account.run("launch", "cost", "chat:taught")[1]
    code, output = account.run("launch", "stop", "chat:taught")
    assert code == 0, output
    wait_until(lambda: not account.containers(), seconds=30)
    assert client.get("/health").status_code == 404
    assert "stopped" in account.run("launch", "status", "chat:taught")[1]
    code, output = account.run("launch", "stop", "chat:never")
    assert code == 2, output
    assert "chat:never was not deployed from" in output


@pytest.mark.slow
def test_a_drill_tells_what_it_found_and_what_failed(account):
    """The fake's volume, claims and stop are real here; there is no GPU, which is told and not hidden."""
    words = ["--megabytes", "3", "--gpu", "T4", "--only", "volume,claim,stop,cancel,gpu"]
    code, output = account.run("launch", "drill", *words, "--mount", str(account.volume))
    assert code == 1, output
    found = json.loads((account.root / "drill.json").read_text())["steps"]
    assert found["volume"]["flock_and_rename"] == "work"
    assert found["claim"]["claims"] == "one of two"
    assert 0.5 <= found["stop"]["grace_seconds"] <= 5
    assert found["cancel"]["waiting"] == "never began"
    assert found["cancel"]["running"] == "ended by InputCancellation"
    assert "PyTorch sees no GPU there" in found["gpu T4"]["error"]
    assert [name for name, step in found.items() if "error" in step] == ["gpu T4"]
