"""A whole run of AdamW inside one program: the schedule, the order of examples, the updates."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.adaptation import lora
from fm.adaptation.batching import BATCH_SIZE, TokenizedExamples
from fm.adaptation.features import FeatureConfig, extract_features, pooled_features
from fm.errors import UserError
from fm.model.config import CONTINUOUS_MODALITIES, ModelConfig
from fm.parallel.mesh import constrain_batch

# (trained, number of the update) to the gradient of the loss.
GradientFn = Callable[[Any, jax.Array], Any]


def run_adamw(
    gradient: GradientFn, trained: Any, peak: jax.Array, steps: jax.Array, weight_decay: float
) -> Any:
    """Follows the gradient, to be called under jit.

    Args:
      gradient: see `Gradient`.
      trained: parameters to start from.
      peak: AdamW's highest learning rate, warmed up over a tenth of the steps, then cosine to 0.
      steps: number of updates; it may be traced, so that one program serves all lengths.
      weight_decay: decoupled, on everything trained.

    Returns:
      The parameters after the last update.
    """
    rule = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(weight_decay),
    )

    def step(number, carry):
        trained, state = carry
        updates, state = rule.update(gradient(trained, number), state, trained)
        rate = -peak * _schedule(number, steps)
        return optax.apply_updates(trained, jax.tree.map(lambda u: rate * u, updates)), state

    return jax.lax.fori_loop(0, steps, step, (trained, rule.init(trained)))[0]


def batch_order(examples: int, updates: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples each update sees, int [updates, batch_size]: shuffled pass after pass."""
    draws = np.random.default_rng([seed, examples])
    passes = -(-updates * batch_size // examples)
    every = np.concatenate([draws.permutation(examples) for _ in range(passes)])
    return every[: updates * batch_size].reshape(updates, -1)


def pad_rows(value: np.ndarray, length: int) -> np.ndarray:
    """Repeats of the first row, never drawn, up to `length` rows: one shape for all budgets."""
    return np.concatenate([value, np.repeat(value[:1], length - len(value), axis=0)])


def _schedule(number: jax.Array, steps: jax.Array) -> jax.Array:
    """Share of the peak rate: linear over the first tenth, then half a cosine down to zero."""
    warm = jnp.maximum(1, steps // 10)
    rising = (number + 1) / warm
    falling = 0.5 * (1.0 + jnp.cos(jnp.pi * (number - warm) / jnp.maximum(1, steps - warm)))
    return jnp.where(number < warm, rising, falling)


def keep_random_tokens(
    batch: dict[str, jax.Array], rng: jax.Array, tokens_kept: int
) -> dict[str, jax.Array]:
    """`tokens_kept` pieces of every row, drawn at random, padding last.

    Args:
      batch: arrays [B, L, ...], with `segments`, 0 where there is padding.
      rng: key of the draw.
      tokens_kept: pieces of a row (K); all of them where there are fewer.

    Returns:
      The same arrays [B, K, ...].
    """
    filled = batch["segments"] > 0
    L = filled.shape[1]
    order = jax.lax.top_k(jax.random.uniform(rng, filled.shape) - ~filled, min(tokens_kept, L))[1]

    def pick(value):
        return jnp.take_along_axis(
            value, order.reshape(*order.shape, *[1] * (value.ndim - 2)), axis=1
        )

    return {key: pick(value) for key, value in batch.items()}


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
      learning_rate: AdamW's peak, warmed up over a tenth of the steps, then cosine to zero.
      min_steps: updates, at least.
      min_epochs: passes over the labels, at least: more labels are trained on for longer.
      batch_size: examples per update.
      tokens_kept: pieces of an example a training step sees, drawn anew each time (piece dropout);
        0 for all.
      weight_decay: decoupled, on everything trained.
      feature_config: how pieces become one vector; the head reads the final output.
      lora: adapters to train in the model's stead; None to train all of it.
    """

    learning_rate: float = 3e-3
    min_steps: int = 80
    min_epochs: float = 0.0
    batch_size: int = 16
    tokens_kept: int = 0
    weight_decay: float = 0.01
    feature_config: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    lora: lora.LoraConfig | None = None

    def __post_init__(self):
        if min(self.min_steps, self.batch_size) < 1 or min(self.tokens_kept, self.min_epochs) < 0:
            raise UserError(
                f"fine-tuning takes min_steps={self.min_steps} and batch_size={self.batch_size} of at "
                f"least 1, tokens_kept={self.tokens_kept} and min_epochs={self.min_epochs} of at least 0"
            )
        if self.tokens_kept and self.feature_config.pooling == "each":
            raise UserError(
                f"tokens_kept={self.tokens_kept} must be 0 where each piece has a label of its own"
            )

    def num_steps(self, num_labels: int) -> int:
        """Updates of a run on so many labels."""
        return max(self.min_steps, math.ceil(self.min_epochs * num_labels / self.batch_size))


def init_head(
    examples: TokenizedExamples,
    model_config: ModelConfig,
    num_classes: int,
    feature_config: FeatureConfig,
) -> dict:
    """A head of zeros, so that every arm starts from chance."""
    parts = (
        examples["segments"].shape[1]
        if feature_config.pooling == "concat"
        else len(feature_config.pooling_parts)
    )
    return {
        "kernel": jnp.zeros((parts * model_config.d_model, num_classes)),
        "bias": jnp.zeros((num_classes,)),
    }


def logits(
    tuned: dict, rows: dict[str, jax.Array], model: ModelConfig, reading: FeatureConfig
) -> jax.Array:
    """Unnormalised log probabilities of the classes, float32 [B, classes].

    Where the reading is of each piece, [B, L, classes].
    """
    return _apply_head(tuned["head"], pooled_features(tuned["model"], rows, model, reading)[-1])


def _apply_head(head: dict, features_BE: Any) -> Any:
    scale = ((features_BE**2).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5
    return features_BE * scale @ head["kernel"] + head["bias"]


def finetune(
    params: dict,
    examples: TokenizedExamples,
    labels: np.ndarray,
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    num_classes: int,
    seed: int,
    pad_to: int,
    num_steps: int | None = None,
) -> dict:
    """Trains on the labelled rows; on a mesh of `jax.set_mesh`, each batch's rows over its devices.

    Args:
      params: start of the model.
      examples: n labelled examples.
      labels: int [n]; [n, L] where the reading is of each piece, -1 for those without a label.
      model_config: architecture.
      config: see `FinetuneConfig`.
      num_classes: number of classes.
      seed: decides batches and which pieces are kept.
      pad_to: the arrays are padded to this many rows (never drawn), so that one compiled
        program serves all label budgets.
      num_steps: updates of a shorter run under its own schedule; `config.updates` unless given.

    Returns:
      `{"model": params, "head": {...}}`, tuned; with LoRA also `adapters`, and "model" is the base
      with these attached, its arrays those of `params`.
    """
    idle, arguments = _arguments(
        params,
        examples,
        labels,
        model_config,
        config,
        num_classes=num_classes,
        seed=seed,
        pad_to=pad_to,
        num_steps=num_steps,
    )
    trained, frozen = _run(*arguments), arguments[1]
    tuned = _join_trained(trained, frozen, config)
    streams = {**tuned["model"]["streams"], **idle}
    return trained | {"model": tuned["model"] | {"streams": streams}}


def _arguments(
    params: dict,
    examples: TokenizedExamples,
    labels: np.ndarray,
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    num_classes: int,
    seed: int,
    pad_to: int,
    num_steps: int | None = None,
) -> tuple[dict, tuple]:
    """The heads that are set aside, and what `_run` takes."""
    n = len(labels)
    order_SB = batch_order(n, config.num_steps(pad_to), config.batch_size, seed)
    # What predicts pieces gets no gradient here: set aside, it costs no update either.
    idle, used = _split_prediction_heads(params["streams"])
    start = {**params, "streams": used}
    trained, frozen = split_trained(
        start, examples, model_config, config, num_classes=num_classes, seed=seed
    )
    padded = {key: pad_rows(value, pad_to) for key, value in examples.items()}
    # The rate and the number of steps enter as data: one compiled program for all of them.
    shapes = dataclasses.replace(config, learning_rate=0.0)
    return idle, (
        trained,
        frozen,
        padded,
        pad_rows(np.asarray(labels, np.int32), pad_to),
        order_SB,
        jax.random.key(seed),
        jnp.float32(config.learning_rate),
        jnp.int32(config.num_steps(n) if num_steps is None else num_steps),
        model_config,
        shapes,
    )


@dataclasses.dataclass(frozen=True)
class MemoryFootprint:
    """What a method of adaptation holds in memory.

    Attributes:
      trained_params: number of parameters trained.
      state_bytes: bytes of all parameters, and of gradient and moments of those trained.
      program_bytes: bytes the compiled run takes beside its arguments and results; None if not known.
    """

    trained_params: int
    state_bytes: int
    program_bytes: int | None


def memory_footprint(
    params: dict,
    examples: TokenizedExamples,
    labels: np.ndarray,
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    num_classes: int,
    pad_to: int,
) -> MemoryFootprint:
    """What `finetune` of the same arguments holds; compiles it, runs nothing."""
    _, arguments = _arguments(
        params,
        examples,
        labels,
        model_config,
        config,
        num_classes=num_classes,
        seed=0,
        pad_to=pad_to,
    )
    trained, frozen = arguments[:2]
    sizes = [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves(trained)]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    analysis = _run.lower(*arguments).compile().memory_analysis()
    return MemoryFootprint(
        trained_params=sum(size for size, _ in sizes),
        state_bytes=held + 4 * sum(nbytes for _, nbytes in sizes),
        program_bytes=None if analysis is None else int(analysis.temp_size_in_bytes),
    )


def split_trained(
    params: dict,
    examples: TokenizedExamples,
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    num_classes: int,
    seed: int,
) -> tuple[dict, dict]:
    """What a run trains, and what it reads beside it: frozen, without gradient or second copy.

    Without LoRA all is trained and nothing is frozen.
    """
    head = init_head(examples, model_config, num_classes, config.feature_config)
    if config.lora is None:
        return {"model": params, "head": head}, {}
    adapters = lora.init(jax.random.key(seed), params["layers"], config.lora)
    return {"adapters": adapters, "head": head}, {"model": params}


def _join_trained(trained: dict, frozen: dict, config: FinetuneConfig) -> dict:
    """The model and head that the two parts of `apart` make."""
    if config.lora is None:
        return trained
    model = lora.attach(frozen["model"], trained["adapters"], config.lora)
    return {"model": model, "head": trained["head"]}


def _split_prediction_heads(streams: dict[str, jax.Array]) -> tuple[dict, dict]:
    """The heads that predict pieces, and all else."""
    continuous = {f"{name}_{part}" for name in CONTINUOUS_MODALITIES for part in ("head", "bias")}
    heads = {"token_head", *continuous} & streams.keys()
    return (
        {name: streams[name] for name in heads},
        {name: value for name, value in streams.items() if name not in heads},
    )


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _run(trained, frozen, rows, labels, order_SB, rng, peak, steps, model, config):
    def loss(trained, batch, targets):
        tuned = _join_trained(trained, frozen, config)
        return mean_cross_entropy(logits(tuned, batch, model, config.reading), targets)

    def gradient(trained, number):
        chosen = order_SB[number]
        batch = {key: constrain_batch(value[chosen]) for key, value in rows.items()}
        if config.keep:
            batch = keep_random_tokens(batch, jax.random.fold_in(rng, number), config.keep)
        return jax.grad(loss)(trained, batch, labels[chosen])

    return run_adamw(gradient, trained, peak, steps, config.weight_decay)


def mean_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of labels, int [B]; or of those that are not -1, int [B, L]."""
    nats = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
    if labels.ndim == 1:
        return jnp.mean(nats)
    labelled = labels >= 0
    return jnp.sum(nats * labelled) / jnp.maximum(jnp.sum(labelled), 1)


def predict(
    tuned: dict,
    examples: TokenizedExamples,
    model_config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The most likely class of every row, int [N]; of every piece [N, L] if read so."""
    made = predict_logits(
        tuned, examples, model_config, feature_config=feature_config, batch_size=batch_size
    )
    return made.argmax(axis=-1)


def predict_logits(
    tuned: dict,
    examples: TokenizedExamples,
    model_config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Unnormalised log probabilities of every row's classes, as `logits` but of any number."""
    made = extract_features(
        tuned["model"],
        examples,
        model_config,
        feature_config=feature_config,
        final_only=True,
        batch_size=batch_size,
    )
    return _apply_head(jax.device_get(tuned["head"]), made[:, 0])
