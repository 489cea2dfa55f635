"""Several engines behind one queue: right replies, shared fairly, and none lost."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from nanolit.chat import service as service_module
from nanolit.chat.service import Failed, Service
from nanolit.inference import engine as engine_module
from nanolit.inference.engine import Engine, engines_on
from nanolit.inference.launch import Launcher
from nanolit.inference.request import Handle, Request, Token
from nanolit.machine.device import pick_devices
from tests.conftest import MODERN, build_tiny_model

Steps = Generator[list[Token | None]]
LONG = 4000  # tokens, which take seconds


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("NANOLIT_DEVICE", "cpu")


@pytest.fixture
def engines(byte_tokenizer) -> list[Engine]:
    return engines_on(2, build_tiny_model(MODERN), byte_tokenizer)


@pytest.fixture
def rambling(rambling_model, byte_tokenizer, monkeypatch) -> list[Engine]:
    """Two engines with a slot each, whose replies are as long as they may be."""
    monkeypatch.setattr(engine_module, "MAX_ROWS", 1)
    return engines_on(2, rambling_model, byte_tokenizer)


@pytest.fixture
def serve() -> Iterator:
    """Services that end with the test."""
    services: list[Service] = []

    def start(engines: list[Engine], **settings) -> Service:
        services.append(Service(engines, **settings))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def taken(request, monkeypatch) -> list[list[int]]:
    """The last tokens of the prompts that each engine was given, so far."""
    engines = request.getfixturevalue("rambling" if "rambling" in request.fixturenames else "engines")
    taken: list[list[int]] = [[], []]

    for engine, prompts in zip(engines, taken, strict=True):

        def submit(asked: Request, submit=engine.submit, prompts=prompts) -> Handle:
            prompts.append(asked.prompt_ids[-1])
            return submit(asked)

        monkeypatch.setattr(engine, "submit", submit)
    return taken


def ids_of(steps: Steps) -> list[int]:
    return [token.id for (token,) in steps if token]


def begun(steps: Steps) -> Steps:
    """A reply whose first token has come."""
    next(steps)
    return steps


def random_requests(count: int) -> list[dict]:
    rng = random.Random(3)
    return [
        {
            "prompt_ids": [256, *(rng.randrange(256) for _ in range(rng.randrange(40)))],
            "max_tokens": rng.randrange(1, 40),
            "temperature": rng.choice([0, 1.0]),
            "seed": seed,
        }
        for seed in range(count)
    ]


def test_two_engines_give_the_tokens_of_one_and_share_the_work(engines, taken, serve, byte_tokenizer):
    """Oracle: one engine, in float32, that is given all requests together."""
    requests = random_requests(60)
    alone = Engine(engines[0].model, byte_tokenizer).complete_all([Request(**one) for one in requests])
    service = serve(engines, places=30)
    with ThreadPoolExecutor(60) as pool:
        replies = list(pool.map(lambda one: ids_of(service.generate(**one)), requests))
    assert replies == [completion.ids for (completion,) in alone]
    assert sum(map(len, taken)) == 60
    assert min(map(len, taken)) >= 20


def test_who_waits_is_served_by_the_first_engine_that_has_room(rambling, taken, serve):
    """Each has one slot: while one is held for long, all others are answered by the other engine."""
    service = serve(rambling)
    long = begun(service.generate([256, 0], max_tokens=LONG))
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ids_of, service.generate([256, id], max_tokens=5)) for id in range(1, 7)]
        assert [reply.result(timeout=20) for reply in asked] == [[ord("a")] * 5] * 6
    assert taken[0] == [0]
    assert sorted(taken[1]) == [1, 2, 3, 4, 5, 6]
    long.close()


def test_who_leaves_the_queue_or_a_slot_makes_room(rambling, taken, serve):
    service = serve(rambling)
    running = [begun(service.generate([256, id], max_tokens=LONG)) for id in (0, 1)]
    with ThreadPoolExecutor(1) as pool:
        waiting = service.generate([256, 2], max_tokens=5)
        reply = pool.submit(ids_of, waiting)
        while service.num_open < 3:
            time.sleep(0.01)
        assert taken == [[0], [1]], "the third waits in the queue, not at an engine"
        running[1].close()
        assert reply.result(timeout=20) == [ord("a")] * 5
    assert taken == [[0], [1, 2]]
    assert service.stats()["cancelled"] == 1
    running[0].close()


def test_a_conversation_goes_back_to_the_engine_that_keeps_it(engines, taken, serve):
    service = serve(engines)
    steps = [begun(service.generate([256, id], max_tokens=30, keep=True, temperature=0)) for id in (65, 66)]
    for reply in steps:
        ids_of(reply)
    assert [len(engine.kept) for engine in engines] == [1, 1]
    for engine, id in zip(reversed(engines), (7, 8), strict=True):
        (text,) = engine.kept
        ids_of(service.generate([*text, id], max_tokens=2))
    assert taken == [[65, 8], [66, 7]]


def test_a_conversation_whose_engine_is_full_goes_on_the_same_at_another(rambling, taken, serve):
    service = serve(rambling)
    first = begun(service.generate([256, 0], max_tokens=LONG))
    ids_of(service.generate([256, 1], max_tokens=20, keep=True))
    first.close()
    (text,) = rambling[1].kept
    busy = begun(service.generate([*text, 2], max_tokens=LONG))
    assert ids_of(service.generate([*text, 3], max_tokens=5)) == [ord("a")] * 5
    assert taken == [[0, 3], [1, 2]]
    busy.close()


def test_an_engine_that_fails_takes_its_own_requests_with_it_and_rests(
    rambling_model, byte_tokenizer, serve, monkeypatch
):
    """A token beyond the vocabulary, which no tokenizer gives, fails its engine's step."""
    engines = engines_on(2, rambling_model, byte_tokenizer)
    service = serve(engines)
    beside, elsewhere = (begun(service.generate([256, id], max_tokens=LONG)) for id in (0, 1))
    assert [len(engine.rows) for engine in engines] == [1, 1]
    for reply in (service.generate([256, 10**6], max_tokens=5), beside):
        with pytest.raises(Failed, match="index out of range"):
            ids_of(reply)
    for id in range(2, 5):  # the failed one has less to do
        assert ids_of(service.generate([256, id], max_tokens=5)) == [ord("a")] * 5
    assert engines[0].decoder is None
    assert next(elsewhere)[0] == Token(ord("a"), sampled=True)
    service._workers[0].rests_until = 0.0
    assert ids_of(service.generate([256, 5], max_tokens=5)) == [ord("a")] * 5
    assert engines[0].decoder is not None
    elsewhere.close()


def test_a_single_engine_that_failed_serves_the_next_request(rambling_model, byte_tokenizer, serve):
    service = serve([Engine(rambling_model, byte_tokenizer)])
    with pytest.raises(Failed, match="index out of range"):
        ids_of(service.generate([256, 10**6], max_tokens=5))
    assert ids_of(service.generate([256, 1], max_tokens=5)) == [ord("a")] * 5


def test_hundreds_of_requests_leave_nothing_behind_and_none_is_lost(engines, serve):
    """From 40 threads; a fifth of them leave after some tokens, at once or in the queue."""
    threads, rng = threading.active_count(), random.Random(5)
    service = serve(engines)
    patience = [rng.choice([0, 1, 5]) if rng.random() < 0.2 else None for _ in range(400)]

    def ask(request: dict, most: int | None) -> bool:
        """Tell whether the reply came to its end, where somebody waited for it."""
        steps = service.generate(**request, keep=request["seed"] % 2 == 0)
        ids = [token.id for (token,) in itertools.islice(steps, most) if token]
        steps.close()
        return most is not None or len(ids) == request["max_tokens"] or ids[-1] in service.end_ids

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(ask, random_requests(400), patience))
    while service.num_open:
        time.sleep(0.01)
    for engine in engines:
        assert (engine.rows, list(engine.waiting), list(engine.launched)) == ([], [], [])
        kept = sum(tensor.nbytes for slot in engine.kept.values() for tensor in slot)
        assert 0 < kept <= engine_module.KEPT_SHARE * engine.budget
    service.close()
    assert threading.active_count() == threads
    for engine in engines:
        assert (engine.decoder, engine.launcher, len(engine.kept)) == (None, None, 0)


def test_a_service_that_ends_tells_all_who_wait(rambling, serve):
    service = serve(rambling)
    running = [begun(service.generate([256, id], max_tokens=LONG)) for id in (0, 1)]
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ids_of, service.generate([256, 2], max_tokens=5))
        while service.num_open < 3:
            time.sleep(0.01)
        service.close()
        for ended in (reply.result, lambda: ids_of(running[0]), lambda: ids_of(running[1])):
            with pytest.raises(service_module.Failed, match=service_module.ENDED):
                ended()
    with pytest.raises(service_module.Failed, match=service_module.ENDED):
        ids_of(service.generate([256, 2], max_tokens=5))


def test_a_reader_that_is_cancelled_as_a_token_comes_has_left(rambling, serve, monkeypatch):
    """In that moment asyncio.wait_for of Python 3.11 gives the token, and the cancellation is lost."""
    service, put = serve(rambling), asyncio.Queue.put_nowait

    async def leave_with_a_token() -> None:
        async def read() -> None:
            async for _ in service.stream(Request(prompt_ids=[256, 1], max_tokens=20), patience=60):
                pass

        def put_and_cancel(queue: asyncio.Queue, item: object) -> None:
            put(queue, item)
            reader.cancel()

        reader = asyncio.ensure_future(read())
        monkeypatch.setattr(asyncio.Queue, "put_nowait", put_and_cancel)
        await asyncio.wait({reader})
        assert reader.cancelled()
        assert service.num_open == 0

    asyncio.run(leave_with_a_token())


def test_replies_end_at_their_time_limit(rambling, serve):
    service = serve(rambling, reply_seconds=0.5)
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(ids_of, [service.generate([256, id], max_tokens=16_000) for id in range(3)]))
    assert max(map(len, replies)) < 16_000
    assert service.stats()["cancelled"] == 3


def rehearsed(service: Service) -> None:
    while service.stats()["rehearsals_left"]:
        time.sleep(0.01)


def test_rehearsals_make_room_for_all_and_change_no_reply(engines, serve, monkeypatch):
    """The first reply is asked for while they last; one that fails ends them.

    Prompts of other lengths are read one by one, as graphs read them.
    """
    asked = {"prompt_ids": [256, 65], "max_tokens": 20, "seed": 3}
    alone = ids_of(serve(engines[:1]).generate(**asked))
    monkeypatch.setattr(service_module, "_rehearsals", lambda _engine, places: [2, 1, places])
    read, lengths = Launcher.read, list[list[int]]()

    def noting(launcher: Launcher, prompts: list[list[int]], **where: int) -> object:
        lengths.append([*map(len, prompts)])
        return read(launcher, prompts, **where)

    monkeypatch.setattr(Launcher, "read", noting)
    service = serve(engines[1:], places=5, rehearses=True)
    assert ids_of(service.generate(**asked)) == alone
    rehearsed(service)
    launcher = engines[1].launcher
    assert (launcher.slots.rows, launcher.slots.capacity) == (8, 128)
    assert [60] in lengths
    assert ids_of(service.generate(**asked)) == alone
    assert engines[1].launcher is launcher
    assert (engines[1].rows, [*engines[1].waiting], [*engines[1].launched]) == ([], [], [])

    monkeypatch.setattr(Engine, "step", lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))
    broken = serve(engines[:1], rehearses=True)
    rehearsed(broken)
    monkeypatch.undo()
    assert ids_of(broken.generate(**asked)) == alone


def test_who_asks_or_closes_waits_for_one_step_of_a_rehearsal_at_most(engines, serve, monkeypatch):
    """And an engine that has rehearsed answers in place of one that still does."""
    step, release, begun_steps = Engine.step, threading.Event(), []

    def slow(engine: Engine) -> bool:
        if engine is engines[0] and not release.is_set():
            begun_steps.append(engine)
            release.wait(60)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
    monkeypatch.setattr(
        service_module, "_rehearsals", lambda engine, _places: [1] * 9 if engine is engines[0] else []
    )
    service = serve(engines, rehearses=True)
    while not begun_steps:
        time.sleep(0.01)
    assert len(ids_of(service.generate([256, 65], max_tokens=5))) == 5
    threading.Timer(0.2, release.set).start()
    began = time.monotonic()
    service.close()
    assert time.monotonic() - began < 20
    assert service.stats()["rehearsals_left"] == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_after_the_rehearsals_a_gpu_captures_nothing_more(byte_tokenizer, serve, monkeypatch):
    monkeypatch.delenv("NANOLIT_DEVICE")
    model = build_tiny_model(MODERN).to("cuda")
    model.prepare()
    (engine,) = engines_on(1, model, byte_tokenizer)
    service = serve([engine], places=8, rehearses=True)
    rehearsed(service)
    launcher, graphs = engine.launcher, {*engine.launcher.graphs}
    assert {rows for rows, *_ in graphs} == {1, 2, 4, 8}
    with ThreadPoolExecutor(8) as pool:
        replies = [service.generate([256, id], max_tokens=20) for id in range(8)]
        assert all(pool.map(ids_of, replies))
    assert engine.launcher is launcher
    assert {*launcher.graphs} == graphs


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_same_reply(byte_tokenizer, serve, monkeypatch):
    monkeypatch.delenv("NANOLIT_DEVICE")
    model = build_tiny_model(MODERN).to("cuda:0")
    model.prepare()
    engines = engines_on(2, model, byte_tokenizer)
    assert [engine.model.device.index for engine in engines] == [0, 1]
    service = serve(engines)
    replies = [begun(service.generate([256, 65], max_tokens=30, temperature=0)) for _ in range(2)]
    assert [engine.decoder is not None for engine in engines] == [True, True]
    assert ids_of(replies[0]) == ids_of(replies[1])


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    assert [device.type for device in pick_devices(3)] == ["cpu"] * 3
    monkeypatch.setenv("NANOLIT_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device.index for device in pick_devices(2)] == [0, 1]
    with pytest.raises(ValueError, match="devices=3, but this machine has 2 GPUs; give devices=2 or fewer"):
        pick_devices(3)


def test_two_devices_of_a_machine_without_gpus_are_refused(monkeypatch):
    """Two engines on one CPU would each have half of it."""
    monkeypatch.delenv("NANOLIT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert len(pick_devices(1)) == 1
    with pytest.raises(ValueError, match="devices=2, but this machine has no GPUs; leave devices= out"):
        pick_devices(2)


def test_news_for_many_readers_wakes_their_event_loop_once():
    async def main():
        post, woken = service_module.Post(), []
        loop = SimpleNamespace(call_soon_threadsafe=woken.append)
        readers = [asyncio.Queue() for _ in range(40)]
        for reader in readers:
            post.send(loop, reader, None)
        assert len(woken) == 1
        woken.pop()()
        assert [reader.get_nowait() for reader in readers] == [None] * 40
        post.send(loop, readers[0], None)
        assert len(woken) == 1

    asyncio.run(main())
