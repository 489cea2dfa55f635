"""What lm-eval asks a NanoLit model, where lm-eval is installed. Oracle: the model's own forward pass."""

import json
from pathlib import Path

import pytest
import torch

from nanolit import lm_eval
from nanolit.inference.engine import Engine
from nanolit.language_model import load_language_model

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

from nanolit.evaluation.harness import HarnessModel

RELEASE = Path(__file__).parents[1] / "fixtures/release_format_1"


@pytest.fixture(scope="module")
def harness() -> HarnessModel:
    model = load_language_model(RELEASE, root=None, device="cpu", stage=None)
    return HarnessModel(Engine(model.model, model.tokenizer))


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]  # pyright: ignore


def log_probabilities(harness: HarnessModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits_TV = harness.engine.model(torch.tensor([ids]))[0]
    return logits_TV[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_the_log_likelihood_is_the_sum_over_the_continuation(harness: HarnessModel) -> None:
    pairs = [("The sea", " was old"), ("The sea", " stone"), ("", "Light"), ("A river ", "of")]
    for (context, rest), (found, _) in zip(
        pairs, harness.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True), strict=True
    ):
        ids = [harness.own.bos_id, *harness.own.encode(context + rest)]
        begin = len(harness.own.encode(context.rstrip()))
        assert found == pytest.approx(log_probabilities(harness, ids)[begin:].sum().item(), abs=1e-4)


def test_a_text_longer_than_the_context_is_summed_over_windows_once_each(harness: HarnessModel) -> None:
    short, long = "The old sea", "The old sea and the stone " * 40
    found = harness.loglikelihood_rolling(asked("loglikelihood_rolling", (short,), (long,)))
    ids = harness.own.encode(long)
    assert len(ids) > harness.context
    whole = log_probabilities(harness, [harness.own.bos_id, *harness.own.encode(short)])
    assert found[0] == pytest.approx(whole.sum().item(), abs=1e-4)
    size, whole_windows = harness.context, len(ids) // harness.context
    windows = [[harness.own.bos_id, *ids[:size]]]
    windows += [ids[number * size - 1 : (number + 1) * size] for number in range(1, whole_windows)]
    expected = sum(log_probabilities(harness, window).sum().item() for window in windows)
    rest = len(ids) - size * whole_windows
    assert rest, "the last window has full context, of which it scores the rest"
    expected += log_probabilities(harness, ids[-size - 1 :])[-rest:].sum().item()
    assert found[1] == pytest.approx(expected, rel=1e-5)


def test_a_reply_ends_before_the_first_stop(harness: HarnessModel) -> None:
    [whole] = harness.generate_until(asked("generate_until", ("The sea", {"max_gen_toks": 12})))
    assert whole
    stop = whole[len(whole) // 2]
    requests = asked("generate_until", ("The sea", {"max_gen_toks": 12, "until": [stop, "\x00"]}))
    assert harness.generate_until(requests) == [whole.partition(stop)[0]]


def test_a_reply_that_leaves_no_room_for_the_question_is_refused(harness: HarnessModel) -> None:
    most = harness.context - 2
    assert len(harness._request("The old sea", {"max_gen_toks": most}).prompt_ids) == 2
    with pytest.raises(ValueError, match=rf"max_gen_toks \({most + 1}\) leaves no room .*; lower it"):
        harness.generate_until(asked("generate_until", ("The old sea", {"max_gen_toks": most + 1})))


def test_the_command_asks_a_task_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": "The sea was", "choices": ["old", "new"], "gold": index % 2} for index in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{query}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n"
    )
    words = [f"release={RELEASE}", f"include={tmp_path}"]
    assert lm_eval.main([*words, "tasks=mine"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mine"]["acc,none"] == 0.5
    assert lm_eval.main([*words, "tasks=mein"]) == 2
    assert "there is no task 'mein'; did you mean mine?" in capsys.readouterr().err
