"""Calls that do not depend on each other, on a Ray cluster: this machine's own unless told.

Ray is told of a cluster by RAY_ADDRESS; without, one is started on this machine, listening on
loopback alone, without a dashboard, and stopped afterwards. Its workers must see the same files
and have this package. Arguments are plain numbers and texts, which Ray itself sends (it knows no
other way than its own pickles of them); what is made comes back as files.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from fm.errors import UserError

# How often Ray begins a call anew whose worker died.
MAX_RETRIES = 3

PlainValue = str | int | float
# Returns the message of a UserError, or None.
Call = Callable[..., str | None]


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """Ray, joined to a cluster.

    Raises:
      UserError: Ray is not installed, or the cluster cannot be joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        # Read on import. Ray asks it on two systems alone, but what it does is the same on all: a
        # cluster of one machine, on 127.0.0.1. Else every port listens to the world.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise UserError("--cluster=ray takes Ray: pip install -e .[ray]") from error
    own = {} if address else {"include_dashboard": False}
    # Ray takes SIGTERM for itself.
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
    """Makes every call, as many at a time as the cluster has cores; returns when all are done.

    Args:
      ray: from `ray_cluster`.
      call: a function of a module that workers can import. What it makes are files, whole or not
        at all: a call whose worker dies is made again.
      arguments_of_calls: arguments of each.
      run_name: of the whole, to show.

    Raises:
      UserError: of the first call that has one; or its worker died too often.
    """
    remote = ray.remote(call).options(num_cpus=1, max_retries=MAX_RETRIES)
    left = {remote.remote(*arguments): arguments for arguments in arguments_of_calls}
    with tqdm(total=len(left), desc=f"{run_name}: on Ray", unit="cell", disable=None) as bar:
        while left:
            (done,), _ = ray.wait(list(left), num_returns=1)
            arguments = left.pop(done)
            try:
                problem = ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                what = ", ".join(str(each) for each in arguments if isinstance(each, PlainValue))
                raise UserError(
                    f"a worker of the Ray cluster was lost {MAX_RETRIES + 1} times at {what} "
                    f"({type(error).__name__}); the same command goes on where it was"
                ) from error
            if problem is not None:
                raise UserError(problem)
            bar.update()
