"""How many processes train, what divides among them, and the errors for what doesn't."""

from collections.abc import Mapping

from nanolit.config.schema import Job


def num_ranks(job: Job) -> int:
    return job["cluster"]["devices"] * job["cluster"]["nodes"]


def multiple(name: str, value: int, *, unit: int, what: str) -> str:
    """Return the error for a value that is not a multiple of `unit`, with the nearest that are."""
    below, above = value // unit * unit, (value // unit + 1) * unit
    nearest = [f"{candidate:,}" for candidate in (below, above) if candidate > 0]
    return f"{name} ({value:,}) must be a multiple of {what} = {unit:,}; try {' or '.join(nearest)}"


def refuse_below_one(counts: Mapping[str, int | None]) -> None:
    """Raise ValueError for the first of the named counts that is below 1; None is no count."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
