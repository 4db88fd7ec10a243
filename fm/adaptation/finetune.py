"""Fine-tuning of every parameter, or of LoRA adapters, with a new head.

A run is one trajectory: warmup, then a constant learning rate, and what predicts is an average of
the parameters passed through. So a run can be read off after any number of steps and continued,
and the beginning of a longer run is a shorter run, to the bit.
"""

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
from scipy.special import softmax

from fm.adaptation import lora
from fm.adaptation.augment import AUGMENTATIONS, augment
from fm.adaptation.batching import BATCH_SIZE, TokenizedExamples
from fm.adaptation.features import FeatureConfig, extract_features, pooled_features
from fm.adaptation.self_training import MAX_UNLABELED
from fm.data.media import PatchLayout
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.embeddings import patch_head_names
from fm.parallel.mesh import constrain_batch

# (trained parameters, step) -> gradient of the loss.
GradientFn = Callable[[Any, jax.Array], Any]
# (logits [B, K], targets [B, ...], weights of the outputs [K]) to the mean loss.
LossFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

CLASS_WEIGHTS = ("balanced",)
# Passes over the labels at the first reading of a run; every further reading doubles them.
FIRST_EPOCHS = 4
# Steps of linear warmup: a constant, so that a run's beginning does not depend on its end.
WARMUP_STEPS = 20
# Weight t**2 of step t in the average of the parameters (Shamir and Zhang 2013, sec. 4): about the
# last third of the run so far.
AVERAGING_POWER = 2


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning hyper-parameters: learning rate, length, regularization, features, LoRA.

    Attributes:
      learning_rate: AdamW's, after `WARMUP_STEPS` of linear warmup; of instruction tuning the peak.
      min_steps: optimizer steps, at least; a search may always go on for so many.
      min_epochs: passes over the labeled examples of a run of no other length.
      max_epochs: most passes over the labeled examples that a search tries.
      fixed_updates: optimizer steps of every run, in place of a search for their number, so that
        studies compare runs of equally many updates; None searches.
      fixed_epochs: passes over the labeled examples of every run, in the same way; None searches.
      self_training_rounds: rounds of pseudo-labels of every self-training run, in place of a choice
        among none, one and two on validation examples; None chooses.
      max_unlabeled: the most unlabeled examples that self-training looks at.
      batch_size: examples per step.
      tokens_kept: tokens of an example a training step sees, drawn anew each time (token dropout);
        0 for all.
      weight_decay: decoupled, on everything trained.
      dropout: share of the head's inputs set to zero in training.
      augment: name of one of `fm.adaptation.augment.AUGMENTATIONS`; None for none.
      class_weight: "balanced" weights examples by the inverse frequency of their class; None for
        equal weights.
      feature_config: pooling; the head reads the final output.
      lora: adapters to train instead of the model; None trains the whole model.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = (
        *("fixed_updates", "fixed_epochs"),
        *("self_training_rounds", "max_unlabeled"),
    )
    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "steps": "min_steps",
        "epochs": "min_epochs",
        "keep": "tokens_kept",
        "reading": "feature_config",
    }

    learning_rate: float = 3e-3
    min_steps: int = 80
    min_epochs: float = 0.0
    max_epochs: int = 64
    batch_size: int = 16
    tokens_kept: int = 0
    weight_decay: float = 0.01
    dropout: float = 0.0
    augment: str | None = None
    class_weight: str | None = None
    feature_config: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    lora: lora.LoraConfig | None = None
    fixed_updates: int | None = None
    fixed_epochs: int | None = None
    self_training_rounds: int | None = None
    max_unlabeled: int = MAX_UNLABELED

    def __post_init__(self):
        if self.max_unlabeled < 2:
            raise UserError(f"fine-tuning takes max_unlabeled={self.max_unlabeled} of at least 2")
        for name in ("fixed_updates", "fixed_epochs", "self_training_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"fine-tuning takes {name}={value} of at least 1, or none")
        if self.fixed_updates and self.fixed_epochs:
            raise UserError(
                f"fine-tuning takes fixed_updates={self.fixed_updates} or fixed_epochs="
                f"{self.fixed_epochs}, not both"
            )
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

        if self.max_epochs < FIRST_EPOCHS or not 0 <= self.dropout < 1:
            raise UserError(
                f"fine-tuning takes max_epochs={self.max_epochs} of at least {FIRST_EPOCHS} and "
                f"dropout={self.dropout} from 0 to below 1"
            )
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise UserError(
                f"augment={self.augment!r} is not known; accepted are {', '.join(AUGMENTATIONS)}"
            )
        if self.class_weight not in (None, *CLASS_WEIGHTS):
            raise UserError(
                f"class_weight={self.class_weight!r} is not known; accepted are None and "
                f"{', '.join(CLASS_WEIGHTS)}"
            )

    @property
    def is_fixed(self) -> bool:
        """Whether every run has a given length."""
        return self.fixed_updates is not None or self.fixed_epochs is not None

    def num_steps(self, num_labels: int, epochs: int | None = None) -> int:
        """Returns the optimizer steps of `epochs` passes; by default those of `min_epochs`.

        A fixed length goes before both.
        """
        if self.fixed_updates is not None:
            return self.fixed_updates
        epochs = self.fixed_epochs or epochs
        if epochs is not None:
            return max(1, math.ceil(epochs * num_labels / self.batch_size))
        return max(self.min_steps, math.ceil(self.min_epochs * num_labels / self.batch_size))

    def epoch_grid(self, num_labels: int) -> list[int]:
        """Returns the passes after which a search reads a run, each twice the one before.

        They are 4 times a power of two; the first are at least half of `min_steps` and the steps of
        warmup; the last are the last such number within `max_epochs`, or, if those are fewer than
        `min_steps` steps, the first of at least so many. A fixed length is the only reading.
        """
        if self.fixed_updates is not None:
            return [max(1, round(self.fixed_updates * self.batch_size / num_labels))]
        if self.fixed_epochs is not None:
            return [self.fixed_epochs]
        grid = [FIRST_EPOCHS]
        while (
            2 * grid[-1] <= self.max_epochs or self.num_steps(num_labels, grid[-1]) < self.min_steps
        ):
            grid.append(2 * grid[-1])
        first = max(WARMUP_STEPS, self.min_steps // 2)
        return [each for each in grid if self.num_steps(num_labels, each) >= first] or grid[-1:]

    def min_search_epochs(self, num_labels: int) -> int:
        """Returns the passes of `min_steps` steps, before which no search stops or ranks a run."""
        if self.is_fixed:
            return 0
        return math.ceil(self.min_steps * self.batch_size / num_labels)

    def max_steps(self, num_labels: int) -> int:
        """Returns the most optimizer steps of any run on at most `num_labels` examples."""
        if self.is_fixed:
            return self.num_steps(num_labels)
        longest = self.num_steps(num_labels, self.max_epochs)
        return max(self.num_steps(num_labels), longest, 2 * self.min_steps)


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
    """Returns a zero-initialized classification head, so that training starts at uniform logits.

    It has a "kernel" [E, classes] and a "bias" [classes], but with `plain_head` no bias.
    """
    if feature_config.pooling == "concat":
        parts = examples["segments"].shape[1]
    else:
        parts = len(feature_config.pooling_parts)
    kernel = jnp.zeros((parts * model_config.d_model, num_classes))
    if feature_config.plain_head:
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": jnp.zeros((num_classes,))}


def logits(
    finetuned: dict,
    batch: dict[str, jax.Array],
    model_config: ModelConfig,
    feature_config: FeatureConfig,
) -> jax.Array:
    """Returns class logits of a batch, float32 [B, classes], or [B, L, classes] of each token."""
    features = pooled_features(finetuned["model"], batch, model_config, feature_config)[-1]
    return _apply_head(finetuned["head"], features)


def normalize_head_inputs(features_BE: Any) -> Any:
    """Returns features scaled to a root mean square of 1, as the head reads them."""
    return features_BE * ((features_BE**2).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5


def _apply_head(head: dict, features_BE: Any) -> Any:
    logits = _head_inputs(head, features_BE) @ head["kernel"]
    return logits + head["bias"] if "bias" in head else logits


def _head_inputs(head: dict, features_BE: Any) -> Any:
    """Features as a head reads them: one without a bias reads them as they are."""
    return normalize_head_inputs(features_BE) if "bias" in head else features_BE


def mean_cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None
) -> jax.Array:
    """Returns the mean cross-entropy in nats; labels int [B], or [B, L] where -1 is ignored.

    Each example's is multiplied by its class's weight, [classes], if there are any.
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    if class_weights is not None:
        nats = nats * class_weights[jnp.maximum(labels, 0)]
    if labels.ndim == 1:
        return jnp.mean(nats)
    labeled = labels >= 0
    return jnp.sum(nats * labeled) / jnp.maximum(jnp.sum(labeled), 1)


class FinetuningRun:
    """A fine-tuning run that is read off after any number of steps and goes on from there.

    Attributes:
      num_steps: optimizer steps done.
    """

    def __init__(
        self,
        params: dict,
        examples: TokenizedExamples,
        labels: np.ndarray,
        model_config: ModelConfig,
        config: FinetuneConfig,
        *,
        num_classes: int,
        seed: int,
        pad_to: int,
        layout: PatchLayout | None = None,
        head: dict | None = None,
        loss: LossFn = mean_cross_entropy,
        finish_head: Callable[[dict], dict] | None = None,
    ):
        """Prepares a run of no steps; the arguments are those of `finetune`."""
        if config.augment is not None and layout is None:
            raise UserError(f"augment={config.augment!r}: the model's patch layout is not known")
        self.num_steps = 0
        self._config, self._model_config, self._layout = config, model_config, layout
        self._loss, self._finish_head = loss, finish_head
        # Prediction heads get no gradient here; set aside, they cost no update either.
        self._unused, used = split_prediction_heads(params["streams"])
        trained, self._frozen = split_trained(
            {**params, "streams": used},
            examples,
            model_config,
            config,
            num_classes=num_classes,
            seed=seed,
        )
        if head is not None:
            trained = trained | {"head": head}
        labels = np.asarray(labels)
        labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32)
        self._data = (
            {key: pad_with_first_row(value, pad_to) for key, value in examples.items()},
            pad_with_first_row(labels, pad_to),
            batch_order(len(labels), config.max_steps(pad_to), config.batch_size, seed),
            jax.random.key(seed),
        )
        # Traced, so that one compiled program serves all of their values.
        self._hparams = {
            "learning_rate": jnp.float32(config.learning_rate),
            "weight_decay": jnp.float32(config.weight_decay),
            "dropout": jnp.float32(config.dropout),
            "class_weights": class_weights(labels, num_classes, config.class_weight),
        }
        self._state = (trained, _optimizer(0.0).init(trained), trained)

    def advance(self, num_steps: int) -> None:
        """Trains until `num_steps` steps are done in all; does nothing if they are."""
        if num_steps > self.num_steps:
            self._state = _advance(*self._arguments(num_steps))
            self.num_steps = num_steps

    def finetuned(self) -> dict:
        """Returns what `finetune` returns, after the steps done so far."""
        average = self._state[2]
        if self._finish_head is not None:
            average = average | {"head": self._finish_head(average["head"])}
        finetuned = _join_trained(average, self._frozen, self._config)
        streams = {**finetuned["model"]["streams"], **self._unused}
        return average | {"model": finetuned["model"] | {"streams": streams}}

    def footprint(self) -> MemoryFootprint:
        """Returns the memory of the run by compiling it only."""
        sizes = [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves(self._state[0])]
        frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._frozen))
        analysis = _advance.lower(*self._arguments(1)).compile().memory_analysis()
        return MemoryFootprint(
            trained_params=sum(size for size, _ in sizes),
            state_bytes=frozen_bytes + 5 * sum(nbytes for _, nbytes in sizes),
            program_bytes=None if analysis is None else int(analysis.temp_size_in_bytes),
        )

    def _arguments(self, num_steps: int) -> tuple:
        defaults = FinetuneConfig()
        config = dataclasses.replace(
            self._config,
            **{name: getattr(defaults, name) for name in ("learning_rate", "weight_decay")},
            **{name: getattr(defaults, name) for name in ("dropout", "class_weight")},
        )
        steps = jnp.int32(self.num_steps), jnp.int32(num_steps)
        static = self._model_config, config, self._layout, self._loss
        return self._state, self._frozen, self._data, self._hparams, *steps, *static


def finetune(*args: Any, num_steps: int | None = None, **kwargs: Any) -> dict:
    """Fine-tunes a model and a new head on labeled examples; returns the trained parameters.

    Under `jax.set_mesh` each batch is split over the devices.

    Args:
      *args: of `FinetuningRun`: params, the initial parameters of the model; examples, n of them;
        labels, int [n], or [n, L] with pooling "each", -1 for tokens without a label, or float
        targets [n, ...] of another `loss`;
        model_config; config, see `FinetuneConfig`.
      num_steps: default `config.num_steps(n)`; at most `config.max_steps(pad_to)`.
      **kwargs: of `FinetuningRun`: num_classes; seed, which decides batches, adapters, dropout,
        augmentation and which tokens are kept; pad_to, the number of rows that the arrays are
        padded to (never drawn), so that one compiled program serves all label budgets; layout, how
        patches were cut, for augmentation; head, an initial head instead of zeros; loss, of the
        head's logits, cross-entropy by default; finish_head, what the trained head is replaced by.

    Returns:
      `{"model": params, "head": {...}}`, tuned; with LoRA also `adapters`, and "model" is the
      frozen model, sharing the arrays of `params`, with these attached.

    Raises:
      UserError: augmentation is asked for without a layout.
    """
    run = FinetuningRun(*args, **kwargs)
    labels, config = args[2], args[4]
    run.advance(config.num_steps(len(labels)) if num_steps is None else num_steps)
    return run.finetuned()


def class_weights(labels: np.ndarray, num_classes: int, weighting: str | None) -> np.ndarray:
    """Returns each class's weight in the loss, float32 [classes].

    With "balanced" it is n / (classes present * examples of the class), so that its mean over the
    labels is 1; labels below 0 do not count. None gives ones, and so do targets that are no
    classes.
    """
    if weighting is None or labels.dtype.kind == "f":
        return np.ones(num_classes, np.float32)
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=num_classes)
    present = np.count_nonzero(counts)
    return (counts.sum() / (present * np.maximum(counts, 1))).astype(np.float32)


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


def split_prediction_heads(streams: dict[str, jax.Array]) -> tuple[dict, dict]:
    """Returns the heads that predict tokens or patches, and all other parameters of streams."""
    heads = {"token_head", *patch_head_names(streams)} & streams.keys()
    return (
        {name: streams[name] for name in heads},
        {name: value for name, value in streams.items() if name not in heads},
    )


@functools.partial(jax.jit, static_argnames=("model_config", "config", "layout", "loss_fn"))
def _advance(state, frozen, data, hparams, first, last, model_config, config, layout, loss_fn):
    """Returns (trained, optimizer state, average) after steps `first` to `last` (exclusive)."""
    examples, labels, order_SB, rng = data
    optimizer = _optimizer(hparams["weight_decay"])

    def loss(trained, batch, targets, rng):
        finetuned = _join_trained(trained, frozen, config)
        features = pooled_features(finetuned["model"], batch, model_config, config.feature_config)
        kept = jax.random.bernoulli(rng, 1 - hparams["dropout"], features[-1].shape)
        head = finetuned["head"]
        inputs = _head_inputs(head, features[-1]) * kept / (1 - hparams["dropout"])
        logits = inputs @ head["kernel"]
        logits = logits + head["bias"] if "bias" in head else logits
        return loss_fn(logits, targets, hparams["class_weights"])

    def body(step, state):
        trained, optimizer_state, average = state
        idx = order_SB[step]
        batch = {key: constrain_batch(value[idx]) for key, value in examples.items()}
        keeping, changing, dropping = jax.random.split(jax.random.fold_in(rng, step), 3)
        if config.augment is not None:
            batch = augment(changing, batch, config.augment, layout)
        if config.tokens_kept:
            batch = keep_random_tokens(batch, keeping, config.tokens_kept)
        gradient = jax.grad(loss)(trained, batch, labels[idx], dropping)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, trained)
        rate = -hparams["learning_rate"] * jnp.minimum(1.0, (step + 1) / WARMUP_STEPS)
        trained = optax.apply_updates(trained, jax.tree.map(lambda u: rate * u, updates))
        share = (AVERAGING_POWER + 1) / (step + 1 + AVERAGING_POWER)
        average = jax.tree.map(lambda old, new: old + share * (new - old), average, trained)
        return trained, optimizer_state, average

    return jax.lax.fori_loop(first, last, body, state)


def predict_proba(finetuned: dict, *args: Any, **kwargs: Any) -> np.ndarray:
    """Returns class probabilities, float32 [N, classes]; arguments of `predict_logits`."""
    return softmax(predict_logits(finetuned, *args, **kwargs).astype(np.float32), axis=-1)


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
    optimizer = _optimizer(weight_decay)

    def body(step, carry):
        trained, state = carry
        updates, state = optimizer.update(gradient(trained, step), state, trained)
        rate = -peak_lr * _schedule(step, num_steps)
        return optax.apply_updates(trained, jax.tree.map(lambda u: rate * u, updates)), state

    return jax.lax.fori_loop(0, num_steps, body, (trained, optimizer.init(trained)))[0]


def _optimizer(weight_decay: Any) -> optax.GradientTransformation:
    """AdamW without its learning rate, behind a clip of the gradient's norm at 1."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(weight_decay),
    )


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
