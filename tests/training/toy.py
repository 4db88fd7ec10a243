"""A run of seconds over a toy language, and what may happen to it on the way."""

import os
import signal
import time

from fm.training import BitsPerByte, Objective, TrainConfig, metric_writer, params_digest, train
from tests.training.problems import ADAM, TEXT, batches, params

STEPS = 23
RUN = TrainConfig(steps=STEPS, checkpoint_every=5, log_every=4, validate_every=10)
MASKED = Objective(masked_lm=1.0)
PACE = ("tokens_per_second", "gemm_utilization")


class Pipeline:
    """Batches of the toy language, with something that happens when batch `at` is taken."""

    def __init__(self, at=None, happens=None):
        self._batches, self._taken, self._at, self._happens = batches(), 0, at, happens

    def __next__(self):
        batch = next(self._batches)
        self._taken += 1
        return self._happens(batch) if self._happens and self._taken == self._at else batch

    def get_state(self):
        return {"batches": self._batches.get_state(), "taken": self._taken}

    def set_state(self, state):
        self._batches.set_state(state["batches"])
        self._taken = state["taken"]


class PowerCut(Exception):
    pass


def power_cut(_):
    raise PowerCut


def run_dry(_):
    raise StopIteration


def terminate(batch):
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


def poison(batch):
    return batch | {"tokens": batch["tokens"] + 10**6}


def go(out, pipeline=None, run=RUN, rule=ADAM, objective=MASKED, **options):
    return train(
        params(TEXT, zeros=True),
        pipeline or Pipeline(),
        TEXT,
        objective,
        rule,
        run,
        out_dir=out,
        metric_unit=BitsPerByte(2.0),
        **{"validation": [next(batches(seed=1))], "label": "toy", **options},
    )


def lines(out):
    """The log without what a clock put in."""
    return [
        {name: figure for name, figure in record.items() if name not in PACE}
        for record in metric_writer.read_records(out / "metrics.jsonl")
    ]


def assert_as_unbroken(result, out, unbroken):
    want, want_lines = unbroken
    assert params_digest(result.params) == params_digest(want.params)
    assert result.curve == want.curve
    assert lines(out) == want_lines
    assert (result.tokens, result.flops, result.steps) == (want.tokens, want.flops, want.steps)


def stall(batch):
    time.sleep(60)
    return batch
