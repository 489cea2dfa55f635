"""The plan of reinforcement learning: what is refused, and how long it takes."""

import pytest

from nanolit.config.compose import compose
from nanolit.planning.plans import fresh_plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("questions=0", "is 0; it must be 1 or more"),
        ("samples=1", "is 1; allowed: 2 or more"),
        ("temperature=0", "above 0"),
        ("top_k=-1", "0 .from the whole vocabulary. or more"),
        ("max_new_tokens=3000", "1 to the context's 2,048"),
    ],
)
def test_reinforcement_learning_that_would_learn_nothing_is_refused(override, message):
    with pytest.raises(ValueError, match=f"stage.rl.{override.partition('=')[0]}.*{message}"):
        fresh_plan(compose(["phase=rl", f"stage.rl.{override}"]), "rl")


def test_a_top_k_of_0_is_the_whole_vocabulary():
    assert fresh_plan(compose(["phase=rl", "stage.rl.top_k=0"]), "rl").top_k is None


def test_the_demos_reinforcement_learning_has_a_time_on_a_cpu():
    """Oracle: it took 147 to 160 seconds on one of two contended cores."""
    hours = fresh_plan(compose(["experiment=demo", "cluster.gpu=cpu"]), "rl").hours
    assert hours["total_hours"] is not None
    assert 20 < hours["total_hours"] * 3600 < 200


def test_an_epoch_of_unknown_length_has_no_time_on_a_cpu():
    overrides = ["phase=rl", "cluster.gpu=cpu", "recipe.mirror=sample"]
    assert fresh_plan(compose(overrides), "rl").hours["total_hours"] is None
