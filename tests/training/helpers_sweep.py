"""Trials over the toy language, and events that may happen to one of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fm.training import (
    BitsPerByte,
    BitsPerDimension,
    OptimizerConfig,
    PretrainingObjective,
    TrainConfig,
    Trial,
    params_digest,
)
from fm.training.sweep import sweep
from fm.training.train_loop import train_trial
from tests.training.helpers_models import IMAGE, TEXT, VOCAB, batches, images, params

STEPS = 7
MUON = OptimizerConfig("muon", learning_rate=0.01, adam_learning_rate=0.02)
ADAM = OptimizerConfig("adamw", learning_rate=0.01)
BAG = PretrainingObjective(causal_lm=0.25, masked_lm=0.0, bag_of_words=0.75)
MASKED = PretrainingObjective(masked_lm=1.0)
WEIGHTS = jnp.linspace(0.5, 2.0, VOCAB)
RUN = TrainConfig(STEPS, checkpoint_every=3, log_every=2, validate_every=4)


class Stream:
    """Batches of a seed; `event(batch)` replaces batch number `at`."""

    def __init__(self, seed=0, *, pictures=False, at=None, event=None):
        self._seed, self._pictures, self._at, self._event = seed, pictures, at, event
        self._text, self.taken = batches(seed), 0

    def __next__(self):
        self.taken += 1
        text = next(self._text)
        batch = images(seed=100 * self._seed + self.taken) if self._pictures else text
        return self._event(batch) if self._event and self.taken == self._at else batch

    def get_state(self):
        return {"text": self._text.get_state(), "taken": self.taken}

    def set_state(self, state):
        self._text.set_state(state["text"])
        self.taken = state["taken"]


def text_trial(seed=0, optimizer=ADAM, weights=None, **options):
    run = dataclasses.replace(RUN, seed=seed, **options.pop("run", {}))
    stream = {name: options.pop(name) for name in ("at", "event") if name in options}
    return Trial(
        params(TEXT, seed),
        Stream(seed, **stream),
        optimizer,
        run,
        BitsPerByte(2.0 + seed),
        token_weights=None if weights is None else WEIGHTS**seed,
        validation=[next(batches(seed=50 + seed))],
        run_name=f"seed {seed}",
        **options,
    )


def image_trial(seed=0, optimizer=ADAM):
    stream = Stream(seed, pictures=True)
    run = dataclasses.replace(RUN, seed=seed)
    return Trial(params(IMAGE, seed), stream, optimizer, run, BitsPerDimension())


def scaled(optimizer, factor):
    rates = {
        "learning_rate": optimizer.learning_rate * factor,
        "adam_learning_rate": 0.001 * factor,
    }
    return dataclasses.replace(optimizer, **rates)


def train_alone(trial, model_config=TEXT, objective=MASKED, out_dir=None):
    return train_trial(dataclasses.replace(trial, out_dir=out_dir), model_config, objective)


def assert_close(a, b, rtol=2e-3, atol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


def three_trials(folder=None, **options):
    """Three trials; `options` are for the second."""
    settings = (0, 1.0), (1, 1.0), (1, 0.3)
    return [
        text_trial(
            seed,
            scaled(ADAM, factor),
            out_dir=folder and folder / f"trial-{r}",
            **(options if r == 1 else {}),
        )
        for r, (seed, factor) in enumerate(settings)
    ]


def run_sweep(trials, out_dir=None, batching="vmap"):
    return sweep(trials, TEXT, MASKED, out_dir=out_dir, batching=batching, run_name="toy")


def digests(found):
    """Digest of each trial's parameters, None for one that stopped."""
    return [result and params_digest(result.params) for result in found.results]
