"""Several processes as one run, on one machine or many: who writes, who reads what, who is lost.

Every process runs the same program with the same arguments; arrays span the devices of all
(`jax.distributed`). Only the first writes what is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.errors import UserError
from fm.parallel.mesh import config_from_mesh
from fm.training.sharding import batch_spec, shard_batch

# Seconds after which JAX's service takes a process that says nothing for lost.
HEARTBEAT_TIMEOUT_SECONDS = 20
EXIT_PEER_LOST = 3  # exit code
_AGAIN = (
    "the same command, with as many processes as there are then, goes on from the last checkpoint"
)


def initialize(
    coordinator_address: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = HEARTBEAT_TIMEOUT_SECONDS,
) -> None:
    """Makes this process one of several; before JAX is used for anything else.

    On CPUs they also talk over gloo, at the address that the machine's own name has; JAX offers no
    other.

    Args:
      coordinator_address: HOST:PORT where the first process listens for the others; "auto" takes all from
        the environment (Slurm, Open MPI, Kubernetes, TPU; see `jax.distributed.initialize`).
      num_processes: of processes.
      process_id: of this one, from 0.
      heartbeat_timeout_seconds: seconds after which a process that says nothing is lost.

    Raises:
      UserError: what is given does not fit together, or "auto" finds nothing.
    """
    host, _, port = coordinator_address.rpartition(":")
    if coordinator_address != "auto" and (
        not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16)
        or num_processes is None
        or process_id is None
        or process_id >= num_processes
    ):
        raise UserError(
            f"--coordinator={coordinator_address}: takes HOST:PORT, with --processes=N and --process from "
            "0 to N-1, or auto"
        )
    # JAX's own default is to listen to the world.
    bound = (
        coordinator_address if re.fullmatch(r"localhost|127(\.[0-9]+){3}|\[::1\]", host) else None
    )
    # The one way that processes on CPUs add up; other devices have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            None if coordinator_address == "auto" else coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=120,
            coordinator_bind_address=bound,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--coordinator={coordinator_address}: {reason}") from error
    # JAX's own last words do not say what to do then.
    print(
        f"process {jax.process_index()} of {jax.process_count()}: once another one is lost, this "
        f"one ends too, within {2 * heartbeat_timeout_seconds} s; {_AGAIN}",
        file=sys.stderr,
        flush=True,
    )


def is_lead_process() -> bool:
    """Whether this process writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def lead_process_first(name: str) -> Iterator[None]:
    """The first process goes through, then all others at once, to find what it has made.

    `name` is told where they do not meet.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        if not is_lead_process():
            multihost_utils.sync_global_devices(name)
        yield
    finally:
        if is_lead_process():
            multihost_utils.sync_global_devices(name)


def local_slice(mesh: Mesh) -> tuple[int, int]:
    """Which rows of a batch this process reads: the block of this index, of so many equal ones.

    Raises:
      UserError: its devices do not hold such a block.
    """
    ways = config_from_mesh(mesh).batch_shards
    held = NamedSharding(mesh, batch_spec()).addressable_devices_indices_map((ways,))
    rows = sorted({range(ways)[index[0]].start for index in held.values() if index is not None})
    if not rows or ways % len(rows) or rows[0] % len(rows) or rows[-1] - rows[0] >= len(rows):
        raise UserError(
            f"--mesh={config_from_mesh(mesh)}: process {jax.process_index()} would read the rows {rows} "
            f"of every {ways}; accepted is a mesh that gives each process one block of them"
        )
    return rows[0] // len(rows), ways // len(rows)


def make_global_batch(rows: Any, mesh: Mesh) -> Any:
    """The batch of which every process holds its own `part` of the rows.

    Raises:
      UserError: of several processes, their rows do not divide among their devices.
    """
    count = local_slice(mesh)[1]
    if count == 1:
        return shard_batch(rows, mesh)
    ways = config_from_mesh(mesh).batch_shards // count
    for own in {len(leaf) for leaf in jax.tree.leaves(rows)}:
        if own % ways:
            raise UserError(
                f"--mesh={config_from_mesh(mesh)}: {own * count} rows of a batch do not divide into "
                f"{ways * count}, as several processes need"
            )
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), rows)


def any_process_signalled(yes: bool, mesh: Mesh) -> jax.Array:
    """How many devices' processes say yes; the same number for all, once it is read."""
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    own = np.full(len(sharding.addressable_devices), yes, np.int32)
    return _total(jax.make_array_from_process_local_data(sharding, own))


_total = jax.jit(jnp.sum)


@contextlib.contextmanager
def exit_if_peer_lost(label: str) -> Iterator[None]:
    """Ends this process, with a line that says so, once another one is lost.

    At once, not by an exception: whatever would be closed on the way waits for the lost one. Where
    a device waits and no connection tells of it, JAX's own service does after `SILENCE`, and ends
    the process with a line of its own ("another task died").
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: {label}: process {jax.process_index()} of {jax.process_count()} cannot go on, "
            f"another one is lost or has failed ({str(error).splitlines()[0]}); {_AGAIN}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_PEER_LOST)
