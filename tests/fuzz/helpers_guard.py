"""One command, in process, held to what every experiment promises about bad input.

No training: whatever gets past all checks is stopped where the work would begin.
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

# Of each test: a few, the same ones every time; `FM_FUZZ_CASES=100` for as many new ones.
CASES = int(os.environ.get("FM_FUZZ_CASES", "10"))
cases = settings(
    max_examples=CASES,
    derandomize="FM_FUZZ_CASES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# Of what takes a second or more a case.
few = settings(cases, max_examples=max(1, CASES // 5))
# Of the processor, not of the clock, which goes on while others are at work; and of the clock, for
# what waits and works at nothing.
MOST_SECONDS, MOST_WAITING = 60, 600

# Other processes and machines, of whom none is there.
OTHERS = {
    "jax.distributed.initialize": RuntimeError("nobody is there"),
    "fm.study.ray_executor.ray_cluster": UserError("no cluster is there"),
}
# Where the work of an experiment begins.
WORK = {
    "compare": ["fm.study.runner.CompareStudy.run"],
    "ablate": ["fm.study.runner.CompareStudy.run"],
    "multitask": ["fm.study.runner.CompareStudy.run"],
    "pretrain": [
        "experiments.pretrain.pretrain",
        "experiments.pretrain.joint_pretraining.pretrain_joint",
    ],
    "adapt": ["experiments.adapt.build_classification_arm"],
    "text_quality": ["experiments.text_quality.run_study"],
    "benchmark": ["experiments.benchmark.run_benchmark"],
    "generate": ["experiments.generate.IncrementalGenerator"],
    "attention_maps": ["experiments.attention_maps._attention_maps"],
    "report": [],
    "plan": [],
}


class Hangs(Exception):
    """A command that does not end."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: 0 done, 2 refused, 130 about to begin work."""

    code: int
    out: str
    error: str


def run(name: str, arguments: Sequence[str], out: pathlib.Path) -> Outcome:
    """Runs an experiment up to where its work would begin, and checks what must always hold.

    Anything that is not a refusal in one line comes out as what it is: an exception.
    """
    module = importlib.import_module(f"experiments.{name}")
    # As a terminal's: the error line shows what cannot be encoded, other output cannot.
    streams = [
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)
        for errors in ("strict", "backslashreplace")
    ]
    with contextlib.ExitStack() as stack:
        begins = dict.fromkeys(WORK[name], Interrupted("work would begin"))
        for place, effect in (OTHERS | begins).items():
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
        raise Hangs(f"over {MOST_SECONDS} s of work, or {MOST_WAITING} s")

    clocks = (
        (signal.SIGPROF, signal.ITIMER_PROF, MOST_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, MOST_WAITING),
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
