"""Times as people read them."""


def duration(seconds: float) -> str:
    """Return '1:15' for 75 seconds, '1:01:40' for 3700."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
