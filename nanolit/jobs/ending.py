"""What a stage leaves once it is trained: its result, its release, CORE's score, the lines at its end."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from nanolit.callbacks.evaluate import CORE_PART
from nanolit.config.schema import Job
from nanolit.evaluation.core import fitting, mean_of_part, score_core
from nanolit.evaluation.items import identity
from nanolit.evaluation.spans import OwnScorer
from nanolit.jobs.parts import Parts
from nanolit.jobs.watch import FAST_DEV_PROBLEMS, Watch
from nanolit.machine.exit import sigterm_interrupts
from nanolit.machine.paths import Json, core_folder, file_hash, stage_folder, write_json
from nanolit.machine.system import code_version, launched_rank
from nanolit.machine.terminal import duration, say, train_command
from nanolit.model.release import save_release
from nanolit.planning.plans import BasePlan
from nanolit.report.card import write_report


def write_result(job: Job, stage: str, result: Json) -> Json:
    result = {"format": 1, "stage": stage, "run": job["run"], **result}
    if launched_rank() == 0:
        write_json(stage_folder(job["root"], job["run"], stage) / "result.json", result)
    return result


def conclude(trainer: L.Trainer, parts: Parts, watch: Watch) -> Json:
    """Return the result of a stage that was fitted; with all its steps, leave a release and ask CORE."""
    result, job, phase, plan, stage = watch.state(), parts.job, parts.phase, parts.plan, parts.plan.stage
    again = f"resume with: {train_command(job['overrides'])}"
    if phase.finished_steps < phase.num_steps:
        error = f"{stage} stopped after step {phase.finished_steps} of {phase.num_steps}; {again}"
        return {"status": "interrupted", "error": error, **result}
    release = parts.folder / "release"
    if launched_rank() == 0:
        leave_release(release, parts, result)
        summarize(stage, result, release)
    stop = watch.checkpoints.stop  # then no other stage begins
    if isinstance(plan, BasePlan) and plan.core_every:
        try:
            if stop:
                raise KeyboardInterrupt
            result["metrics"], columns = ask_core(parts, release)
        except KeyboardInterrupt:
            error = f"{stage} is trained, but CORE was interrupted; {again}"
            return {"status": "interrupted", "error": error, **result}
        watch.recorder.record(trainer, {"step": phase.finished_steps, **columns})
        result["wall_seconds"] = watch.state()["wall_seconds"]
    result = {"status": "done", "release": str(release), **result, "asked_to_stop": stop}
    if launched_rank() == 0 and isinstance(trainer.logger, WandbLogger):
        write_result(job, stage, result)  # what the report reads
        attach_report(job, trainer.logger)
    return result


def leave_release(release: Path, parts: Parts, result: Json) -> None:
    job, stage, recipe = parts.job, parts.plan.stage, parts.job["recipe"]["name"]
    meta = {"run": job["run"], "stage": stage, "recipe": recipe, "seed": job["seed"]}
    meta["questions"] = job["chat_tasks"].get("questions", [])
    records = [release.parent / name for name in ("job.yaml", "plan.json")]
    meta["made_with"] = {path.name: file_hash(path) for path in records if path.is_file()}
    save_release(
        release,
        parts.phase.gpt,
        tokenizer_folder=parts.tokenizer_folder,
        tokenizer_hash=parts.tokenizer.hash,
        meta={**meta, **result, "code": code_version()},
    )


def ask_core(parts: Parts, release: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Run `score_base`, which SIGTERM interrupts; ValueError says what to do if CORE can't be asked."""
    try:
        with sigterm_interrupts():
            return score_base(parts, release)
    except ValueError as error:
        remedy = "core_every=null skips it"
        raise ValueError(f"base is trained, but CORE can't be evaluated: {error}; {remedy}") from error


def score_base(parts: Parts, release: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ask base all of CORE; return the metrics of its result, and the columns of metrics.csv. Collective.

    Items lie where `nanolit evaluate tasks=core` keeps them: an interruption costs no answers.
    """
    assert isinstance(parts.plan, BasePlan)
    # Lightning leaves the model on the CPU
    scorer = OwnScorer(parts.phase.gpt.to(parts.device).eval())
    asked = {
        "folder": parts.folder / "evaluation",
        "about": {} if launched_rank() else identity(release),
        "max_per_task": FAST_DEV_PROBLEMS if parts.job["fast_dev_run"] else None,
    }
    model = scorer, parts.tokenizer, core_folder(parts.job["root"])
    scores = fitting(score_core, *model, **asked)
    value = next(iter(scores["metrics"].values()))
    columns = {"core": value}
    if parts.plan.core_every != "end" and not parts.job["fast_dev_run"]:
        # Its items are among those of the whole: nothing is asked again
        asked |= {"folder": asked["folder"] / "core", "max_per_task": CORE_PART, "crop": scores["crop"]}
        columns["core_part"], _ = mean_of_part(*model, **asked)
    return scores["metrics"], columns


def attach_report(job: Job, logger: WandbLogger) -> None:
    """Write the run's report and send it to W&B."""
    report = write_report(Path(job["root"]), job["run"])
    for path in (report, report.with_suffix(".html")):
        logger.experiment.save(str(path), base_path=str(path.parent), policy="now")


def summarize(stage: str, result: Json, release: Path) -> None:
    """Say what the stage took and reached, and where its release is."""
    speed = f" (median {result['tokens_per_second']:,.0f} tokens/s)" if result["tokens_per_second"] else ""
    score = f"; validation {result['val_bpb']:.4f} bits per byte" if result.get("val_bpb") else ""
    amount = f"{result['step']:,} steps, {result['tokens']:,} tokens"
    say(f"{stage}: {amount} in {duration(result['seconds'])}{speed}{score}")
    if result["epoch"]:
        cropped = result["cropped_fraction"]
        crop = f", {cropped:.1%} cropped by packing" if cropped else ""
        waited = result["data_wait_fraction"]
        wait = f"; {waited:.2%} of the time spent waiting for data" if waited is not None else ""
        say(f"{stage}: {result['epoch']:.2f} epochs{crop}{wait}")
    say(f"{stage}: release in {release}")
