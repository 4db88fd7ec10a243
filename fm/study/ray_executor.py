"""Runs independent calls on a Ray cluster.

RAY_ADDRESS names the cluster; without it one is started on this machine, listening on loopback
only, without a dashboard, and stopped afterwards. Workers must see the same files and have this
package. Arguments are plain numbers and texts, which Ray itself pickles; results are files.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fm.errors import UserError
from fm.progress_lines import phase

# Times that Ray repeats a call whose worker died.
MAX_RETRIES = 3

PlainValue = str | int | float
# A function that returns the message of a UserError, or None.
Call = Callable[..., str | None]


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """Context manager: yields the `ray` module, connected to a cluster.

    Raises:
      UserError: Ray is not installed, or the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        # Read on import. On every system it makes Ray bind a cluster of one machine to 127.0.0.1;
        # without it all ports listen to the world.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise UserError("--cluster=ray needs Ray: pip install -e .[ray]") from error
    own = {} if address else {"include_dashboard": False}
    # Ray replaces the SIGTERM handler.
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from error
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def run_calls(
    ray: Any,
    call: Call,
    arguments_of_calls: Sequence[tuple[PlainValue | list[str], ...]],
    run_name: str,
) -> None:
    """Calls a function on a Ray cluster once per tuple of arguments; waits for all calls.

    Args:
      ray: from `ray_cluster`.
      call: a function that workers can import. It writes its result to files atomically, since a
        call whose worker dies is repeated.
      arguments_of_calls: the arguments of each call.
      run_name: shown in the progress bar.

    Raises:
      UserError: a call returned one (the first), or its worker died too often.
    """
    remote = ray.remote(call).options(num_cpus=1, max_retries=MAX_RETRIES)
    pending = {remote.remote(*arguments): arguments for arguments in arguments_of_calls}
    with phase(f"{run_name}: on Ray", len(pending), "cells") as bar:
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            arguments = pending.pop(done)
            try:
                message = ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                shown = ", ".join(str(each) for each in arguments if isinstance(each, PlainValue))
                raise UserError(
                    f"a Ray worker was lost {MAX_RETRIES + 1} times at {shown} "
                    f"({type(error).__name__}); run the same command again to resume"
                ) from error
            if message is not None:
                raise UserError(message)
            bar.update()
