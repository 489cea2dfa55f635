"""Who may train a stage: one call at a time, decided by Modal's server.

A file on the volume cannot: the last writer wins there, and a machine sees the other's file late.
"""

import modal

from launch.calls import lives

CLAIMS = "nanolit-claims"


def claimed(key: str, *, environment: str | None) -> str | None:
    """Return another call that has the stage and lives; without one, the stage is this call's from now on.

    A claim is stored under the call that it follows, "" at first. Of two calls that both find the same one
    dead, the server lets one put its claim there.
    """
    claims = modal.Dict.from_name(CLAIMS, create_if_missing=True, environment_name=environment)
    me, before = modal.current_function_call_id(), ""
    while not claims.put(f"{key}:{before}", me, skip_if_exists=True):
        other = claims.get(f"{key}:{before}")
        if other == me:
            return None
        if other and lives(other):
            return other
        before = other or before
    return None
