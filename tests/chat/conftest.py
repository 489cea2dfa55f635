"""Releases for the chat's processes: one that was taught replies, one that goes on for very long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.model.gpt import GPT
from nanolit.model.release import save_release
from nanolit.tokenizer.bpe import Tokenizer

PACKAGE_PARENT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root(tmp_path_factory, taught_model, rambling_model, byte_tokenizer) -> Path:
    """A root with the runs `taught` (stage sft) and `rambling` (stage base, a greedy text without an end)."""
    root = tmp_path_factory.mktemp("root")
    byte_tokenizer.save(root / "tokenizers" / "bytes")
    _release(root, "taught", "sft", taught_model, byte_tokenizer)
    _release(root, "rambling", "base", rambling_model, byte_tokenizer)
    return root


def _release(root: Path, run: str, stage: str, model: GPT, tokenizer: Tokenizer) -> None:
    save_release(
        root / "runs" / run / stage / "release",
        model,
        tokenizer_folder=root / "tokenizers" / "bytes",
        tokenizer_hash=tokenizer.hash,
        meta={"run": run, "stage": stage, "step": 1},
    )


@pytest.fixture(scope="module")
def start_chat(root):
    """Starts `python -m nanolit.chat` with its arguments; what still runs at the end is ended."""
    processes = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanolit.chat", *arguments, f"root={root}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={
                **os.environ,
                "PYTHONPATH": f"{PACKAGE_PARENT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                "PYTHONIOENCODING": "utf-8",
                "NANOLIT_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
