"""The step from which a stage's gradients are right.

From commit 8b1618b to c9c2313 (23 November 2026) torch.compile lost one of the two gradients of the first
block's residual mix: compiled modern trained embedding and smear with a part of their gradients. What was
trained since carries `gradients` in its checkpoints, result and release; where that is absent, the stored
run tells whether it may be one of those.
"""

from nanolit.config.schema import Job
from nanolit.machine.paths import Json
from nanolit.planning.plans import BasePlan, FinetunePlan
from nanolit.report.folders import Stage

VERSION = 2  # raise it whenever what an unchanged job trains changes; 1 is everything before it was stored
RIGHT = {"version": VERSION, "right_from": 0}
FAULTS = {
    "wrong": "compiled modern trained with wrong gradients of embedding and smear",
    "unknown": "modern may have trained with wrong gradients of embedding and smear, if compiled on a GPU",
}


def fault_of(stage: Stage, job: Job | Json) -> str | None:
    """Judge a stage that says nothing of its gradients: "wrong", "unknown", or None where they were right.

    compile=null compiles on a GPU alone. Where a stage ran shows in the MFU of metrics.csv, which a CPU and
    GPUs of unknown peak lack, and in the job, which names the GPU of its last start, or "cpu".
    """
    compiles, on_gpu = job.get("compile"), bool(stage.series("mfu"))
    plan = stage.plan
    # rl is never compiled, and neither are rows of one conversation each
    if not isinstance(plan, BasePlan | FinetunePlan) or plan.packing == "single" or compiles is False:
        return None
    if not (plan.gpt or {}).get("residual_scalars"):
        return None
    if compiles or on_gpu:
        return "wrong"
    return None if (job.get("cluster") or {}).get("gpu") == "cpu" else "unknown"


def resumed(stage: Stage, job: Job | Json, progress: Json) -> Json:
    """Return the `gradients` of a stage that is resumed from a checkpoint with this progress.json."""
    if "gradients" in progress:
        return dict(progress["gradients"])
    fault = fault_of(stage, job)
    return {**RIGHT, "right_from": progress["step"], "before": fault} if fault else RIGHT


def remark(gradients: Json) -> str:
    """Return the line that marks where right gradients begin; "" where all are."""
    if not gradients["right_from"]:
        return ""
    fault = FAULTS.get(gradients.get("before", ""), FAULTS["unknown"])
    return f"gradients are correct from step {gradients['right_from']:,} on (before: {fault})"


def remark_of(stage: Stage, job: Job | Json) -> str:
    """Return the same line for a stored stage, also for one that an older version trained alone."""
    stored = stage.result.get("gradients") or stage.progress.get("gradients")
    if stored:
        return remark(stored)
    fault = fault_of(stage, job) if stage.step else None
    return f"trained by an older version: {FAULTS[fault]}" if fault else ""
