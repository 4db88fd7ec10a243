"""A run of seconds over a toy language, and events that may interrupt it."""

import os
import signal
import time

from fm.training import (
    BitsPerByte,
    PretrainingObjective,
    TrainConfig,
    metric_writer,
    params_digest,
    train,
)
from fm.training.progress import TIMINGS
from tests.training.helpers_models import ADAM, TEXT, batches, params

STEPS = 23
RUN = TrainConfig(steps=STEPS, checkpoint_every=5, log_every=4, validate_every=10)
MASKED = PretrainingObjective(masked_lm=1.0)


class ToyBatches:
    """Batches of the toy language; `event(batch)` replaces batch number `at`."""

    def __init__(self, at=None, event=None):
        self._batches, self._taken, self._at, self._event = batches(), 0, at, event

    def __next__(self):
        batch = next(self._batches)
        self._taken += 1
        return self._event(batch) if self._event and self._taken == self._at else batch

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


def stall(batch):
    time.sleep(60)
    return batch


def run_toy(out_dir, batch_iterator=None, run=RUN, optimizer=ADAM, objective=MASKED, **options):
    return train(
        params(TEXT, zeros=True),
        batch_iterator or ToyBatches(),
        TEXT,
        objective,
        optimizer,
        run,
        out_dir=out_dir,
        metric_unit=BitsPerByte(2.0),
        **{"validation": [next(batches(seed=1))], "run_name": "toy", **options},
    )


def log_records(out_dir):
    """The log without timings."""
    return [
        {name: value for name, value in record.items() if name not in TIMINGS}
        for record in metric_writer.read_records(out_dir / "metrics.jsonl")
    ]


def assert_same_run(result, out_dir, expected):
    want, want_records = expected
    assert params_digest(result.params) == params_digest(want.params)
    assert result.curve == want.curve
    assert log_records(out_dir) == want_records
    assert (result.tokens, result.flops, result.steps) == (want.tokens, want.flops, want.steps)
