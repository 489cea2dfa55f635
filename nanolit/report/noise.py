"""Differences between runs that are more than noise: by seeds if there are several, else by questions.

Seeds: Welch's t-test of the means. One run each: the paired difference on the questions that both were asked,
which leaves out what a seed moves; for CORE, which has a published spread, that is added.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nanolit.evaluation.scores import paired_difference
from nanolit.report.folders import Stage
from nanolit.report.scores import MEANS, Measured, is_core, measured, read_stored, scored_items

# The standard deviation of CORE between runs of one recipe: 20 runs of a d24 in nanochat's #807, and the same
# of its ladder. The same 20 runs' validation bits per byte spread by 0.0002; ours of a d8 and d12 by 0.001
# to 0.006 (LOG.md), so that no constant is right for all sizes.
CORE_SPREAD = 0.006
CANNOT_TELL = "can't tell"
# Student's t for 95 %, two sides, by degrees of freedom
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


@dataclass(frozen=True)
class Difference:
    """A difference of two means, the least that is more than noise (None: unknown), and how that is known."""

    value: float
    noise: float | None
    basis: str

    @property
    def verdict(self) -> str:
        if self.noise is None:
            return CANNOT_TELL
        return "more than noise" if abs(self.value) > self.noise else "within noise"


def difference(one: Sequence[Stage], other: Sequence[Stage], metric: str) -> Difference | None:
    """Return how much `other` differs from `one`, two sets of runs that differ in the seed alone.

    None where one of the sets lacks the metric.
    """
    scores = [
        [found[metric] for stage in side if metric in (found := measured(stage))] for side in (one, other)
    ]
    if not all(scores):
        return None
    values = [[score.value for score in side] for side in scores]
    value = statistics.fmean(values[1]) - statistics.fmean(values[0])
    if max(map(len, values)) > 1:
        return Difference(value, _by_seeds(*values), f"{len(values[0])} and {len(values[1])} seeds")
    return _by_questions(value, one[0], other[0], metric, scores[0][0], scores[1][0])


def _by_seeds(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the least significant difference of means; a single run is taken to spread as the others."""
    sides = [side for side in (one, other) if len(side) > 1]
    parts = [statistics.variance(side) / len(side) for side in sides]
    if len(sides) == 1:
        freedom, total = len(sides[0]) - 1, parts[0] * (1 + len(sides[0]))
    else:
        total = sum(parts)
        weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        freedom = total**2 / weights if weights else 1
    return T[min(max(int(freedom), 1), len(T)) - 1] * math.sqrt(total)


def _by_questions(
    value: float, one: Stage, other: Stage, metric: str, score: Measured, other_score: Measured
) -> Difference:
    core, mean = is_core(metric), metric in MEANS
    if core or mean:
        # CORE's tasks have names of their own
        tasks = [task for task in one.item_files if core == (one.item_files[task].parent.name == "core")]
        pairs = [_paired(one, other, task) for task in tasks]
        known = [(error / above, number) for error, number, above in filter(None, pairs)]
        whole = bool(pairs) and None not in pairs
        error = math.sqrt(sum(error**2 for error, _ in known)) / len(known) if whole else None
        number = sum(number for _, number in known)
    else:
        error, number, _ = _paired(one, other, metric) or (None, 0, 0)
    basis = f"{number:,} shared questions"
    if {score.asked, other_score.asked} != {number}:
        error = None  # the pairs aren't what gave the scores
    if error is None and score.error is not None and other_score.error is not None:
        error, basis = math.hypot(score.error, other_score.error), "separate questions"
    if error is None:
        return Difference(value, None, "one run each")
    if core:
        error, basis = math.hypot(error, CORE_SPREAD * math.sqrt(2)), f"{basis}, seeds (sd {CORE_SPREAD})"
    return Difference(value, 2 * error, basis)


def _paired(one: Stage, other: Stage, task: str) -> tuple[float, int, float] | None:
    """Return the paired difference's error, the number of questions both were asked, and 1 less chance.

    None unless both have the items, of the same questions.
    """
    scored, path, other_path = scored_items(one, task), one.item_files.get(task), other.item_files.get(task)
    if scored is None or path is None or other_path is None:
        return None
    (header, items), (other_header, other_items) = read_stored(path), read_stored(other_path)
    if any(header.get(key) != other_header.get(key) for key in ("questions", "file", "shots")):
        return None
    try:
        _, error, number = paired_difference(items, other_items)
    except ValueError:
        return None
    # Of none that differ, the next one could: as scores.py has it for a score of 0 or 1
    return max(error, 1 / number), number, 1 - scored[0].baseline
