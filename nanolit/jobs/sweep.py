"""Composed jobs on this machine: planned, shown and confirmed before the first starts; a process for each."""

import heapq
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanolit.config.names import short_hash
from nanolit.config.schema import Job
from nanolit.jobs.execute import run, score
from nanolit.jobs.inputs import check_settings
from nanolit.jobs.processes import stop
from nanolit.machine.exit import INTERRUPTED, sigterm_interrupts
from nanolit.machine.paths import Json, run_folder, write_yaml
from nanolit.machine.system import gpu_names
from nanolit.machine.terminal import at_terminal, say
from nanolit.planning.plans import Planned, Plans, TokenizerPlan, notes, plan_jobs, total
from nanolit.planning.show import amount, fitting_text, money, show_plans, steps_text
from nanolit.planning.sizes import TextPlan
from nanolit.report.folders import read_result
from nanolit.report.sweep import sweep_table, write_sweep_csv
from nanolit.report.tables import markdown_table

ASK_HOURS = 24.0  # on this machine
ASK_DOLLARS = 25.0  # by the plan, unless max_cost states how many are all right
DEMO = "python -m nanolit.train experiment=demo"
CUT_SHORT = "stopped before it had a result; the same command resumes it"
NOT_BEGUN = "not started when the sweep was stopped; the same command starts it"


class JobFailed(RuntimeError):
    """A job that had begun failed or was interrupted; `code` is for the shell, `results` are all jobs'."""

    def __init__(self, message: str, code: int, results: Sequence[Json] = ()) -> None:
        super().__init__(message)
        self.code, self.results = code, results


def run_jobs(jobs: Sequence[Job]) -> list[float | None]:
    """Run the jobs; their validation bits per byte, or None. ValueError comes before any has begun."""
    planned = check_jobs(jobs)
    if jobs[0]["dry_run"]:
        show_jobs(planned)
        for job, plans in planned:
            tell_refusal(job, plans)
        say("dry run: nothing was started")
        return [None for _ in jobs]
    if len(jobs) == 1:
        return conclude(jobs, [run(*planned[0], confirm=confirm)])
    confirm(planned)
    return conclude(jobs, run_processes(jobs))


def tell_refusal(job: Job, plans: Plans) -> None:
    """Print why a job would be refused now: it continues a stage that is missing, say."""
    try:
        check_settings(job, plans)
    except ValueError as error:
        say(f"{job['run']} would not start: {error}")


def show_jobs(planned: Planned, *, at_a_time: int | None = None) -> None:
    """Print what fits on a screen; ValueError where all together pass max_cost."""
    if len(planned) == 1 and len(planned[0][1]) == 1:
        show_plans(planned)
        return
    say(f"{plans_table(planned)}{sum_line(planned, at_a_time=at_a_time)}")
    say("python -m nanolit.plan … shows a stage's full plan")
    for note in notes(planned):
        say(note)


def plans_table(planned: Planned) -> str:
    """Return a row for each job, or for each stage of the only one."""
    rows = []
    for job, plans in planned:
        groups = [[plan] for plan in plans.values()] if len(planned) == 1 else [[*plans.values()]]
        for group in groups:
            hours, dollars = total(group)
            name = f"{job['run']} · {group[0].stage}" if len(planned) == 1 else job["run"]
            steps = " + ".join(steps_text(plan) for plan in group if not isinstance(plan, TokenizerPlan))
            peaks = [plan.memory for plan in group if isinstance(plan, TextPlan) and plan.memory]
            memory = max(peaks, key=lambda memory: memory["gib"]["peak"], default=None)
            time = "unknown" if hours is None else f"{hours:,.2f}"
            cost = money(dollars) if any(plan.cost for plan in group) else "–"
            rows.append([name, steps, fitting_text(memory), time, cost])
    return markdown_table(["Run", "Steps", "Memory per GPU", "Hours", "Cost"], rows, num_left=3)


def sum_line(planned: Planned, *, at_a_time: int | None) -> str:
    """Return all jobs together, and how long they take when the next begins as one ends."""
    every = [plan for _, plans in planned for plan in plans.values()]
    hours, dollars = total(every)
    text = f"{len(planned)} jobs" if len(planned) > 1 else f"{len(every)} stages"
    if len(planned) > 1 and at_a_time:
        text += f", at most {at_a_time} at a time"
    if hours is not None:
        text += f": {amount(hours)}"
    if hours is not None and len(planned) > 1 and at_a_time:
        ends = [0.0] * at_a_time
        for _, plans in planned:
            heapq.heapreplace(ends, ends[0] + (total([*plans.values()])[0] or 0.0))
        text += f", done after {amount(max(ends))}"
    if any(plan.cost for plan in every):
        text += f"; {money(dollars)} in all"
    return text


def confirm(planned: Planned) -> None:
    """Say when the jobs' plans take more than a day here or ASK_DOLLARS; SystemExit if a person says no.

    With yes=true, elsewhere than at a terminal, and for runs that have begun, nobody is asked.
    """
    new = [(job, plans) for job, plans in planned if not begun(job)]
    if new and (remark := warning(new)):
        ask(remark, yes=new[0][0]["yes"])


def ask(remark: str, *, yes: bool) -> None:
    """Print the remark, and at a terminal wait for an answer; SystemExit if it is no."""
    if yes or not (sys.stdin.isatty() and at_terminal()):
        say(remark)
        return
    try:
        answer = input(f"{remark}\nStart? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise SystemExit("Nothing was started. Add yes=true to start without asking.")


def warning(planned: Planned) -> str:
    """Return a remark if the jobs together are long or expensive, else ""."""
    job = planned[0][0]
    hours, dollars = total([plan for _, plans in planned for plan in plans.values()])
    what = f"{len(planned)} jobs take" if len(planned) > 1 else f"{job['run']} takes"
    if job["cluster"]["kind"] == "local" and hours and hours > ASK_HOURS:
        demo = f"; for a tiny model in minutes: {DEMO}" if job["cluster"]["gpu"] == "cpu" else ""
        return f"{what} about {amount(hours)} on this machine{demo}"
    if dollars and dollars > ASK_DOLLARS and job["max_cost"] is None:
        return f"{what} about {money(dollars)} on cluster={job['cluster']['name']}"
    return ""


def begun(job: Job) -> bool:
    """Return True if the run has trained here before, or was submitted from here: it was asked about then."""
    folder = run_folder(job["root"], job["run"])
    return any(folder.glob("*/plan.json")) or (folder / "submission.json").exists()


def conclude(jobs: Sequence[Job], results: Sequence[Json]) -> list[float | None]:
    """Show a sweep's table and return every job's validation bits per byte; JobFailed unless all are done."""
    if len(jobs) > 1:
        name = short_hash(sorted(job["run"] for job in jobs))
        path = Path(jobs[0]["root"]) / "sweeps" / f"sweep-{name}.csv"
        write_sweep_csv(path, results)
        say(f"\n{sweep_table(results)}\n{path}")
    bad = [result for result in results if result["status"] != "done"]
    if bad:
        lines = [f"{result['run']}: {result['status']}: {result.get('error', '')}" for result in bad]
        code = INTERRUPTED if any(result["status"] == "interrupted" for result in bad) else 1
        raise JobFailed("\n".join(lines), code, results)
    return [result.get("val_bpb") for result in results]


def check_jobs(jobs: Sequence[Job]) -> list[tuple[Job, Plans]]:
    """Return the jobs with their plans.

    ValueError for a job that must not run here, cannot be planned, or is the same run as another.
    """
    for job in jobs:
        if job["cluster"]["kind"] != "local":
            refuse_elsewhere(job)
    planned = plan_jobs(jobs)
    for note in notes(planned):
        if not jobs[0]["dry_run"]:  # then the plan says it
            say(note)
    if len(jobs) > 1:
        refuse_same_run(jobs)
    return planned


def refuse_same_run(jobs: Sequence[Job]) -> None:
    """ValueError when two jobs of a sweep would be one run."""
    name, count = Counter(job["run"] for job in jobs).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} jobs of the sweep have the same run name {name}; run=null (the default) names each by "
            "the settings that docs/settings.md lists; start these one by one, each with its own run=NAME"
        )


def refuse_elsewhere(job: Job) -> None:
    """ValueError for a job for rented GPUs: it never runs on the machine where it is typed."""
    cluster = job["cluster"]
    submitted = {"SLURM_JOB_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys()  # the second by submitit, anywhere
    if cluster["kind"] == "slurm" and (submitted or job["dry_run"]):
        return
    raise ValueError(
        f"cluster={cluster['name']} does not run on this machine: its launcher submits jobs; use it without "
        "cluster=local in the same sweep and without hydra.mode=RUN, or choose cluster=local"
    )


def run_processes(jobs: Sequence[Job]) -> list[Json]:
    """Run a process per job, each with its own GPUs, as many at once as have GPUs; on a CPU one at a time."""
    slots = gpu_slots(jobs[0]["cluster"]["devices"])
    waiting, running = list(jobs), dict[str, tuple[subprocess.Popen, Job]]()
    results = {}
    with sigterm_interrupts(), tempfile.TemporaryDirectory() as folder:
        answer = {job["run"]: Path(folder) / f"{number}.json" for number, job in enumerate(jobs)}
        try:
            while waiting or running:
                free = [slot for slot in slots if slot not in running]
                for slot, job in list(zip(free, waiting, strict=False)):
                    waiting.remove(job)
                    process = start(job, slot, answer[job["run"]], shared=len(slots) == 1)
                    running[slot] = (process, job)
                for slot, (process, job) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        results[job["run"]] = read_answer(answer[job["run"]], job)
                        report(results[job["run"]])
                time.sleep(0.1)
        except BaseException as error:
            stop([process for process, _ in running.values()])
            if not isinstance(error, KeyboardInterrupt):
                raise
            for _, job in running.values():
                results[job["run"]] = read_result(answer[job["run"]]) or interrupted(job, CUT_SHORT)
            results |= {job["run"]: interrupted(job, NOT_BEGUN) for job in waiting}
    return [results[job["run"]] for job in jobs]


def interrupted(job: Job, error: str) -> Json:
    return {"status": "interrupted", "run": job["run"], "error": error}


def gpu_slots(devices: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each place for a job: `devices` GPUs each; one place if there are no more."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        gpus = [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    else:
        gpus = list(map(str, range(len(gpu_names()))))
    places = [gpus[first : first + devices] for first in range(0, len(gpus) - devices + 1, devices)]
    return [",".join(place) for place in places] or [",".join(gpus)]


def start(job: Job, slot: str, answer: Path, *, shared: bool) -> subprocess.Popen:
    """Start one job, which leaves its result in `answer`.

    If several run at a time, its output goes to log.txt in the run's folder.
    """
    folder = run_folder(job["root"], job["run"])
    path = folder / "job.yaml"
    write_yaml(path, job)
    say(f"── {job['run']}" + ("" if shared else f" on GPU {slot}, output in {folder / 'log.txt'}"))
    tags = {"WANDB_TAGS": ",".join(filter(None, (os.environ.get("WANDB_TAGS"), "sweep")))}
    environment = {**os.environ, **tags} | ({"CUDA_VISIBLE_DEVICES": slot} if slot else {})
    command = [sys.executable, "-m", "nanolit.jobs.execute", str(path), str(answer)]
    if shared:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    if (folder / "log.txt").is_symlink():  # it may lead to any file
        (folder / "log.txt").unlink()
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )


def report(result: Json) -> None:
    error = f": {result['error']}" if result.get("error") else ""
    say(f"── {result['run']}: {result['status']}{score(result)}{error}")


def read_answer(answer: Path, job: Job) -> Json:
    """Return the result that the job's process left; one that was killed left none and has failed."""
    killed = {"status": "failed", "run": job["run"], "error": "its process ended without a result"}
    return read_result(answer) or killed
