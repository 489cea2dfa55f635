"""Plan: `python -m nanolit.plan phase=base model=d26 cluster=modal_8xh100` says what training would do."""

import argparse
import json
import sys

from nanolit.jobs.compose import compose
from nanolit.jobs.plans import fresh_plan
from nanolit.jobs.show import plan_table


def main() -> int:
    """Print the plan of every stage of the job; 2 for input that was refused."""
    parser = argparse.ArgumentParser(prog="python -m nanolit.plan", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m nanolit.train")
    parser.add_argument(
        "--json",
        action="store_true",
        help="what plan.json holds; with several stages, by the name of the stage",
    )
    arguments = parser.parse_args()
    try:
        job = compose(arguments.overrides)
        plans = {stage: fresh_plan(job, stage) for stage in job["stages"]}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        only = next(iter(plans.values())) if len(plans) == 1 else plans
        print(json.dumps(only, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(plan_table(plan) for plan in plans.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
