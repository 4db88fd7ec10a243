"""Fine-tuning of every parameter, or of adapters, with a new head: a whole run as one program."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.attention.mesh import by_rows
from fm.errors import UserError
from fm.model.config import CONTINUOUS, ModelConfig
from fm.transfer import lora
from fm.transfer.descent import descend, order, pad
from fm.transfer.dropout import some_pieces
from fm.transfer.examples import Rows
from fm.transfer.features import Reading, features, pooled
from fm.transfer.sweep import BATCH_SIZE


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
      learning_rate: AdamW's peak, warmed up over a tenth of the steps, then cosine to zero.
      steps: updates, at least.
      epochs: passes over the labels, at least: more labels are trained on for longer.
      batch_size: examples per update.
      keep: pieces of an example a training step sees, drawn anew each time (piece dropout);
        0 for all.
      weight_decay: decoupled, on everything trained.
      reading: how pieces become one vector; the head reads the final output.
      lora: adapters to train in the model's stead; None to train all of it.
    """

    learning_rate: float = 3e-3
    steps: int = 80
    epochs: float = 0.0
    batch_size: int = 16
    keep: int = 0
    weight_decay: float = 0.01
    reading: Reading = dataclasses.field(default_factory=Reading)
    lora: lora.LoraConfig | None = None

    def __post_init__(self):
        if min(self.steps, self.batch_size) < 1 or min(self.keep, self.epochs) < 0:
            raise UserError(
                f"fine-tuning takes steps={self.steps} and batch_size={self.batch_size} of at "
                f"least 1, keep={self.keep} and epochs={self.epochs} of at least 0"
            )
        if self.keep and self.reading.pool == "each":
            raise UserError(f"keep={self.keep} must be 0 where each piece has a label of its own")

    def updates(self, labels: int) -> int:
        """Updates of a run on so many labels."""
        return max(self.steps, math.ceil(self.epochs * labels / self.batch_size))


def init_head(rows: Rows, model: ModelConfig, classes: int, reading: Reading) -> dict:
    """A head of zeros, so that every arm starts from chance."""
    parts = rows["segments"].shape[1] if reading.pool == "concat" else len(reading.parts)
    return {
        "kernel": jnp.zeros((parts * model.width, classes)),
        "bias": jnp.zeros((classes,)),
    }


def logits(
    tuned: dict, rows: dict[str, jax.Array], model: ModelConfig, reading: Reading
) -> jax.Array:
    """Unnormalised log probabilities of the classes, float32 [B, classes].

    Where the reading is of each piece, [B, L, classes].
    """
    return _score(tuned["head"], pooled(tuned["model"], rows, model, reading)[-1])


def _score(head: dict, features_BE: Any) -> Any:
    scale = ((features_BE**2).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5
    return features_BE * scale @ head["kernel"] + head["bias"]


def finetune(
    params: dict,
    rows: Rows,
    labels: np.ndarray,
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    classes: int,
    seed: int,
    capacity: int,
    steps: int | None = None,
) -> dict:
    """Trains on the labelled rows; on a mesh of `jax.set_mesh`, each batch's rows over its devices.

    Args:
      params: start of the model.
      rows: n labelled examples.
      labels: int [n]; [n, L] where the reading is of each piece, -1 for those without a label.
      model: architecture.
      config: see `FinetuneConfig`.
      classes: number of classes.
      seed: decides batches and which pieces are kept.
      capacity: the arrays are padded to this many rows (never drawn), so that one compiled
        program serves all label budgets.
      steps: updates of a shorter run under its own schedule; `config.updates` unless given.

    Returns:
      `{"model": params, "head": {...}}`, tuned; with LoRA also `adapters`, and "model" is the base
      with these attached, its arrays those of `params`.
    """
    idle, arguments = _arguments(
        params,
        rows,
        labels,
        model,
        config,
        classes=classes,
        seed=seed,
        capacity=capacity,
        steps=steps,
    )
    trained, frozen = _run(*arguments), arguments[1]
    tuned = _whole(trained, frozen, config)
    streams = {**tuned["model"]["streams"], **idle}
    return trained | {"model": tuned["model"] | {"streams": streams}}


def _arguments(
    params: dict,
    rows: Rows,
    labels: np.ndarray,
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    classes: int,
    seed: int,
    capacity: int,
    steps: int | None = None,
) -> tuple[dict, tuple]:
    """The heads that are set aside, and what `_run` takes."""
    n = len(labels)
    order_SB = order(n, config.updates(capacity), config.batch_size, seed)
    # What predicts pieces gets no gradient here: set aside, it costs no update either.
    idle, used = _apart(params["streams"])
    start = {**params, "streams": used}
    trained, frozen = apart(start, rows, model, config, classes=classes, seed=seed)
    padded = {key: pad(value, capacity) for key, value in rows.items()}
    # The rate and the number of steps enter as data: one compiled program for all of them.
    shapes = dataclasses.replace(config, learning_rate=0.0)
    return idle, (
        trained,
        frozen,
        padded,
        pad(np.asarray(labels, np.int32), capacity),
        order_SB,
        jax.random.key(seed),
        jnp.float32(config.learning_rate),
        jnp.int32(config.updates(n) if steps is None else steps),
        model,
        shapes,
    )


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a method of adaptation holds in memory.

    Attributes:
      trained: number of parameters trained.
      state: bytes of all parameters, and of gradient and moments of those trained.
      program: bytes the compiled run takes beside its arguments and results; None if not known.
    """

    trained: int
    state: int
    program: int | None


def footprint(
    params: dict,
    rows: Rows,
    labels: np.ndarray,
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    classes: int,
    capacity: int,
) -> Footprint:
    """What `finetune` of the same arguments holds; compiles it, runs nothing."""
    _, arguments = _arguments(
        params, rows, labels, model, config, classes=classes, seed=0, capacity=capacity
    )
    trained, frozen = arguments[:2]
    sizes = [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves(trained)]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    analysis = _run.lower(*arguments).compile().memory_analysis()
    return Footprint(
        trained=sum(size for size, _ in sizes),
        state=held + 4 * sum(nbytes for _, nbytes in sizes),
        program=None if analysis is None else int(analysis.temp_size_in_bytes),
    )


def apart(
    params: dict, rows: Rows, model: ModelConfig, config: FinetuneConfig, *, classes: int, seed: int
) -> tuple[dict, dict]:
    """What a run trains, and what it reads beside it: frozen, without gradient or second copy.

    Without LoRA all is trained and nothing is frozen.
    """
    head = init_head(rows, model, classes, config.reading)
    if config.lora is None:
        return {"model": params, "head": head}, {}
    adapters = lora.init(jax.random.key(seed), params["layers"], config.lora)
    return {"adapters": adapters, "head": head}, {"model": params}


def _whole(trained: dict, frozen: dict, config: FinetuneConfig) -> dict:
    """The model and head that the two parts of `apart` make."""
    if config.lora is None:
        return trained
    model = lora.attach(frozen["model"], trained["adapters"], config.lora)
    return {"model": model, "head": trained["head"]}


def _apart(streams: dict[str, jax.Array]) -> tuple[dict, dict]:
    """The heads that predict pieces, and all else."""
    continuous = {f"{name}_{part}" for name in CONTINUOUS for part in ("head", "bias")}
    heads = {"token_head", *continuous} & streams.keys()
    return (
        {name: streams[name] for name in heads},
        {name: value for name, value in streams.items() if name not in heads},
    )


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _run(trained, frozen, rows, labels, order_SB, rng, peak, steps, model, config):
    def loss(trained, batch, targets):
        tuned = _whole(trained, frozen, config)
        return mean_nats(logits(tuned, batch, model, config.reading), targets)

    def gradient(trained, number):
        chosen = order_SB[number]
        batch = {key: by_rows(value[chosen]) for key, value in rows.items()}
        if config.keep:
            batch = some_pieces(batch, jax.random.fold_in(rng, number), config.keep)
        return jax.grad(loss)(trained, batch, labels[chosen])

    return descend(gradient, trained, peak, steps, config.weight_decay)


def mean_nats(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of labels, int [B]; or of those that are not -1, int [B, L]."""
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
    if labels.ndim == 1:
        return jnp.mean(nats)
    labelled = labels >= 0
    return jnp.sum(nats * labelled) / jnp.maximum(jnp.sum(labelled), 1)


def predict(
    tuned: dict,
    rows: Rows,
    model: ModelConfig,
    *,
    reading: Reading,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The most likely class of every row, int [N]; of every piece [N, L] if read so."""
    made = scores(tuned, rows, model, reading=reading, batch_size=batch_size)
    return made.argmax(axis=-1)


def scores(
    tuned: dict,
    rows: Rows,
    model: ModelConfig,
    *,
    reading: Reading,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Unnormalised log probabilities of every row's classes, as `logits` but of any number."""
    made = features(tuned["model"], rows, model, reading=reading, last=True, batch_size=batch_size)
    return _score(jax.device_get(tuned["head"]), made[:, 0])
