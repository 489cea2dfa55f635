"""A model as lm-eval asks it, https://github.com/EleutherAI/lm-evaluation-harness; it must be installed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from nanolit.evaluation.spans import Group, OwnScorer
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request

MAX_TOKENS = 256  # of a reply, where the task doesn't say: lm-eval's number, or half of a small context


class HarnessModel(TemplateLM):
    """Loglikelihoods by the span scorer, replies by the engine; every text begins with BOS.

    As lm-eval does it, texts longer than `context` are cut from the left.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine, self.own, self.context = engine, engine.tokenizer, engine.context
        self.scorer = OwnScorer(engine.model)

    @property
    def eot_token_id(self) -> int:
        return self.own.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.own.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        bos = [self.own.bos_id]
        # An empty context comes as BOS already
        pairs = [(before if before == bos else bos + before, rest) for _, before, rest in requests]
        return self._score(pairs)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return the sum of log-probabilities of each second part, and whether it is the greedy one."""
        groups: dict[tuple[int, ...], list[int]] = {}  # what follows one context is read together
        for place, (before, _) in enumerate(pairs):
            groups.setdefault(tuple(before), []).append(place)
        asked = [self._group([pairs[place] for place in places]) for places in groups.values()]
        scores: dict[int, tuple[float, bool]] = {}
        for places, group, spans in zip(groups.values(), asked, self.scorer.start(asked)(), strict=True):
            for place, text, start, span in zip(places, group.texts, group.starts, spans, strict=True):
                scores[place] = -span.loss * (len(text) - start), span.greedy
        return [scores[place] for place in range(len(pairs))]

    def _group(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Group:
        # The last token is predicted and not read, so that a text may have one more than the context
        texts = [np.array((before + rest)[-self.context - 1 :]) for before, rest in pairs]
        ends = [len(rest) for _, rest in pairs]
        return Group(texts, [max(1, len(text) - end) for text, end in zip(texts, ends, strict=True)])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.own.encode(request.args[0]), self.own.bos_id, self.context, context_len=1
            )
            sums.append(sum(score for score, _ in self._score([*map(make_disjoint_window, windows)])))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked = [self._request(*request.args) for request in requests]
        replies = []
        for request, [completion] in zip(asked, self.engine.complete_all(asked), strict=True):
            reply = self.own.decode(completion.body_ids)
            ends = [reply.find(stop) for stop in request.stop_texts if stop in reply]
            replies.append(reply[: min(ends, default=len(reply))])
        self.engine.release()
        return replies

    def _request(self, text: str, settings: dict[str, Any]) -> Request:
        until, usual = settings.get("until") or [], min(MAX_TOKENS, self.context // 2)
        max_tokens = settings.get("max_gen_toks", usual)
        if (room := self.context - 1 - max_tokens) < 1:
            raise ValueError(
                f"max_gen_toks ({max_tokens:,}) leaves no room for the question in the model's context "
                f"({self.context:,}); lower it in the task's file, or evaluate a model with a longer context"
            )
        ids = self.own.encode(text)[-room:]
        return Request(
            prompt_ids=[self.own.bos_id, *ids],
            max_tokens=max_tokens,
            temperature=float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0,
            top_k=settings.get("top_k"),
            top_p=settings.get("top_p") or 1.0,
            stop_texts=(until,) if isinstance(until, str) else tuple(filter(None, until)),
        )
