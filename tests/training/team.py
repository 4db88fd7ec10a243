"""Members of a grid over the toy language, and what may happen to one of them on the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fm.training import (
    BitsPerByte,
    BitsPerDimension,
    Objective,
    OptimizerConfig,
    TrainConfig,
    params_digest,
    sweep,
    train_loop,
)
from fm.training.sweep import Trial
from tests.training.problems import IMAGE, TEXT, VOCAB, batches, images, params

STEPS = 7
MUON = OptimizerConfig("muon", learning_rate=0.01, adam_learning_rate=0.02)
ADAM = OptimizerConfig("adamw", learning_rate=0.01)
BAG = Objective(causal_lm=0.25, masked_lm=0.0, bag_of_words=0.75)
MASKED = Objective(masked_lm=1.0)
WEIGHTS = jnp.linspace(0.5, 2.0, VOCAB)
RUN = TrainConfig(STEPS, checkpoint_every=3, log_every=2, validate_every=4)


class Stream:
    """Batches of a seed, with something that happens when number `at` is taken."""

    def __init__(self, seed=0, *, pictures=False, at=None, happens=None):
        self._seed, self._pictures, self._at, self._happens = seed, pictures, at, happens
        self._text, self.taken = batches(seed), 0

    def __next__(self):
        self.taken += 1
        text = next(self._text)
        batch = images(seed=100 * self._seed + self.taken) if self._pictures else text
        return self._happens(batch) if self._happens and self.taken == self._at else batch

    def get_state(self):
        return {"text": self._text.get_state(), "taken": self.taken}

    def set_state(self, state):
        self._text.set_state(state["text"])
        self.taken = state["taken"]


def text_member(seed=0, rule=ADAM, weights=None, start=None, **options):
    run = dataclasses.replace(RUN, seed=seed, steps=options.pop("steps", STEPS))
    stream = {name: options.pop(name) for name in ("at", "happens") if name in options}
    return Trial(
        params(TEXT, seed if start is None else start),
        Stream(seed, **stream),
        rule,
        run,
        BitsPerByte(2.0 + seed),
        token_weights=None if weights is None else WEIGHTS**seed,
        validation=[next(batches(seed=50 + seed))],
        run_name=f"seed {seed}",
        **options,
    )


def image_member(seed=0, rule=ADAM):
    stream = Stream(seed, pictures=True)
    run = dataclasses.replace(RUN, seed=seed)
    return Trial(params(IMAGE, seed), stream, rule, run, BitsPerDimension())


def faster(rule, factor):
    rates = {"learning_rate": rule.learning_rate * factor, "adam_learning_rate": 0.001 * factor}
    return dataclasses.replace(rule, **rates)


def separate(one, model, objective, out=None):
    return train_loop.train(
        one.params, one.batches, model, objective, one.rule, one.run,
        out_dir=out, metric_unit=one.unit, token_weights=one.token_weights,
        validation=one.validation, run_name=one.label, identity=one.identity,
    )  # fmt: skip


def close(a, b, rtol=2e-3, atol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


def three(tmp=None, **options):
    asked = (0, 1.0), (1, 1.0), (1, 0.3)
    return [
        text_member(
            seed, faster(ADAM, factor), out=tmp and tmp / f"member-{r}",
            **(options if r == 1 else {}),
        )
        for r, (seed, factor) in enumerate(asked)
    ]  # fmt: skip


def go(grid_of, out=None, way="vmap"):
    return sweep.sweep(grid_of, TEXT, MASKED, out_dir=out, batching=way, run_name="toy")


def digests(got):
    return [params_digest(each.params) for each in got.trained]
