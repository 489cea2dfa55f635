"""Which stored stages are told to have trained with wrong gradients. Oracle: made-up runs in real files."""

from pathlib import Path
from typing import Any

import pytest
from run_folders import metrics_text, write_stage

from nanolit.report import card, gradients
from nanolit.report.folders import Stage

ON_GPU = metrics_text(20)  # its rows have an MFU
ON_CPU = "step,loss,mfu\n1,5.0,\n2,4.0,\n"
MODERN = {"gpt": {"residual_scalars": True}, "packing": "bestfit"}
CLASSIC = {"gpt": {"residual_scalars": False}, "packing": "flat"}
H200, CPU = {"gpu": "NVIDIA H200"}, {"gpu": "cpu"}


def stored(
    root: Path, stage: str = "base", *, plan: dict = MODERN, metrics: str = ON_GPU, **result: Any
) -> Stage:
    folder = root / "runs" / "old" / stage
    write_stage(folder, plan=plan, metrics=metrics, result={"status": "done", "step": 20, **result})
    return Stage(stage, folder)


@pytest.mark.parametrize(
    ("changes", "job", "fault"),
    [
        ({}, {"compile": None, "cluster": H200}, "wrong"),
        ({}, {"compile": None, "cluster": CPU}, "wrong"),  # continued on a CPU after a GPU
        ({"stage": "sft"}, {"compile": None, "cluster": H200}, "wrong"),
        ({"metrics": ON_CPU}, {"compile": True, "cluster": CPU}, "wrong"),  # a CPU loses the gradient too
        ({"metrics": ON_CPU}, {"compile": None, "cluster": {"gpu": "RTX 3060"}}, "unknown"),  # no known peak
        ({"metrics": ON_CPU}, {}, "unknown"),
        ({"metrics": ON_CPU}, {"compile": None, "cluster": CPU}, None),
        ({}, {"compile": False, "cluster": H200}, None),
        ({"plan": CLASSIC}, {"compile": None, "cluster": H200}, None),
        ({"stage": "rl"}, {"compile": None, "cluster": H200}, None),
        ({"stage": "sft", "plan": {**MODERN, "packing": "single"}}, {"cluster": H200}, None),
    ],
)
def test_only_what_was_compiled_with_residual_scalars_is_at_fault(
    tmp_path: Path, changes: dict[str, Any], job: dict[str, Any], fault: str | None
) -> None:
    assert gradients.fault_of(stored(tmp_path, **changes), job) == fault


def test_a_checkpoint_that_says_it_is_believed(tmp_path: Path) -> None:
    said = {"version": 2, "right_from": 120, "before": "wrong"}
    progress = {"step": 300, "gradients": said}
    assert gradients.resumed(stored(tmp_path), {"cluster": H200}, progress) == said
    assert gradients.remark(said) == (
        "gradients are correct from step 120 on (before: compiled modern trained with wrong gradients of "
        "embedding and smear)"
    )


def test_where_it_cannot_be_known_it_says_may_have(tmp_path: Path) -> None:
    stage = stored(tmp_path, metrics=ON_CPU)
    assert "step 9 on (before: modern may have" in gradients.remark(gradients.resumed(stage, {}, {"step": 9}))


def test_the_card_of_a_run_that_an_older_version_finished_says_so(tmp_path: Path) -> None:
    write_stage(stored(tmp_path).folder, job={"compile": None, "cluster": H200})
    text = card.write_report(tmp_path, "old").read_text()
    assert "\nTrained by an older version: compiled modern trained with wrong gradients of embed" in text


def test_what_is_right_from_the_beginning_has_no_remark(tmp_path: Path) -> None:
    stage = stored(tmp_path, gradients=gradients.RIGHT)
    assert gradients.remark_of(stage, {"cluster": H200}) == ""
    assert "radients" not in card.write_report(tmp_path, "old").read_text()
