"""A tiny run as one of several processes, for `tests/parallel/test_distributed.py`.

python -m tests.parallel.subprocess_cases.distributed_run
    OUT MESH COORDINATOR NUM_PROCESSES PROCESS_ID HEARTBEAT_TIMEOUT [EVENT:STEP]

An event happens before this process reads the batch of its step: `dies` (SIGKILL), `stops`
(SIGTERM, as a machine that is taken away gets), `stalls` (SIGSTOP, as silent as a machine lost).
"""

import json
import os
import pathlib
import signal
import sys

import numpy as np

from fm.errors import UserError
from fm.parallel import distributed
from fm.parallel import mesh as meshes
from fm.training import BitsPerByte, Interrupted, TrainConfig, params_digest
from fm.training import train as train_on
from tests.training.helpers_models import ADAM, NEXT, TEXT, batches, params

STEPS = 8
RUN = TrainConfig(steps=STEPS, checkpoint_every=3, log_every=2, validate_every=4)
EVENTS = {"dies": signal.SIGKILL, "stops": signal.SIGTERM, "stalls": signal.SIGSTOP}


class Pipeline:
    """Batches that note which rows were read, and what happens before one of them."""

    def __init__(self, batches, event="", at=0, taken=0):
        self._batches, self._event, self._at, self._taken = batches, event, at, taken
        self.rows = 0

    def __next__(self):
        self._taken += 1
        if self._taken == self._at:
            os.kill(os.getpid(), EVENTS[self._event])
        batch = next(self._batches)
        self.rows = len(batch["tokens"])
        return batch

    def get_state(self):
        return {"batches": self._batches.get_state(), "taken": self._taken}

    def set_state(self, state):
        self._batches.set_state(state["batches"])
        self._taken = state["taken"]

    def shard(self, index, count):
        self.read = Pipeline(self._batches.shard(index, count), self._event, self._at)
        return self.read


def main(out, mesh, coordinator, num_processes, process_id, timeout, event=""):
    if int(num_processes) > 1:
        distributed.initialize(coordinator, int(num_processes), int(process_id), int(timeout))
    kind, _, at = event.partition(":")
    pipeline = Pipeline(batches(batch_size=8), kind, int(at or 0))
    done = train_on(
        params(TEXT, zeros=True), pipeline, TEXT, NEXT, ADAM, RUN, out_dir=pathlib.Path(out),
        metric_unit=BitsPerByte(1.0), validation=[next(batches(seed=1, batch_size=8))],
        mesh=meshes.parse_mesh(mesh).build(),
    )  # fmt: skip
    printed = {
        "digest": params_digest(done.params), "tokens": done.tokens, "rows": pipeline.read.rows,
        "curve": done.curve,
    }  # fmt: skip
    print(json.dumps(printed))
    if distributed.is_lead_process():
        np.save(pathlib.Path(out) / "up.npy", done.params["layers"]["up"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (UserError, Interrupted) as error:
        sys.exit(f"error: {error}")
