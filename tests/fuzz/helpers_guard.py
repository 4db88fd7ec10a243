"""Runs an experiment in this process and checks what all of them promise about bad input.

Nothing is trained: a command that passes all checks is stopped where its work would begin.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence
from unittest import mock

from hypothesis import HealthCheck, settings

from experiments import cli
from fm.errors import UserError
from fm.training.signals import Interrupted

# A few cases per test, always the same; FM_FUZZ_CASES=100 draws a hundred new ones.
CASES = int(os.environ.get("FM_FUZZ_CASES", "10"))
cases = settings(
    max_examples=CASES,
    derandomize="FM_FUZZ_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# For tests of a second or more per case.
few = settings(cases, max_examples=max(1, CASES // 5))
# CPU time, which other processes do not lengthen, and wall time, for a command that only waits.
MAX_CPU_SECONDS, MAX_SECONDS = 60, 600

# Other processes and machines, which cannot be reached.
UNREACHABLE = {
    "jax.distributed.initialize": RuntimeError("no coordinator"),
    "fm.study.ray_executor.ray_cluster": UserError("no cluster"),
}
# Where the work of an experiment begins.
WORK = {
    "compare": ["fm.study.runner.CompareStudy.run"],
    "ablate": ["fm.study.runner.CompareStudy.run"],
    "claims": ["fm.study.claims.runner.ClaimStudy.run"],
    "search": ["fm.study.search._run_trial"],
    "multitask": ["experiments.multitask.run_multitask"],
    "pretrain": [
        "experiments.pretraining_runs.pretrain",
        "experiments.pretraining_runs.joint_pretraining.pretrain_joint",
    ],
    "adapt": [
        "experiments.adapt.HeadTaskType.build_model_arm",
        "fm.study.sequence_task_types.NamedEntityRecognition.build_head",
        "fm.study.sequence_task_types.TextGeneration.build_head",
    ],
    "text_quality": ["experiments.text_quality.run_study"],
    "benchmark": ["experiments.benchmark.run_benchmark"],
    "export": ["experiments.export.export_pretrained"],
    "predict": ["experiments.predict.saved_model.load"],
    "generate": ["experiments.generate.IncrementalGenerator"],
    "attention_maps": ["experiments.attention_maps._attention_maps"],
    "report": [],
    "paired": [],
    "doctor": ["experiments.doctor._environment"],
    "plan": [],
}


class Hangs(Exception):
    """The command does not end."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: code 0 done, 2 refused, 130 about to begin its work."""

    code: int
    out: str
    error: str


def run(name: str, arguments: Sequence[str], out: pathlib.Path) -> Outcome:
    """Runs an experiment up to where its work would begin.

    Checks that the exit code is 0, 2 or 130, that there is one error line unless it is 0, and that
    a refused command leaves no file in `out`. Exceptions other than refusals are raised.
    """
    module = importlib.import_module(f"experiments.{name}")
    # Like a terminal: stderr escapes what it cannot encode, stdout fails.
    streams = [
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)
        for errors in ("strict", "backslashreplace")
    ]
    with contextlib.ExitStack() as stack:
        begins = dict.fromkeys(WORK[name], Interrupted("work would begin"))
        for place, effect in (UNREACHABLE | begins).items():
            stack.enter_context(mock.patch(place, side_effect=effect))
        stack.enter_context(contextlib.redirect_stdout(streams[0]))
        stack.enter_context(contextlib.redirect_stderr(streams[1]))
        stack.enter_context(_limited())
        code = cli.call(name, module.__doc__, module.define, module.main, list(arguments))
    texts = [stream.buffer.getvalue().decode() for stream in streams]
    lines = [line for line in texts[1].splitlines() if line.startswith("error: ")]
    assert code in (0, 2, 130) and "Traceback" not in "".join(texts), texts
    assert len(lines) == (code != 0), (code, texts)
    there = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else []
    left = there if code == 2 else [path for path in there if path.suffix == ".partial"]
    assert not left, left
    return Outcome(code, texts[0], lines[0] if lines else "")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_):
        raise Hangs(f"over {MAX_CPU_SECONDS} s of CPU time or {MAX_SECONDS} s")

    clocks = (
        (signal.SIGPROF, signal.ITIMER_PROF, MAX_CPU_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, MAX_SECONDS),
    )
    before = [signal.signal(number, stop) for number, _, _ in clocks]
    for _, clock, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)
