"""A fake Modal account for a session's tests, with a tokenizer on its volume."""

import importlib.util
import time

import pytest

from tests.fake_modal.account import TINY, Account

# They import launch, which imports modal; a machine that only trains has none
collect_ignore = (
    [] if importlib.util.find_spec("modal") else ["test_modal_runs.py", "test_modal_submission.py"]
)


@pytest.fixture(scope="session")
def account(tmp_path_factory):
    """The client, the containers' entrypoint and all of ours are real; the control plane is not."""
    account = Account(tmp_path_factory.mktemp("modal"), secrets={"wandb": {"WANDB_API_KEY": "x"}})
    yield account
    account.close()


@pytest.fixture(scope="session")
def reference(account):
    """The curve of the tiny job, sixteen steps, undisturbed and on this machine."""
    begun = time.monotonic()
    code, output = account.run("nanolit.train", *TINY, "run=reference", "max_steps=16", "save_every=2")
    assert code == 0, output
    tokenizers = account.root / "tokenizers"
    account.volume.parent.mkdir(exist_ok=True)
    (account.state / "volumes" / "nanolit").mkdir(parents=True, exist_ok=True)
    tokenizers.rename(account.state / "volumes" / "nanolit" / "tokenizers")
    account.seconds = time.monotonic() - begun
    return account.curve("reference", root=account.root)
