"""Who may ask: passwords, cookies, hosts, origins, sizes; over a real socket."""

import asyncio
import functools
import socket
import time

import httpx
import pytest
from starlette.testclient import TestClient

from nanolit.chat import server
from nanolit.chat.__main__ import main
from nanolit.chat.guard import COOKIE, MAX_BODY_BYTES, Guard
from nanolit.chat.server import build_app
from tests.chat.serving import models_of, served

ASKED = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def models(taught_model, byte_tokenizer):
    return {"tokenizer": byte_tokenizer, "named": {"taught/sft": taught_model}}


@pytest.fixture(scope="module")
def open_server(models):
    with served(models_of(**models), hosts=("chat.example.org", "*.example.net")) as address:
        yield address


@pytest.fixture
def locked_server(models):
    with served(models_of(**models), password="elm-otter-42") as address:
        yield address


def test_without_the_password_nothing_but_health_and_the_form_answers(locked_server):
    with httpx.Client(base_url=locked_server) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for path in ("/v1/models", "/stats", "/config"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert "Bearer" in refused.json()["error"]["message"]
        page = client.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert 'type="password"' in client.get("/login").text


def test_the_key_opens_the_api(locked_server):
    headers = {"authorization": "Bearer elm-otter-42"}
    assert httpx.get(f"{locked_server}/v1/models", headers=headers).status_code == 200
    reply = httpx.post(locked_server + CHAT, json=ASKED, headers=headers, timeout=60)
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_a_login_outlives_the_server_and_ends_with_its_password(locked_server, models):
    with httpx.Client(base_url=locked_server) as client:
        entered = client.post("/login", data={"password": "elm-otter-42"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert client.get("/v1/models").status_code == 200
        ticket = client.cookies[COOKIE]
    assert "elm" not in ticket
    for password, status in (("elm-otter-42", 200), ("another", 401)):
        with served(models_of(**models), password=password) as address:
            cookies = {COOKIE: ticket}
            assert httpx.get(f"{address}/v1/models", cookies=cookies).status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1/health?", "127.0.0.1/login?", "x@127.0.0.1/health#"])
def test_no_host_header_opens_what_the_password_closes(locked_server, host):
    """Starlette's request.url is made of this header: its path may be another than the app's."""
    for path in ("/v1/models", "/stats"):
        assert httpx.get(locked_server + path, headers={"host": host}).status_code in (401, 403)
    assert httpx.post(locked_server + CHAT, json=ASKED, headers={"host": host}).status_code in (401, 403)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "["),
        ("origin", "http://["),
        ("content-length", "\xb2"),
        ("content-length", "9" * 5000),
        ("cookie", f"{COOKIE}={'9' * 5000}.x"),
        ("authorization", "Bearer \xff"),
    ],
)
def test_no_header_is_more_than_refused(models, name, value):
    """As an ASGI server passes it on; the app's exceptions come through."""
    client = TestClient(build_app(models_of(**models), password="elm-otter-42", page=False))
    headers = {"host": "127.0.0.1", "content-type": "application/json", name: value.encode("latin-1")}
    for path in ("/v1/models", "/login"):
        assert 200 <= client.request("POST", path, headers=headers, content=b"{}").status_code < 500


@pytest.mark.parametrize("path", [CHAT, "/login"])
def test_who_leaves_in_the_middle_of_a_body_is_no_error(models, path):
    """The app's exceptions come through; a server would print them."""
    app = build_app(models_of(**models), password="elm-otter-42", page=False)
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    headers = {
        "host": "localhost",
        "content-type": "application/json",
        "authorization": "Bearer elm-otter-42",
    }
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "scheme": "http"}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def receive():
        return next(messages)

    async def send(_):
        pass

    asyncio.run(app(scope, receive, send))
    assert next(messages, None) is None


def test_a_ticket_that_expired_or_was_changed_does_not_open(locked_server):
    guard = Guard(None, password="elm-otter-42")  # pyright: ignore[reportArgumentType]
    old, good = guard._ticket(int(time.time()) - 1), guard._ticket()
    later = f"{int(good.partition('.')[0]) + 9}.{good.partition('.')[2]}"
    for ticket, status in ((good, 200), (old, 401), (later, 401), ("", 401), ("1e9.x", 401), ("²", 401)):
        headers = {"cookie": f"{COOKIE}={ticket}".encode()}
        assert httpx.get(f"{locked_server}/stats", headers=headers).status_code == status, ticket


def test_five_wrong_passwords_a_minute_and_then_none_is_looked_at(locked_server):
    with httpx.Client(base_url=locked_server) as client:
        tries = [client.post("/login", data={"password": f"try {n}"}).status_code for n in range(5)]
        assert tries == [401] * 5
        for answer in (
            client.post("/login", data={"password": "elm-otter-42"}),
            client.get("/stats", headers={"authorization": "Bearer elm-otter-42"}),
        ):
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 61


@pytest.mark.parametrize(("trusted", "last"), [(None, 429), ("127.0.0.1", 401)])
def test_only_a_named_proxy_says_who_the_client_is(models, monkeypatch, trusted, last):
    """A guesser would say another address each time."""
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with served(models_of(**models), password="elm-otter-42") as address:
        for number in range(6):
            headers = {"authorization": "Bearer guess", "x-forwarded-for": f"10.0.0.{number}"}
            status = httpx.get(f"{address}/stats", headers=headers).status_code
            assert status == (last if number == 5 else 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("10.1.2.3:7860", 200),
        (socket.gethostname(), 200),
        (f"{socket.gethostname().removesuffix('.local')}.local:7860", 200),
        ("chat.example.org", 200),
        ("a.example.net", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("example.net.evil.example", 403),
        ("[::1", 403),
        ("127.0.0.1#", 403),
        ("", 403),
        ("127.0.0.1/health?", 403),
        ("user@127.0.0.1", 403),
    ],
)
def test_a_name_that_is_not_ours_is_not_answered(open_server, host, status):
    """A stranger's page could have its own name point here."""
    assert httpx.get(f"{open_server}/health", headers={"host": host}).status_code == status


def test_the_command_names_the_domains_of_a_proxy(root, monkeypatch):
    """A proxy passes on the Host that the browser asked for, of which the page's own Origin is."""
    apps = []

    def keep(app, models, listening, **_):
        apps.append(app)
        listening.close()
        models.close()

    monkeypatch.setattr(server, "serve", keep)
    monkeypatch.setattr(server, "build_app", functools.partial(build_app, page=False))
    assert main(["taught", "web=true", f"root={root}", "domains=chat.example.org,GPU_box"]) in (0, None)
    client = TestClient(apps[0], base_url="http://chat.example.org")
    assert client.get("/health").status_code == 200
    origin = {"origin": "http://chat.example.org", "content-type": "text/plain"}
    assert client.post(CHAT, content=b"{}", headers=origin).status_code == 415, "it is looked at"
    assert TestClient(apps[0], base_url="http://evil.example").get("/health").status_code == 403


def test_other_sites_cannot_post(open_server):
    with httpx.Client(base_url=open_server) as client:
        for origin in ("http://evil.example", "null"):
            assert client.post(CHAT, json=ASKED, headers={"origin": origin}).status_code == 403
        assert client.post(CHAT, json=ASKED, headers={"origin": open_server}, timeout=60).status_code == 200
        plain = {"content-type": "text/plain"}
        assert client.post(CHAT, content=b"{}", headers=plain).status_code == 415
        shouted = {"content-type": "Application/JSON; charset=utf-8"}
        assert client.post(CHAT, content=b"{}", headers=shouted).status_code == 400, "it is read"
        allowed = client.options(CHAT, headers={"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in allowed.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": f"{COOKIE}={'9' * 5_000}.x"},
        {"cookie": f"{COOKIE}=²²²²²²²²²²².x".encode()},
        {"origin": "http://["},
        {"origin": "://"},
        {"host": "127.0.0.1/health?x="},
        {"authorization": "Bearer"},
        {"authorization": b"Bearer \xff\xfe\x80"},
    ],
)
def test_headers_that_make_no_sense_are_refused_and_break_nothing(locked_server, headers):
    """A Host with a path in it was once taken for the path, /health, which needs no password."""
    answer = httpx.post(locked_server + CHAT, json=ASKED, headers=headers)
    assert answer.status_code in (401, 403)
    assert answer.json()["error"]["message"]


def test_a_password_may_have_any_letters(models):
    with served(models_of(**models), password="ülme-otter 😀") as address:
        headers = {"authorization": "Bearer ülme-otter 😀".encode()}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
        login = httpx.post(f"{address}/login", data={"password": "ülme-otter 😀"})
        assert login.status_code == 303


def test_what_is_too_large_is_not_read(open_server):
    def endless():
        for _ in range(MAX_BODY_BYTES // 1024 + 8):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=open_server, headers=headers) as client:
        assert client.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1)).status_code == 413
        assert client.post(CHAT, content=endless()).status_code == 413
        assert client.post(CHAT, content=b"{not json").json()["error"]["type"] == "invalid_request_error"
