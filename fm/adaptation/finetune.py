"""Fine-tuning of every parameter, or of LoRA adapters, with a new head: a run is one program."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.adaptation import lora
from fm.adaptation.batching import BATCH_SIZE, TokenizedExamples
from fm.adaptation.features import FeatureConfig, extract_features, pooled_features
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.embeddings import patch_head_names
from fm.parallel.mesh import constrain_batch

# (trained parameters, step) -> gradient of the loss.
GradientFn = Callable[[Any, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning hyper-parameters: learning rate, steps, batch size, features, LoRA.

    Attributes:
      learning_rate: AdamW's peak; linear warmup over a tenth of the steps, then cosine to zero.
      min_steps: optimizer steps, at least.
      min_epochs: passes over the labeled examples, at least: more labels train for longer.
      batch_size: examples per step.
      tokens_kept: tokens of an example a training step sees, drawn anew each time (token dropout);
        0 for all.
      weight_decay: decoupled, on everything trained.
      feature_config: pooling; the head reads the final output.
      lora: adapters to train instead of the model; None trains the whole model.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "steps": "min_steps",
        "epochs": "min_epochs",
        "keep": "tokens_kept",
        "reading": "feature_config",
    }

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
                f"fine-tuning takes min_steps={self.min_steps} and batch_size={self.batch_size} of "
                f"at least 1, tokens_kept={self.tokens_kept} and min_epochs={self.min_epochs} of "
                "at least 0"
            )
        if self.tokens_kept and self.feature_config.pooling == "each":
            raise UserError(
                f"tokens_kept={self.tokens_kept} must be 0 where each token has its own label"
            )

    def num_steps(self, num_labels: int) -> int:
        """Returns the optimizer steps of a run on `num_labels` examples."""
        return max(self.min_steps, math.ceil(self.min_epochs * num_labels / self.batch_size))


@dataclasses.dataclass(frozen=True)
class MemoryFootprint:
    """Number of trained parameters and estimated memory in bytes of an adaptation run.

    Attributes:
      trained_params: number of parameters trained.
      state_bytes: bytes of all parameters, and of gradient and moments of the trained ones.
      program_bytes: bytes the compiled run needs beside arguments and results; None if unknown.
    """

    trained_params: int
    state_bytes: int
    program_bytes: int | None


def init_zero_head(
    examples: TokenizedExamples,
    model_config: ModelConfig,
    num_classes: int,
    feature_config: FeatureConfig,
) -> dict:
    """Returns a zero-initialized classification head, so that training starts at uniform logits."""
    if feature_config.pooling == "concat":
        parts = examples["segments"].shape[1]
    else:
        parts = len(feature_config.pooling_parts)
    return {
        "kernel": jnp.zeros((parts * model_config.d_model, num_classes)),
        "bias": jnp.zeros((num_classes,)),
    }


def logits(
    finetuned: dict,
    batch: dict[str, jax.Array],
    model_config: ModelConfig,
    feature_config: FeatureConfig,
) -> jax.Array:
    """Returns class logits of a batch, float32 [B, classes], or [B, L, classes] of each token."""
    features = pooled_features(finetuned["model"], batch, model_config, feature_config)[-1]
    return _apply_head(finetuned["head"], features)


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
    """Fine-tunes a model and a new head on labeled examples; returns the trained parameters.

    Under `jax.set_mesh` each batch is split over the devices.

    Args:
      params: initial parameters of the model.
      examples: n examples.
      labels: int [n]; [n, L] with pooling "each", -1 for tokens without a label.
      model_config: architecture.
      config: see `FinetuneConfig`.
      num_classes: number of classes.
      seed: decides batches, adapters and which tokens are kept.
      pad_to: the arrays are padded to this many rows (never drawn), so that one compiled program
        serves all label budgets.
      num_steps: steps of a shorter run under its own schedule; default `config.num_steps(n)`.

    Returns:
      `{"model": params, "head": {...}}`, tuned; with LoRA also `adapters`, and "model" is the
      frozen model, sharing the arrays of `params`, with these attached.
    """
    unused, arguments = _run_arguments(
        params, examples, labels, model_config, config, num_classes, seed, pad_to, num_steps
    )
    trained, frozen = _run(*arguments), arguments[1]
    finetuned = _join_trained(trained, frozen, config)
    streams = {**finetuned["model"]["streams"], **unused}
    return trained | {"model": finetuned["model"] | {"streams": streams}}


def memory_footprint(*args: Any, **kwargs: Any) -> MemoryFootprint:
    """Returns the memory of a `finetune` call (same arguments but `seed`) by compiling it only."""
    _, arguments = _run_arguments(*args, seed=0, **kwargs)
    trained, frozen = arguments[:2]
    sizes = [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves(trained)]
    frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    analysis = _run.lower(*arguments).compile().memory_analysis()
    return MemoryFootprint(
        trained_params=sum(size for size, _ in sizes),
        state_bytes=frozen_bytes + 4 * sum(nbytes for _, nbytes in sizes),
        program_bytes=None if analysis is None else int(analysis.temp_size_in_bytes),
    )


def _run_arguments(
    params, examples, labels, model_config, config, num_classes, seed, pad_to, num_steps=None
) -> tuple[dict, tuple]:
    """The prediction heads set aside, and the arguments of `_run`."""
    n = len(labels)
    order_SB = batch_order(n, config.num_steps(pad_to), config.batch_size, seed)
    # Prediction heads get no gradient here; set aside, they cost no update either.
    unused, used = _split_prediction_heads(params["streams"])
    initial = {**params, "streams": used}
    trained, frozen = split_trained(
        initial, examples, model_config, config, num_classes=num_classes, seed=seed
    )
    return unused, (
        trained,
        frozen,
        {key: pad_with_first_row(value, pad_to) for key, value in examples.items()},
        pad_with_first_row(np.asarray(labels, np.int32), pad_to),
        order_SB,
        jax.random.key(seed),
        # Traced, so that one compiled program serves all rates and numbers of steps.
        jnp.float32(config.learning_rate),
        jnp.int32(config.num_steps(n) if num_steps is None else num_steps),
        model_config,
        dataclasses.replace(config, learning_rate=0.0),
    )


def split_trained(
    params: dict, examples: TokenizedExamples, model_config, config, *, num_classes: int, seed: int
) -> tuple[dict, dict]:
    """Returns a run's (trained, frozen) initial parameters; without LoRA none are frozen."""
    head = init_zero_head(examples, model_config, num_classes, config.feature_config)
    if config.lora is None:
        return {"model": params, "head": head}, {}
    adapters = lora.init(jax.random.key(seed), params["layers"], config.lora)
    return {"adapters": adapters, "head": head}, {"model": params}


def _join_trained(trained: dict, frozen: dict, config: FinetuneConfig) -> dict:
    """Model and head of the two parts of `split_trained`."""
    if config.lora is None:
        return trained
    model = lora.attach(frozen["model"], trained["adapters"], config.lora)
    return {"model": model, "head": trained["head"]}


def _split_prediction_heads(streams: dict[str, jax.Array]) -> tuple[dict, dict]:
    """Heads that predict tokens or patches, and all other parameters."""
    heads = {"token_head", *patch_head_names(streams)} & streams.keys()
    return (
        {name: streams[name] for name in heads},
        {name: value for name, value in streams.items() if name not in heads},
    )


@functools.partial(jax.jit, static_argnames=("model_config", "config"))
def _run(
    trained, frozen, examples, labels, order_SB, rng, peak_lr, num_steps, model_config, config
):
    def loss(trained, batch, targets):
        finetuned = _join_trained(trained, frozen, config)
        return mean_cross_entropy(
            logits(finetuned, batch, model_config, config.feature_config), targets
        )

    def gradient(trained, step):
        idx = order_SB[step]
        batch = {key: constrain_batch(value[idx]) for key, value in examples.items()}
        if config.tokens_kept:
            batch = keep_random_tokens(batch, jax.random.fold_in(rng, step), config.tokens_kept)
        return jax.grad(loss)(trained, batch, labels[idx])

    return run_adamw(gradient, trained, peak_lr, num_steps, config.weight_decay)


def mean_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats; labels int [B], or [B, L] where -1 is ignored."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    if labels.ndim == 1:
        return jnp.mean(nats)
    labeled = labels >= 0
    return jnp.sum(nats * labeled) / jnp.maximum(jnp.sum(labeled), 1)


def predict(finetuned: dict, examples: TokenizedExamples, *args: Any, **kwargs: Any) -> np.ndarray:
    """Returns the most likely class of each example, int [N], or of each token, int [N, L]."""
    return predict_logits(finetuned, examples, *args, **kwargs).argmax(axis=-1)


def predict_logits(
    finetuned: dict,
    examples: TokenizedExamples,
    model_config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Returns class logits of any number of examples, computed in batches, [N, classes]."""
    options = {"feature_config": feature_config, "batch_size": batch_size}
    model = finetuned["model"]
    features = extract_features(model, examples, model_config, final_only=True, **options)
    return _apply_head(jax.device_get(finetuned["head"]), features[:, 0])


def keep_random_tokens(
    batch: dict[str, jax.Array], rng: jax.Array, tokens_kept: int
) -> dict[str, jax.Array]:
    """Returns the batch with `tokens_kept` random tokens of each example (token dropout).

    Arrays [B, L, ...] become [B, K, ...] with K = min(`tokens_kept`, L). Padding is kept only where
    an example has fewer than K tokens.
    """
    valid = batch["segments"] > 0
    L = valid.shape[1]
    random = jax.random.uniform(rng, valid.shape) - ~valid
    order = jax.lax.top_k(random, min(tokens_kept, L))[1]

    def pick(value):
        idx = order.reshape(*order.shape, *[1] * (value.ndim - 2))
        return jnp.take_along_axis(value, idx, axis=1)

    return {key: pick(value) for key, value in batch.items()}


def run_adamw(
    gradient: GradientFn, trained: Any, peak_lr: Any, num_steps: Any, weight_decay: float
) -> Any:
    """Runs AdamW with warmup and cosine decay, to be called under jit; returns the parameters.

    The learning rate warms up linearly over a tenth of the steps, then falls as a cosine to zero.
    `num_steps` may be traced, so that one program serves all lengths.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(weight_decay),
    )

    def body(step, carry):
        trained, state = carry
        updates, state = optimizer.update(gradient(trained, step), state, trained)
        rate = -peak_lr * _schedule(step, num_steps)
        return optax.apply_updates(trained, jax.tree.map(lambda u: rate * u, updates)), state

    return jax.lax.fori_loop(0, num_steps, body, (trained, optimizer.init(trained)))[0]


def _schedule(step: jax.Array, num_steps: jax.Array) -> jax.Array:
    """Fraction of the peak learning rate."""
    warmup = jnp.maximum(1, num_steps // 10)
    rising = (step + 1) / warmup
    falling = 0.5 * (1.0 + jnp.cos(jnp.pi * (step - warmup) / jnp.maximum(1, num_steps - warmup)))
    return jnp.where(step < warmup, rising, falling)


def batch_order(num_examples: int, num_steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Returns example indices of each step, int [num_steps, batch_size], reshuffled every epoch."""
    rng = np.random.default_rng([seed, num_examples])
    epochs = -(-num_steps * batch_size // num_examples)
    order = np.concatenate([rng.permutation(num_examples) for _ in range(epochs)])
    return order[: num_steps * batch_size].reshape(num_steps, -1)


def pad_with_first_row(value: np.ndarray, length: int) -> np.ndarray:
    """Pads an array to `length` rows by repeating its first row, so that shapes stay the same."""
    return np.concatenate([value, np.repeat(value[:1], length - len(value), axis=0)])
