# ruff: noqa: D102 (methods inherit the docstrings of `AdaptationMethod`)
"""Adaptation methods: the protocol, the registry, and the built-in methods.

A method turns a model with labeled examples (a `TaskModel`) into a predictor. To add one, subclass
`AdaptationMethod` and pass an instance to `register_method`: studies, cost tables and the command
line iterate over `METHODS`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation import lora
from fm.adaptation.augment import AUGMENTATIONS
from fm.adaptation.batching import take
from fm.adaptation.features import extract_features
from fm.adaptation.finetune import FinetuneConfig, FinetuningRun, MemoryFootprint
from fm.adaptation.linear_probe import CLASS_WEIGHTS, SCALES, fit_probe
from fm.adaptation.search import Trial, best_epochs, last_gain, successive_halving
from fm.adaptation.self_training import MAX_UNLABELED, max_examples, pseudo_labels, repeats
from fm.adaptation.svc import svc_grid
from fm.adaptation.task_model import AdaptationRecipe, Fold, TaskModel, class_weight_choices
from fm.errors import UserError
from fm.evaluation.model_selection import from_the_middle, select_trial

HParams = dict[str, Any]

# Weight decay and dropout, of which a regularizer raises one.
BASE_WEIGHT_DECAY, STRONG_WEIGHT_DECAY, STRONG_DROPOUT = 0.01, 0.3, 0.3
# Pseudo-labeling rounds that self-training tries, after the teacher alone.
SELF_TRAINING_ROUNDS = 2


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
      reads_unlabeled: whether it reads the unlabeled examples, `TaskModel.unlabeled_idx`.
    """

    name: str
    description: str
    search_order: int = 10
    published_models_only: bool = False
    updates_model: bool = False
    reads_features: bool = False
    reads_unlabeled: bool = False

    @abc.abstractmethod
    def supports(self, model: TaskModel) -> bool:
        """Returns whether the method can adapt the model to its task."""

    @abc.abstractmethod
    def search_space(
        self, recipe: AdaptationRecipe, *, num_fewshot: Sequence[int] = (0,)
    ) -> list[HParams]:
        """Returns hyper-parameters to try, the middle of each grid first.

        A search may widen a grid. `num_fewshot` are the numbers of solved examples to try in
        prompts.
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
    ) -> list[Trial]:
        """Returns the trials of a search on the examples `train_idx` alone.

        Each is {"config": hyper-parameters, "validation": score over the held-out examples of all
        folds, the best of its readings, "flops": of the trial}, and of a method that
        `updates_model` "last_gain": by how much the last doubling of its updates raised the best
        score. Of trials with equal scores the first is
        to be taken: no trial before an equal one lies nearer to an end of its grid.
        """
        grid = self.search_space(model.recipe, num_fewshot=model.num_fewshot)
        return cross_validated_trials(self, model, train_idx, labels, seed, folds, grid)

    def predict_proba(
        self, model: TaskModel, fitted: FittedModel, idx: np.ndarray
    ) -> np.ndarray | None:
        """Returns class probabilities of the examples `idx`, float32 [n, classes]; None if none.

        Where there are any, `predict` returns the most likely classes.
        """
        return None


def cross_validated_trials(
    method: AdaptationMethod,
    model: TaskModel,
    train_idx: np.ndarray,
    labels: np.ndarray,
    seed: int,
    folds: Sequence[Fold],
    grid: Sequence[HParams],
) -> list[Trial]:
    """Returns a trial for each setting of `grid`, from a whole fit in each fold."""

    def fit_predict(fit_idx, labels, held_out_idx, hparams):
        fitted = method.fit(model, fit_idx, labels, seed, hparams)
        return method.predict(model, fitted, held_out_idx)

    return [
        {
            "config": hparams,
            "validation": model.cross_validate(
                functools.partial(fit_predict, hparams=hparams), train_idx, labels, folds
            ),
            "flops": sum(method.flops(model, len(fit), hparams) for fit, _ in folds),
        }
        for hparams in grid
    ]


def regularization(name: str) -> HParams:
    """Returns the hyper-parameters of a regularizer: "weight_decay", "dropout" or an augmentation.

    Raises:
      UserError: none is called so.
    """
    hparams = {"weight_decay": BASE_WEIGHT_DECAY, "dropout": 0.0, "augment": None}
    strong = {"weight_decay": STRONG_WEIGHT_DECAY, "dropout": STRONG_DROPOUT}
    if name in strong:
        return hparams | {name: strong[name]}
    if name in AUGMENTATIONS:
        return hparams | {"augment": name}
    accepted = ", ".join([*strong, *AUGMENTATIONS])
    raise UserError(f"regularizers: {name!r} is not known; accepted are {accepted}")


class Finetuning(AdaptationMethod):
    """Fine-tunes every parameter and a new classification head, for as long as it gains."""

    name = "full"
    description = "fine-tunes every parameter with a new head"
    search_order = 1
    updates_model = True
    relative_flops = 1.0

    def supports(self, model):
        return model.trainable

    def search_space(self, recipe, *, num_fewshot=(0,)):
        rates, (first, *others) = self.learning_rates(recipe), recipe.regularizers
        if recipe.search_grid == "star":
            pairs = [(rate, first) for rate in rates] + [(rates[0], each) for each in others]
        else:
            pairs = itertools.product(rates, recipe.regularizers)
        return [
            {"method": self.name, "learning_rate": rate} | regularization(regularizer)
            for rate, regularizer in pairs
        ]

    def learning_rates(self, recipe: AdaptationRecipe) -> tuple[float, ...]:
        """Returns the grid of learning rates."""
        return recipe.learning_rates

    def config(self, recipe: AdaptationRecipe, hparams: HParams) -> FinetuneConfig:
        """Returns the fine-tuning config for the given hyper-parameters."""
        names = ("learning_rate", "weight_decay", "dropout", "augment")
        chosen = {name: hparams[name] for name in names if name in hparams}
        return dataclasses.replace(recipe.finetune, **chosen)

    def start(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        hparams: HParams,
        pad_to: int = 0,
    ) -> FinetuningRun:
        """Returns a run of no steps yet on the labeled examples `train_idx`."""
        return FinetuningRun(
            model.initial_params(seed),
            take(model.examples, train_idx),
            model.targets(train_idx, labels),
            model.model_config,
            self.config(model.recipe, hparams),
            num_classes=model.num_classes,
            seed=seed,
            pad_to=pad_to or model.pad_to,
            layout=model.layout,
            head=self.init_head(model, train_idx, labels, seed),
        )

    def init_head(self, model: TaskModel, train_idx, labels, seed: int) -> dict | None:
        """Returns the head that training starts from; None for zeros."""
        return None

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        config = self.config(model.recipe, hparams)
        run = self.start(model, train_idx, labels, seed, hparams)
        whole = config.num_steps(len(labels), hparams.get("epochs"))
        run.advance(whole if num_steps is None else num_steps)
        return FittedModel(run.finetuned(), run.num_steps)

    def predict(self, model, fitted, idx):
        return model.predict_finetuned(fitted.params, idx)

    def predict_proba(self, model, fitted, idx):
        return model.predict_finetuned_proba(fitted.params, idx)

    def search(self, model, train_idx, labels, seed, folds):
        # Of the smallest part, so that every fold is read after the same passes over its examples.
        smallest = min(len(fit) for fit, _ in folds)
        num_held_out = sum(len(held) for _, held in folds)
        epoch_grid = model.recipe.finetune.epoch_grid(smallest)
        configs = self.search_space(model.recipe)
        start = functools.partial(self._start_folds, model, train_idx, labels, seed, folds)
        candidates = [functools.partial(start, hparams) for hparams in configs]
        min_epochs = model.recipe.finetune.min_search_epochs(smallest)
        readings = successive_halving(candidates, epoch_grid, min_epochs)
        ranked = [
            {epochs: score for epochs, score in each.items() if epochs >= min_epochs} or each
            for each in readings
        ]
        return [
            {
                "config": hparams | {"epochs": best_epochs(scores, num_held_out)},
                "validation": max(scores.values()),
                "last_gain": last_gain(each),
                "readings": [[epochs, score] for epochs, score in each.items()],
                "flops": sum(
                    self.flops(model, len(fit), hparams | {"epochs": max(each)}) for fit, _ in folds
                ),
            }
            for hparams, each, scores in zip(configs, readings, ranked, strict=True)
        ]

    def _start_folds(self, model, train_idx, labels, seed, folds, hparams):
        """Starts a run in each fold; returns a function: epochs to validation score."""
        config = self.config(model.recipe, hparams)
        runs = [self.start(model, train_idx[fit], labels[fit], seed, hparams) for fit, _ in folds]
        held_out = np.concatenate([each for _, each in folds])

        def read(epochs: int) -> float:
            predictions = []
            for run, (fit, held) in zip(runs, folds, strict=True):
                run.advance(config.num_steps(len(fit), epochs))
                predictions.append(model.predict_finetuned(run.finetuned(), train_idx[held]))
            return model.score(np.concatenate(predictions), labels[held_out])

        return read

    def flops(self, model, num_labels, hparams):
        # LoRA forms no gradient of a kernel, one product in three; its own products are small.
        config = model.recipe.finetune
        return (
            self.relative_flops
            * config.num_steps(num_labels, hparams.get("epochs"))
            * config.batch_size
            * model.train_flops(config.tokens_kept)
        )

    def footprint(self, model, train_idx, labels, hparams):
        return self.start(model, train_idx, labels, 0, hparams).footprint()

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


class ProbeThenFinetuning(Finetuning):
    """Fine-tunes from a linear probe's head instead of zeros (LP-FT, Kumar et al. 2022)."""

    name = "lp_ft"
    description = "fits the head alone, then fine-tunes every parameter from there"
    search_order = 4

    def supports(self, model):
        return model.trainable and model.predicts_classes

    def init_head(self, model, train_idx, labels, seed):
        options = {"feature_config": model.recipe.finetune.feature_config, "final_only": True}
        states = extract_features(
            model.initial_params(seed),
            take(model.examples, train_idx),
            model.model_config,
            **options,
        )
        penalty = from_the_middle(model.recipe.l2_penalties)[0]
        probe = fit_probe(states[:, 0], labels, {"scale": "l2", "l2": penalty})
        return _head_of_probe(probe.params, probe.classifier.classes_, model.num_classes)


def _head_of_probe(weights: dict, seen: np.ndarray, num_classes: int) -> dict:
    """Returns a probe of rows of length 1 as the head that reads rows of root mean square 1."""
    kernel_KE, bias_K = weights["kernel"], weights["bias"]
    if len(kernel_KE) == 1:
        # Logistic regression has one vector for two classes.
        kernel_KE = np.concatenate([-kernel_KE, kernel_KE]) / 2
        bias_K = np.array([-0.5, 0.5]) * bias_K
    kernel = np.zeros((kernel_KE.shape[1], num_classes), np.float32)
    # A class without examples is as good as excluded, but can be learned.
    bias = np.full(num_classes, bias_K.min() - 5.0, np.float32)
    kernel[:, seen] = kernel_KE.T / kernel_KE.shape[1] ** 0.5
    bias[seen] = bias_K
    return {"kernel": kernel, "bias": bias}


class SelfTraining(Finetuning):
    """Fine-tunes on labels and on the fitted model's confident answers to unlabeled examples."""

    name = "self_training"
    description = "fine-tunes again with its own confident answers to unlabeled examples"
    search_order = 5
    reads_unlabeled = True

    def supports(self, model):
        return model.trainable and model.predicts_classes and len(model.unlabeled_idx) > 1

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [hparams | {"rounds": 0} for hparams in super().search_space(recipe)]

    def search(self, model, train_idx, labels, seed, folds):
        trials = super().search(model, train_idx, labels, seed, folds)
        best = select_trial(trials)
        held_out = np.concatenate([each for _, each in folds])
        predictions = [[] for _ in range(SELF_TRAINING_ROUNDS)]
        hparams = best["config"] | {"rounds": SELF_TRAINING_ROUNDS}
        for fit, held in folds:
            rounds = self._rounds(model, train_idx[fit], labels[fit], seed, hparams)
            for n, (params, _) in enumerate(list(rounds)[1:]):
                predictions[n].append(model.predict_finetuned(params, train_idx[held]))
        for n, each in enumerate(predictions, start=1):
            config = best["config"] | {"rounds": n}
            trials.append(
                {
                    "config": config,
                    "validation": model.score(np.concatenate(each), labels[held_out]),
                    "last_gain": best["last_gain"],
                    "flops": sum(self.flops(model, len(fit), config) for fit, _ in folds),
                }
            )
        return trials

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        rounds = list(self._rounds(model, train_idx, labels, seed, hparams, num_steps))
        return FittedModel(rounds[-1][0], sum(steps for _, steps in rounds))

    def _rounds(self, model, train_idx, labels, seed, hparams, num_steps=None):
        """Yields (parameters, steps) of the teacher, then of the student of each round."""
        fitted = super().fit(model, train_idx, labels, seed, hparams, num_steps=num_steps)
        yield fitted.params, fitted.steps
        unlabeled_idx = unlabeled_sample(model.unlabeled_idx, seed)
        params = fitted.params
        for _ in range(hparams["rounds"]):
            chosen, classes = pseudo_labels(model.predict_finetuned_proba(params, unlabeled_idx))
            times = repeats(len(labels), len(chosen))
            run = self.start(
                model,
                np.concatenate([np.tile(train_idx, times), unlabeled_idx[chosen]]),
                np.concatenate([np.tile(labels, times), classes]),
                seed,
                hparams,
                pad_to=max_examples(model.pad_to),
            )
            run.advance(self.student_steps(model, len(labels), hparams, len(unlabeled_idx)))
            params = run.finetuned()
            yield params, run.num_steps

    def student_steps(
        self, model: TaskModel, num_labels: int, hparams: HParams, num_unlabeled: int
    ) -> int:
        """Returns a student's steps: at least its teacher's, and 4 epochs of all it may get."""
        config = model.recipe.finetune
        most = max_examples(num_labels) if num_unlabeled >= MAX_UNLABELED else num_labels * 2
        return max(config.num_steps(num_labels, hparams.get("epochs")), config.num_steps(most, 4))

    def flops(self, model, num_labels, hparams):
        teacher = super().flops(model, num_labels, hparams)
        config, looked_at = model.recipe.finetune, min(len(model.unlabeled_idx), MAX_UNLABELED)
        steps = self.student_steps(model, num_labels, hparams, looked_at)
        student = steps * config.batch_size * model.train_flops(config.tokens_kept)
        return teacher + hparams.get("rounds", 0) * (student + looked_at * model.feature_flops())


def unlabeled_sample(unlabeled_idx: np.ndarray, seed: int) -> np.ndarray:
    """Returns at most `MAX_UNLABELED` of the unlabeled examples, drawn by the seed, ascending."""
    order = np.random.default_rng([seed, 1]).permutation(len(unlabeled_idx))[:MAX_UNLABELED]
    return unlabeled_idx[np.sort(order)]


class LinearProbing(AdaptationMethod):
    """Fits logistic regression to frozen features."""

    name = "probe"
    description = "logistic regression on frozen features"
    search_order = 0
    reads_features = True

    def supports(self, model):
        return True

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [
            {"method": self.name, "scale": scale, "class_weight": weight, "l2": penalty}
            for scale in SCALES
            for weight in CLASS_WEIGHTS
            for penalty in from_the_middle(recipe.l2_penalties)
        ]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        probe = model.fit_probe(seed, train_idx, labels, hparams)
        return FittedModel(probe.params, probe.steps, (probe, seed))

    def predict(self, model, fitted, idx):
        probe, seed = fitted.state
        return model.predict_probe(probe, seed, idx)

    def predict_proba(self, model, fitted, idx):
        probe, seed = fitted.state
        return model.predict_probe_proba(probe, seed, idx)

    def search(self, model, train_idx, labels, seed, folds):
        return [
            {"config": {"method": self.name} | hparams, "validation": score, "flops": 0.0}
            for hparams, score in model.search_probe(seed, train_idx, labels, folds)
        ]

    def flops(self, model, num_labels, hparams):
        return num_labels * model.feature_flops()

    def footprint(self, model, train_idx, labels, hparams):
        return MemoryFootprint(
            self.num_task_params(model), _num_bytes(model.initial_params(0)), None
        )

    def num_task_params(self, model):
        # Logistic regression has one vector for two classes.
        return (model.num_features() + 1) * (1 if model.num_classes == 2 else model.num_classes)


class SupportVectorProbing(LinearProbing):
    """Fits a support-vector classifier with an RBF kernel to frozen features."""

    name = "svc"
    description = "RBF support-vector classifier on frozen features"
    search_order = 6

    def supports(self, model):
        return model.predicts_classes

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [{"method": self.name} | hparams for hparams in svc_grid(SCALES, CLASS_WEIGHTS)]

    def fit(self, model, train_idx, labels, seed, hparams, *, num_steps=None):
        probe = model.fit_svc(seed, train_idx, labels, hparams)
        return FittedModel(probe.params, probe.steps, (probe, seed))

    def predict_proba(self, model, fitted, idx):
        return None

    def search(self, model, train_idx, labels, seed, folds):
        weights = class_weight_choices(labels)
        grid = [h for h in self.search_space(model.recipe) if h["class_weight"] in weights]
        trials = cross_validated_trials(self, model, train_idx, labels, seed, folds, grid)
        return [trial | {"flops": 0.0} for trial in trials]

    def num_task_params(self, model):
        # At most all examples are support vectors.
        return model.pad_to * (model.num_features() + model.num_classes - 1)


class Prompting(AdaptationMethod):
    """Predicts the likeliest answer to a prompt, zero-shot or few-shot; nothing is trained."""

    name = "prompt"
    description = "zero- or few-shot prompts of a causal language model"
    search_order = 3
    published_models_only = True

    def supports(self, model):
        return bool(model.num_fewshot)

    def search_space(self, recipe, *, num_fewshot=(0,)):
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


for _method in (
    Finetuning(),
    LinearProbing(),
    LoraFinetuning(),
    Prompting(),
    ProbeThenFinetuning(),
    SelfTraining(),
    SupportVectorProbing(),
):
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
            f"--adapt={','.join(names)}: methods, at least one of {', '.join(METHODS)}, none twice"
        )


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
