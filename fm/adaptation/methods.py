# ruff: noqa: D102 (methods inherit the docstrings of `AdaptationMethod`)
"""Adaptation methods: the protocol, the registry, and the four built-in methods.

A method turns a model with labeled examples (a `TaskModel`) into a predictor. To add one, subclass
`AdaptationMethod` and pass an instance to `register_method`: studies, cost tables and the command
line iterate over `METHODS`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation import lora
from fm.adaptation.batching import take
from fm.adaptation.finetune import FinetuneConfig, MemoryFootprint, finetune, memory_footprint
from fm.adaptation.task_model import AdaptationRecipe, Fold, TaskModel
from fm.errors import UserError

HParams = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FittedModel:
    """Result of `AdaptationMethod.fit`: parameters, training steps, and what `predict` needs.

    Attributes:
      params: parameters that predict; for a linear probe the probe's alone.
      steps: optimizer steps, or iterations of the probe's solver.
      state: what the method's `predict` needs.
    """

    params: dict
    steps: int
    state: Any = None


class AdaptationMethod(abc.ABC):
    """Base class of adaptation methods: hyper-parameter grid, fitting, prediction and cost.

    Attributes:
      name: value of `--adapt` and of the key "method" of its hyper-parameters.
      description: one line for help and reports.
      search_order: methods with a smaller number come first in an arm's grid; of trials with equal
        validation scores the first is chosen.
      published_models_only: whether it takes a language model larger than those a study pretrains.
      updates_model: whether it trains by gradient steps, so that it has a learning curve and the
        result is another network.
      reads_features: whether it reads frozen features, `TaskModel.features`.
    """

    name: str
    description: str
    search_order: int = 10
    published_models_only: bool = False
    updates_model: bool = False
    reads_features: bool = False

    @abc.abstractmethod
    def supports(self, model: TaskModel) -> bool:
        """Returns whether the method can adapt the model to its task."""

    @abc.abstractmethod
    def search_space(
        self, recipe: AdaptationRecipe, *, num_fewshot: Sequence[int] = (0,), num_trials: int = 0
    ) -> list[HParams]:
        """Returns hyper-parameters to try, extended to `num_trials` if the method can.

        `num_fewshot` are the numbers of solved examples to try in prompts.
        """

    @abc.abstractmethod
    def fit(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        hparams: HParams,
        *,
        num_steps: int | None = None,
    ) -> FittedModel:
        """Fits the method to the labeled examples `train_idx`, int [n].

        `labels`, int [n], are their classes, for NER their strata. `num_steps` shortens a run of a
        method that `updates_model`.
        """

    @abc.abstractmethod
    def predict(self, model: TaskModel, fitted: FittedModel, idx: np.ndarray) -> np.ndarray:
        """Returns predictions for the examples `idx`, [n, ...], as the task scores them."""

    def predict_proba(
        self, model: TaskModel, fitted: FittedModel, idx: np.ndarray
    ) -> np.ndarray | None:
        """Returns class probabilities of the examples `idx`, [n, classes]; None without them."""
        return None

    @abc.abstractmethod
    def flops(self, model: TaskModel, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a `fit`."""

    @abc.abstractmethod
    def footprint(
        self, model: TaskModel, train_idx: np.ndarray, labels: np.ndarray, hparams: HParams
    ) -> MemoryFootprint:
        """Returns the parameters trained and memory of a `fit`, without running it."""

    @abc.abstractmethod
    def num_task_params(self, model: TaskModel) -> int:
        """Returns the number of parameters kept per task, beside the shared network."""

    def search(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        folds: Sequence[Fold],
    ) -> list[dict[str, Any]]:
        """Returns each setting tried with its cross-validated score, see `fm.study.adaptation`."""
        grid = self.search_space(model.recipe, num_fewshot=model.num_fewshot or (0,))
        values = self.cross_validate(model, train_idx, labels, seed, grid, folds)
        return [
            {"config": hparams, "validation": value}
            for hparams, value in zip(grid, values, strict=True)
        ]

    def cross_validate(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        grid: Sequence[HParams],
        folds: Sequence[Fold],
    ) -> list[float]:
        """Returns the cross-validated score of each hyper-parameter setting of `grid`."""

        def fit_predict(fit_idx, labels, held_out_idx, hparams):
            fitted = self.fit(model, fit_idx, labels, seed, hparams)
            return self.predict(model, fitted, held_out_idx)

        return [
            model.cross_validate(
                functools.partial(fit_predict, hparams=hparams), train_idx, labels, folds
            )
            for hparams in grid
        ]


class Finetuning(AdaptationMethod):
    """Fine-tunes every parameter and a new classification head."""

    name = "full"
    description = "fine-tunes every parameter with a new head"
    search_order = 1
    updates_model = True
    relative_flops = 1.0

    def supports(self, model):
        return model.trainable

    def search_space(self, recipe, *, num_fewshot=(0,), num_trials=0):
        rates = self.learning_rates(recipe)
        return [
            {"method": self.name, "learning_rate": rate}
            for rate in extend_grid(rates, num_trials - len(rates))
        ]

    def learning_rates(self, recipe: AdaptationRecipe) -> tuple[float, ...]:
        """Returns the grid of peak learning rates."""
        return recipe.learning_rates

    def config(self, recipe: AdaptationRecipe, hparams: HParams) -> FinetuneConfig:
        """Returns the fine-tuning config for the given hyper-parameters."""
        return dataclasses.replace(recipe.finetune, learning_rate=hparams["learning_rate"])

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        config = self.config(model.recipe, hparams)
        params = finetune(
            model.initial_params(seed),
            take(model.examples, train_idx),
            model.targets(train_idx, labels),
            model.model_config,
            config,
            num_classes=model.num_classes,
            seed=seed,
            pad_to=model.pad_to,
            num_steps=num_steps,
        )
        return FittedModel(params, config.num_steps(len(labels)))

    def predict(self, model, fitted, idx):
        return model.predict_finetuned(fitted.params, idx)

    def flops(self, model, num_labels, hparams):
        # LoRA forms no gradient of a kernel, one product in three; its own products are small.
        config = model.recipe.finetune
        return (
            self.relative_flops
            * config.num_steps(num_labels)
            * config.batch_size
            * model.train_flops(config.tokens_kept)
        )

    def footprint(self, model, train_idx, labels, hparams):
        return memory_footprint(
            model.initial_params(0),
            take(model.examples, train_idx),
            model.targets(train_idx, labels),
            model.model_config,
            self.config(model.recipe, hparams),
            num_classes=model.num_classes,
            pad_to=model.pad_to,
        )

    def num_task_params(self, model):
        return _size(model.init_head())


class LoraFinetuning(Finetuning):
    """Trains LoRA adapters and a new classification head; the model stays frozen."""

    name = "lora"
    description = "trains low-rank adapters and a new head, the model frozen"
    search_order = 2
    relative_flops = 2 / 3

    def learning_rates(self, recipe):
        return recipe.lora_learning_rates

    def config(self, recipe, hparams):
        return dataclasses.replace(super().config(recipe, hparams), lora=recipe.lora)

    def num_task_params(self, model):
        adapters = jax.eval_shape(
            lambda: lora.init(
                jax.random.key(0), model.initial_params(0)["layers"], model.recipe.lora
            )
        )
        return _size(adapters) + super().num_task_params(model)


class LinearProbing(AdaptationMethod):
    """Fits logistic regression to frozen features."""

    name = "probe"
    description = "logistic regression on frozen features"
    search_order = 0
    reads_features = True

    def supports(self, model):
        return True

    def search_space(self, recipe, *, num_fewshot=(0,), num_trials=0):
        penalties = recipe.l2_penalties
        return [
            {"method": self.name, "scale": recipe.feature_scaling, "l2": penalty}
            for penalty in extend_grid(penalties, num_trials - len(penalties))
        ]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        probe = model.fit_probe(seed, train_idx, labels, hparams)
        return FittedModel(probe.params, probe.steps, (probe, seed))

    def predict(self, model, fitted, idx):
        probe, seed = fitted.state
        return model.predict_probe(probe, seed, idx)

    def cross_validate(self, model, train_idx, labels, seed, grid, folds):
        return model.cross_validate_probe(seed, train_idx, labels, grid, folds)

    def flops(self, model, num_labels, hparams):
        return num_labels * model.feature_flops()

    def footprint(self, model, train_idx, labels, hparams):
        return MemoryFootprint(
            self.num_task_params(model), _num_bytes(model.initial_params(0)), None
        )

    def num_task_params(self, model):
        # Logistic regression has one vector for two classes.
        return (model.num_features() + 1) * (1 if model.num_classes == 2 else model.num_classes)


class Prompting(AdaptationMethod):
    """Predicts the likeliest answer to a prompt, zero-shot or few-shot; nothing is trained."""

    name = "prompt"
    description = "zero- or few-shot prompts of a causal language model"
    search_order = 3
    published_models_only = True

    def supports(self, model):
        return bool(model.num_fewshot)

    def search_space(self, recipe, *, num_fewshot=(0,), num_trials=0):
        return [
            {"method": self.name, "shots": shots, "calibrated": calibrated}
            for shots in num_fewshot
            for calibrated in (False, True)
        ]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        return FittedModel(model.initial_params(seed), 0, (train_idx, labels, hparams))

    def predict(self, model, fitted, idx):
        return model.predict_prompted(idx, *fitted.state)

    def flops(self, model, num_labels, hparams):
        return 0.0

    def footprint(self, model, train_idx, labels, hparams):
        return MemoryFootprint(0, _num_bytes(model.initial_params(0)), None)

    def num_task_params(self, model):
        return 0


METHODS: dict[str, AdaptationMethod] = {}


def register_method(method: AdaptationMethod) -> None:
    """Adds a method to `METHODS` under its name.

    Raises:
      ValueError: the name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"adaptation method {method.name!r} is registered already")
    METHODS[method.name] = method


for _method in (Finetuning(), LinearProbing(), LoraFinetuning(), Prompting()):
    register_method(_method)


def method_of(hparams: HParams) -> AdaptationMethod:
    """Returns the adaptation method named by the key "method" of hyper-parameters."""
    return METHODS[hparams["method"]]


def check_methods(names: Sequence[str]) -> None:
    """Raises UserError if a method name is unknown or repeated.

    Raises:
      UserError: otherwise.
    """
    for name in names:
        if name not in METHODS:
            raise UserError(f"--adapt: {name!r} is not known; accepted are {', '.join(METHODS)}")
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"--adapt={','.join(names)}: takes at least one of {', '.join(METHODS)}, none twice"
        )


def num_trials(
    recipe: AdaptationRecipe, names: Iterable[str], *, num_fewshot: Sequence[int] = (0,)
) -> int:
    """Returns the number of hyper-parameter settings that the named methods try in total."""
    return sum(len(METHODS[name].search_space(recipe, num_fewshot=num_fewshot)) for name in names)


def extend_grid(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Returns `values` plus `count` more, alternately above and below in half-decade steps."""
    beyond = [
        max(values) * 10 ** (n / 4 + 0.5) if n % 2 == 0 else min(values) * 10 ** (-(n + 1) / 4)
        for n in range(count)
    ]
    return (*values, *beyond)


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
