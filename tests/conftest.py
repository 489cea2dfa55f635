"""The order of the tests, and models small enough to make in one: random weights, or a few replies taught."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.nn.functional as F

from nanolit.machine.device import make_deterministic
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render

TESTS = Path(__file__).parent
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# A shell that starts the tests in the background has Ctrl-C ignored, and what tests start inherits that
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
os.environ.setdefault("PYTHONFAULTHANDLER", "1")  # a process that tests/processes.py ends prints its stacks
# Torch, Lightning and the collected tests are a million objects that stay: to look for garbage among them so
# often takes a sixth of the time of imports, and a fifteenth of that of test_conf.py
gc.set_threshold(50_000, 20, 20)

CLASSIC = {
    "rope_base": 10_000.0,
    "window_pattern": "L",
    "value_embeddings": False,
    "residual_scalars": False,
    "smear": False,
    "backout": False,
    "qk_scale": 1.0,
    "initialization": "classic",
    "rope_dtype": "bfloat16",
    "softcap_dtype": "compute",
}
MODERN = {
    "rope_base": 100_000.0,
    "window_pattern": "SL",
    "value_embeddings": True,
    "residual_scalars": True,
    "smear": True,
    "backout": True,
    "qk_scale": 1.2,
    "initialization": "modern",
    "rope_dtype": "compute",
    "softcap_dtype": "float32",
}

# What the taught model answers. The tool's answer is wrong on purpose: right ones come from the calculator.
TAUGHT = [
    ("Hello", "Hi! I am tiny 😀."),
    ("Sum?", [("text", "It is "), ("python", "12*3"), ("python_output", "99"), ("text", " in all.")]),
]


# Files of a minute and more, longest first: one that comes last leaves the other worker with nothing to do
LONGEST = (
    "launch/test_modal_runs.py",
    "launch/test_modal_chat.py",
    "phases/test_compiled.py",
    "kernels/test_decode_kernel.py",
    "jobs/test_resume.py",
    "chat/test_web.py",
    "jobs/test_resume_finetuning.py",
    "test_pipeline.py",
    "benchmarks/test_determinism.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, as `--dist loadfile --no-loadscope-reorder` then does."""
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Look for no garbage among what was imported and collected."""
    gc.freeze()


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """256 bytes and the special tokens: characters beyond ASCII take several tokens."""
    return Tokenizer([bytes([byte]) for byte in range(256)])


@pytest.fixture
def deterministic_algorithms() -> Iterator[None]:
    """What `deterministic=true` sets for a process, for one test."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def build_tiny_model(recipe: dict, *, context: int = 64, seed: int = 0) -> GPT:
    """Depth 2, width 32, grouped key-value heads, every weight random and alive; in float32."""
    model = GPT(
        GPTConfig(
            depth=2,
            width=32,
            heads=4,
            kv_heads=2,
            vocab_size=265,
            context=context,
            softcap=15.0,
            vocab_multiple=64,
            **recipe,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session", params=["classic", "modern"])
def tiny_model(request) -> GPT:
    """A model of either generation with random weights, context 64."""
    return build_tiny_model(CLASSIC if request.param == "classic" else MODERN)


def taught_conversation(question: str, answer: str | list[tuple[str, str]]) -> dict:
    parts = answer if isinstance(answer, str) else [{"type": type, "text": text} for type, text in answer]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": parts}]}


@pytest.fixture(scope="session")
def taught_model(byte_tokenizer) -> GPT:
    """A modern model that learned `TAUGHT` by heart (a second or two), context 128."""
    model = build_tiny_model(MODERN, context=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    rows = [render(taught_conversation(*pair), byte_tokenizer)[0].tolist() for pair in TAUGHT]
    ids_BT = torch.tensor([(row + [byte_tokenizer.bos_id] * 64)[:64] for row in rows])
    for _ in range(150):
        loss = F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05, f"the model did not learn its replies: loss {loss:.2f}"
    return model


@pytest.fixture(scope="session")
def rambling_model(taught_model) -> GPT:
    """A model that says a after a, greedily: a text without an end."""
    with torch.no_grad():
        rambling = GPT(GPTConfig(**taught_model.hyperparameters | {"context": 16_384}))
        rambling.prepare(dtype=torch.float32)
        for parameter in rambling.parameters():
            parameter.zero_()
        rambling.embedding.weight.fill_(1.0)
        rambling.residual_scalars.fill_(1.0)
        rambling.unembedding.weight[ord("a")] = 1.0  # whatever was said, the next byte is an a
    return rambling


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for the tests that look at a page."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium-headless-shell")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def multiply_row_by_row(operands, B, N, C, flags, launch):
    """Stand in for kernels.product_kernel.multiply in Triton's interpreter: Gluon has none."""
    from nanolit.kernels import decode_kernel

    for row in range(B):
        one = [
            x[row : row + 1] if place != 1 and getattr(x, "ndim", 0) == 2 else x
            for place, x in enumerate(operands)
        ]
        decode_kernel.multiply_a_row(one, N, C, flags, launch)
