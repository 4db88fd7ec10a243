"""Several JAX processes as one training run, on one machine or many.

Every process runs the same program with the same arguments; arrays span the devices of all
(`jax.distributed`). Only the lead process writes anything but checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.errors import UserError
from fm.parallel.mesh import config_from_mesh
from fm.parallel.sharding import batch_spec, shard_batch

# Seconds without a heartbeat after which JAX's service takes a process for lost.
HEARTBEAT_TIMEOUT_SECONDS = 20
EXIT_PEER_LOST = 3  # exit code
# How gloo, NCCL, gRPC and JAX's coordination service tell of a process that is gone. Their status
# code alone does not say it: INTERNAL and UNKNOWN stand before errors of any kind.
_PEER_LOST = re.compile(
    r"^(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED)\b"
    r"|connection (was )?(closed|reset|refused|aborted|lost|timed out)|broken pipe|socket closed"
    r"|no route to host|(network|host) is (down|unreachable)|failed to connect"
    r"|remote process (has )?exited|ncclRemoteError|ncclSystemError|caused pair closure"
    r"|timed out waiting \d+\s*ms for (send|recv|receive)|barrier timed out|another task died"
    r"|heartbeat|(tasks?|peers?|process(es)?) (is|are|has|have) (unhealthy|lost|died|disconnected)",
    re.IGNORECASE,
)
_RESTART = (
    "the same command, with as many processes as there are then, resumes from the last checkpoint"
)


def initialize(
    coordinator_address: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = HEARTBEAT_TIMEOUT_SECONDS,
) -> None:
    """Joins this process to a multi-process JAX run; call it before JAX is used for anything else.

    On CPU the processes exchange arrays through gloo, at the address of the machine's own host
    name; JAX has no other way there.

    Args:
      coordinator_address: HOST:PORT where the first process listens; "auto" takes everything from
        the environment (Slurm, Open MPI, Kubernetes, TPU; see `jax.distributed.initialize`).
      num_processes: number of processes.
      process_id: index of this process, from 0.
      heartbeat_timeout_seconds: a process silent for longer is lost.

    Raises:
      UserError: the arguments do not fit together, or "auto" finds nothing.
    """
    host, _, port = coordinator_address.rpartition(":")
    if coordinator_address != "auto" and (
        not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16)
        or num_processes is None
        or process_id is None
        or process_id >= num_processes
    ):
        raise UserError(
            f"--coordinator_address={coordinator_address}: takes HOST:PORT, with "
            "--num_processes=N and --process_id from 0 to N-1, or auto"
        )
    # By default JAX listens on all interfaces.
    bound = (
        coordinator_address if re.fullmatch(r"localhost|127(\.[0-9]+){3}|\[::1\]", host) else None
    )
    # The only collectives of CPU processes; other devices have their own.
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
        raise UserError(f"--coordinator_address={coordinator_address}: {reason}") from error
    # Printed now because JAX's own message on losing a process does not say what to do.
    print(
        f"process {jax.process_index()} of {jax.process_count()}: if another process is lost, this "
        f"one exits too, within {2 * heartbeat_timeout_seconds} s; {_RESTART}",
        file=sys.stderr,
        flush=True,
    )


def is_lead_process() -> bool:
    """Returns whether this is process 0, which alone writes the run's files and prints."""
    return jax.process_index() == 0


def broadcast_from_lead(decide: Callable[[], int]) -> int:
    """Calls `decide` on the lead process alone and returns what it gives on every process.

    Args:
      decide: returns an int32.

    Raises:
      UserError: on the other processes, if it raises on the lead process.
      Exception: on the lead process, whatever it raises.
    """
    if jax.process_count() == 1:
        return decide()
    value, error = 0, None
    if is_lead_process():
        try:
            value = decide()
        except Exception as raised:
            error = raised
    told = multihost_utils.broadcast_one_to_all(np.array([value, error is not None], np.int32))
    if error is not None:
        raise error
    if told[1]:
        raise UserError(f"process {jax.process_index()}: process 0 has failed and tells why")
    return int(told[0])


@contextlib.contextmanager
def lead_process_first(name: str) -> Iterator[None]:
    """Runs the block on process 0 first, then on the others (one downloads, the rest read).

    `name` labels the barrier in JAX's error if the processes do not meet.
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


def local_shard_index_and_count(mesh: Mesh) -> tuple[int, int]:
    """Returns (i, n): this process reads block i of the n equal blocks of a global batch's rows.

    Raises:
      UserError: its devices do not hold one contiguous block of rows.
    """
    shards = config_from_mesh(mesh).batch_shards
    indices = NamedSharding(mesh, batch_spec()).addressable_devices_indices_map((shards,))
    rows = sorted(
        {range(shards)[index[0]].start for index in indices.values() if index is not None}
    )
    if not rows or shards % len(rows) or rows[0] % len(rows) or rows[-1] - rows[0] >= len(rows):
        raise UserError(
            f"--mesh={config_from_mesh(mesh)}: process {jax.process_index()} would read the rows "
            f"{rows} of every {shards}; accepted is a mesh that gives each process one block"
        )
    return rows[0] // len(rows), shards // len(rows)


def make_global_batch(rows: Any, mesh: Mesh) -> Any:
    """Returns the global batch on the mesh, assembled from the rows that each process read.

    Raises:
      UserError: of several processes, the rows do not divide among the devices.
    """
    count = local_shard_index_and_count(mesh)[1]
    if count == 1:
        return shard_batch(rows, mesh)
    shards = config_from_mesh(mesh).batch_shards // count
    for num_rows in {len(leaf) for leaf in jax.tree.leaves(rows)}:
        if num_rows % shards:
            raise UserError(
                f"--mesh={config_from_mesh(mesh)}: {num_rows * count} rows of a batch do not "
                f"divide into {shards * count}, as several processes need"
            )
    sharding = NamedSharding(mesh, batch_spec())
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), rows)


def count_signalled_devices(signalled: bool, mesh: Mesh) -> jax.Array:
    """Returns the number of devices whose process was signalled, the same on every process.

    It is dispatched asynchronously.
    """
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    own = np.full(len(sharding.addressable_devices), signalled, np.int32)
    return _sum(jax.make_array_from_process_local_data(sharding, own))


_sum = jax.jit(jnp.sum)


def means_peer_lost(error: BaseException) -> bool:
    """Returns whether an error of JAX means that another process is lost or does not answer."""
    return bool(_PEER_LOST.search(str(error)))


@contextlib.contextmanager
def exit_if_peer_lost(run_name: str) -> Iterator[None]:
    """Runs the block; exits with `EXIT_PEER_LOST` and a one-line error if another process dies.

    Any other error of JAX passes through with its traceback.

    It exits at once, not by an exception: whatever would be closed on the way waits for the lost
    process. Where no connection reports the loss, JAX's own service does after
    `HEARTBEAT_TIMEOUT_SECONDS`, and ends the process with its own message ("another task died").
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not means_peer_lost(error):
            raise
        print(
            f"error: {run_name}: process {jax.process_index()} of {jax.process_count()} cannot "
            f"continue, another one is lost ({str(error).splitlines()[0]}); "
            f"{_RESTART}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_PEER_LOST)
