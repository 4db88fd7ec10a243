"""Training in several processes of this machine: same result, a lost peer, a signal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from fm.errors import UserError
from fm.parallel import distributed
from fm.training.progress import TIMINGS
from tests.training.helpers_models import batches

ROOT = Path(__file__).parents[2]
# Ours where a connection tells of it, else that of JAX's service.
LOST = re.compile(r"process \d of \d cannot continue, another one is lost|another task died")
PACE = ("seconds", *TIMINGS)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(cache, out, mesh, count, devices, events=(), silence=900):
    """Starts the processes of one run, with timeouts for a busy machine."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=900"
    )
    environ = os.environ | {
        "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache.mkdir("xla")),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # fmt: skip
    at = f"127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-m",
        "tests.parallel.subprocess_cases.distributed_run",
        str(out),
        mesh,
        at,
        str(count),
    ]
    return [
        subprocess.Popen(
            [*command, str(n), str(silence), dict(events).get(n, "")], cwd=ROOT, env=environ,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(count)
    ]  # fmt: skip


def ended(started, timeout=900):
    """Waits; returns (exit code, stdout, stderr) of each process."""
    try:
        printed = [each.communicate(timeout=timeout) for each in started]
    finally:
        for each in started:
            each.kill()
    return [(each.returncode, *texts) for each, texts in zip(started, printed, strict=True)]


def finished(started):
    """Waits for a run that must succeed; returns the JSON each process printed."""
    every = ended(started)
    assert [code for code, _, _ in every] == [0] * len(every), "\n".join(e for _, _, e in every)
    return [json.loads(out.splitlines()[-1]) for _, out, _ in every]


@pytest.fixture(scope="module")
def alone(request, tmp_path_factory):
    """The uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("alone")
    return finished(start(request.config.cache, out, "fsdp:4", 1, 4))[0], np.load(out / "up.npy")


def same(printed, out, alone):
    """Checks that a run has the result of the run of one process."""
    expected, up = alone
    assert len({each["digest"] for each in printed}) == 1
    assert {each["tokens"] for each in printed} == {expected["tokens"]}
    np.testing.assert_allclose(np.load(out / "up.npy"), up, atol=1e-5)
    # The lead process has the curve; what precedes an interruption is read back from its log.
    for name in expected["curve"]:
        if name not in PACE:
            found = printed[0]["curve"][name]
            np.testing.assert_allclose(found, expected["curve"][name], rtol=1e-4, err_msg=name)


def test_slices_of_batches_make_up_the_batches():
    whole = batches(batch_size=8)
    parts = [batches(batch_size=8).shard(n, 4) for n in range(4)]
    for _ in range(20):
        rows = [next(part) for part in parts]
        for name, value in next(whole).items():
            assert np.array_equal(np.concatenate([each[name] for each in rows]), value)
    place = whole.get_state()
    assert place == parts[3].get_state()
    on = batches(batch_size=8).shard(1, 2)
    on.set_state(place)
    assert np.array_equal(next(on)["tokens"], next(whole)["tokens"][4:])


def test_slices_must_be_equal():
    with pytest.raises(ValueError, match="3 processes take equal parts of a batch"):
        batches(batch_size=8).shard(0, 3)
    with pytest.raises(ValueError, match="shorter last one"):
        batches(batch_size=8, epochs=1).shard(0, 2)


LOST_PEERS = [
    "INTERNAL: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection "
    "closed by peer [127.0.0.1]:40404",
    "UNKNOWN: Gloo AllReduce failed: [gloo/transport/tcp/pair.cc:589] Read error [::1]:53011: "
    "Connection reset by peer: while running",
    "FAILED_PRECONDITION: Buffer Definition Event: Gloo ReduceScatter failed: Application timeout "
    "caused pair closure",
    "INTERNAL: [gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv "
    "operation to complete",
    "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network "
    "error. Last NCCL warning(error) log entry (may be unrelated) 'socketProgress: Connection "
    "closed by remote peer host'",
    "UNAVAILABLE: failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1234",
    "UNAVAILABLE: Socket closed",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: save_start. This usually happens because a task "
    "triggered the barrier unexpectedly early",
    "INTERNAL: The following tasks are unhealthy (stopped sending heartbeats): /job:jax/task:1",
    "ABORTED: Collective operation was aborted",
]
OWN_ERRORS = [
    "INTERNAL: a bug",
    "RESOURCE_EXHAUSTED: Out of memory allocating 16004000000 bytes",
    "INTERNAL: NCCL operation ncclCommInitRankConfig() failed: unhandled cuda error. Last NCCL "
    "warning(error) log entry (may be unrelated) 'Cuda failure 2 out of memory'",
    "INVALID_ARGUMENT: Executable expected shape f32[2,3] for argument 0 but got f32[4,3]",
    "UNIMPLEMENTED: Multiprocess computations aren't implemented on the CPU backend.",
    "FAILED_PRECONDITION: DNN library initialization failed",
    "INTERNAL: CpuCallback error calling callback: Traceback (most recent call last): KeyError",
    "INTERNAL: Failed to execute XLA Runtime executable: run time error: custom call failed",
    "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
    "UNKNOWN: no kernel image is available for execution on the device",
    "NOT_FOUND: No registered implementation for custom call to cudnn",
]


@pytest.mark.parametrize("message", LOST_PEERS)
def test_a_lost_process_is_told_in_one_line(message, monkeypatch, capsys):
    left = []
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.os, "_exit", left.append)
    with distributed.exit_if_peer_lost("toy"):
        raise JaxRuntimeError(message + "\nmore")
    assert left == [distributed.EXIT_PEER_LOST]
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and LOST.search(told) and message in told


@pytest.mark.parametrize("message", OWN_ERRORS)
def test_an_error_of_its_own_keeps_its_traceback(message, monkeypatch, capsys):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.os, "_exit", lambda _: pytest.fail("it exits"))
    error = JaxRuntimeError(message)
    with pytest.raises(JaxRuntimeError) as caught, distributed.exit_if_peer_lost("toy"):
        raise error
    assert caught.value is error and not capsys.readouterr().err


@pytest.mark.parametrize("message", LOST_PEERS)
def test_one_process_has_lost_nobody(message):
    with pytest.raises(JaxRuntimeError), distributed.exit_if_peer_lost("toy"):
        raise JaxRuntimeError(message)


@pytest.mark.parametrize("lead", [True, False])
def test_what_the_lead_process_decides_is_told(monkeypatch, lead):
    sent = []

    def broadcast(values):
        sent.append([int(value) for value in values])
        return np.array([7, failed], np.int32) if not lead else values

    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.jax, "process_index", lambda: int(not lead))
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", broadcast)
    failed = 0
    decide = (lambda: 7) if lead else (lambda: pytest.fail("only the lead process decides"))
    assert distributed.broadcast_from_lead(decide) == 7
    failed = 1

    def fail():
        raise OSError("a disk")

    # The others are told before it raises, so that they do not wait.
    error, told = (OSError, "a disk") if lead else (UserError, "process 0 has failed")
    with pytest.raises(error, match=told):
        distributed.broadcast_from_lead(fail)
    assert sent == ([[7, 0], [0, 1]] if lead else [[0, 0], [0, 0]])


@pytest.mark.slow
def test_several_processes_resume_from_the_same_step_past_a_damaged_one(request, tmp_path, alone):
    cache = request.config.cache
    every = ended(start(cache, tmp_path, "fsdp:4", 2, 2, {1: "stops:4"}.items()))
    assert all("the same command resumes" in error for _, _, error in every), every
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    (newest / "digests.json").write_text("{}")
    again = ended(start(cache, tmp_path, "fsdp:4", 2, 2))
    assert [code for code, _, _ in again] == [0, 0], again
    assert all("resumed at step 3 of 8" in error for _, _, error in again), again
    assert (tmp_path / "checkpoints" / f"damaged-{newest.name}").is_dir()
    same([json.loads(out.splitlines()[-1]) for _, out, _ in again], tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "mesh"), [(2, 2, "fsdp:4"), (4, 1, "data:2,fsdp:2")])
def test_several_processes_give_the_result_of_one(request, tmp_path, alone, count, devices, mesh):
    printed = finished(start(request.config.cache, tmp_path, mesh, count, devices))
    assert [each["rows"] for each in printed] == [8 // count] * count
    same(printed, tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "who"), [(2, 0), (4, 3)])
def test_a_run_that_lost_a_process_resumes_with_others(request, tmp_path, alone, count, who):
    cache, devices = request.config.cache, 4 // count
    events = {who: "dies:6"}.items()
    started = start(
        cache, tmp_path, "fsdp:4", count, devices, events, distributed.HEARTBEAT_TIMEOUT_SECONDS
    )
    died = started[who].wait(900)
    assert died == -signal.SIGKILL, ended(started)
    since = time.monotonic()
    others = [each for n, each in enumerate(ended(started)) if n != who]
    # Wall time is asserted here because not hanging is what is tested.
    assert time.monotonic() - since < 60
    for code, _, error in others:
        assert code != 0 and LOST.search(error), error
        assert "as many processes as there are then, resumes from the last checkpoint" in error
    again = start(cache, tmp_path, "data:4", 6 - count, 4 // (6 - count))
    same(finished(again), tmp_path, alone)


@pytest.mark.slow
def test_a_silent_machine_is_lost(request, tmp_path):
    cache = request.config.cache
    started = start(
        cache,
        tmp_path,
        "fsdp:4",
        2,
        2,
        {1: "stalls:6"}.items(),
        distributed.HEARTBEAT_TIMEOUT_SECONDS,
    )
    if not os.WIFSTOPPED(os.waitpid(started[1].pid, os.WUNTRACED)[1]):
        pytest.fail(str(ended(started)))
    since = time.monotonic()
    started[0].wait(900)
    assert time.monotonic() - since < 60
    started[1].kill()
    code, _, error = ended(started)[0]
    assert code != 0 and LOST.search(error), error


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(request, tmp_path, alone):
    cache = request.config.cache
    every = ended(start(cache, tmp_path, "fsdp:4", 2, 2, {1: "stops:4"}.items()))
    for code, _, error in every:
        assert code == 1 and "the same command resumes" in error, error
    assert "stopped by SIGTERM, step 5 of 8 is saved" in every[1][2]
    same(finished(start(cache, tmp_path, "fsdp:4", 1, 4)), tmp_path, alone)
