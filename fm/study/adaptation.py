"""An arm's way from labels to predictions: one grid for all, chosen on validation, fitted once.

Every arm answers the same three questions for a draw of labels: how good each setting of the
grid is on validation cut from them, what a setting predicts for the test items when fitted on
all of them, and what that costs.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any, Protocol

import jax
import numpy as np

from fm.adaptation.batching import TokenizedExamples, take
from fm.adaptation.features import probe_features
from fm.adaptation.finetune import FinetuneConfig, finetune, predict
from fm.adaptation.linear_probe import cross_validate_probe, fit_probe
from fm.evaluation import baselines
from fm.evaluation.model_selection import make_folds
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.embeddings import modalities_in
from fm.model.transformer import init
from fm.study.config import DEFAULT_METHODS, Recipe

HParams = dict[str, Any]
Trial = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit gave.

    Attributes:
      predictions: classes of the test items, [N].
      params: what predicts them; of a probe what was fitted alone.
      steps: updates, or iterations of a probe's solver.
    """

    predictions: np.ndarray
    params: dict
    steps: int


class Arm(Protocol):
    """One way of solving a task, whatever it was fed."""

    def grid(self) -> list[HParams]:
        """The settings tried; as many for every arm."""
        ...

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's accuracy on validation cut from the drawn labels."""
        ...

    def fit_predict(
        self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: HParams
    ) -> np.ndarray:
        """Classes of the test items, after fitting on all drawn labels."""
        ...

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """Cost of fitting one setting on so many labels."""
        ...


def extend_grid(values: tuple[float, ...], more: int) -> tuple[float, ...]:
    """The values and `more` others beyond them, by half decades, above and below in turn."""
    beyond = [
        max(values) * 10 ** (n / 4 + 0.5) if n % 2 == 0 else min(values) * 10 ** (-(n + 1) / 4)
        for n in range(more)
    ]
    return (*values, *beyond)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalArm:
    """TF-IDF or pixels and logistic regression.

    Attributes:
      modality: of the task.
      inputs: from `baselines.prepare`: of the labelled examples, then of the test items.
      test_from: row of the first test item.
      num_trials: settings to try.
    """

    modality: str
    inputs: Any
    test_from: int
    num_trials: int

    def grid(self) -> list[HParams]:
        """Inverse penalties."""
        return baselines.hparam_grid(self.modality, self.num_trials)

    def validate(self, drawn, labels, seed) -> list[Trial]:
        """See `Arm`."""
        cut = make_folds(labels, seed=seed)
        return baselines.cross_validate(self.modality, self.inputs[drawn], labels, self.grid(), cut)

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `Arm`."""
        fitted = baselines.fit(self.modality, self.inputs[drawn], labels, setting)
        return fitted.predict(self.inputs[self.test_from :])

    def fit_flops(self, labels, setting) -> float:
        """Too little to count beside a network's."""
        return 0.0


@dataclasses.dataclass(eq=False)
class NetworkArm:
    """A transformer, fresh or pretrained: linear probe, full fine-tuning, adapters.

    Attributes:
      checkpoints: parameters, shared out over the seeds; none for an arm that starts afresh.
      model: architecture.
      recipe: grids and fine-tuning.
      examples: of the labelled examples, then of the test items.
      test_from: row of the first test item.
      num_classes: number of classes.
      capacity: the largest label budget.
      methods: methods asked for; "prompt" is not one of its own, see `grid`.
      num_trials: settings to try; 0 for those of its own methods.
    """

    checkpoints: list[dict]
    model: ModelConfig
    recipe: Recipe
    examples: TokenizedExamples
    test_from: int
    num_classes: int
    capacity: int
    methods: tuple[str, ...] = DEFAULT_METHODS
    num_trials: int = 0
    _features: dict[int, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    # Seeds run side by side; rows are read once, by the first who wants them.
    _locks: dict[int, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    def grid(self) -> list[HParams]:
        """Probes by penalty, then fine-tuning and LoRA by learning rate.

        Where others try prompts, which a model this small does not follow, it tries as many
        more penalties or rates of the first method it has.
        """
        values = {
            "probe": self.recipe.l2_penalties,
            "full": self.recipe.learning_rates,
            "lora": self.recipe.lora_learning_rates,
        }
        values = {method: tried for method, tried in values.items() if method in self.methods}
        first = next(iter(values))
        more = self.num_trials - self.recipe.num_trials(tuple(values)) if self.num_trials else 0
        values[first] = extend_grid(values[first], more)
        key = {"probe": "l2", "full": "learning_rate", "lora": "learning_rate"}
        scale = {"probe": {"scale": self.recipe.feature_scaling}}
        return [
            {"adapt": method, **scale.get(method, {}), key[method]: value}
            for method, tried in values.items()
            for value in tried
        ]

    def initial_params(self, seed: int) -> dict:
        """Parameters a seed starts from."""
        if self.checkpoints:
            return self.checkpoints[seed % len(self.checkpoints)]
        return init(jax.random.key(1000 + seed), self.model)

    def validate(self, drawn, labels, seed) -> list[Trial]:
        """See `Arm`."""
        cut = make_folds(labels, seed=seed)
        probes = [setting for setting in self.grid() if setting["adapt"] == "probe"]
        trials = []
        if probes:
            trials = cross_validate_probe(self.features_of(seed, drawn), labels, probes, cut)
        for setting in self.grid()[len(probes) :]:
            right = 0
            for fit, held in cut:
                tuned = self.tune(drawn[fit], labels[fit], seed, setting)
                guessed = predict(
                    tuned,
                    take(self.examples, drawn[held]),
                    self.model,
                    feature_config=self.recipe.finetune.feature_config,
                )
                right += int(np.sum(guessed == labels[held]))
            held_out = sum(len(held) for _, held in cut)
            trials.append({"config": setting, "validation": right / held_out})
        return trials

    def tune(self, drawn, labels, seed, setting, steps: int | None = None) -> dict:
        """Fine-tuning of all or of adapters; see `fm.adaptation.finetune`."""
        return finetune(
            self.initial_params(seed),
            take(self.examples, drawn),
            labels,
            self.model,
            self.tuning(setting),
            num_classes=self.num_classes,
            seed=seed,
            pad_to=self.capacity,
            num_steps=steps,
        )

    def tuning(self, setting: HParams) -> FinetuneConfig:
        """The fine-tuning that a setting asks for."""
        return dataclasses.replace(
            self.recipe.finetune,
            learning_rate=setting["learning_rate"],
            lora=self.recipe.lora if setting["adapt"] == "lora" else None,
        )

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `Arm`."""
        return self.fit(drawn, labels, seed, setting).predictions

    def fit(self, drawn, labels, seed, setting) -> FitResult:
        """Fits a setting on all drawn labels."""
        if setting["adapt"] == "probe":
            probe = fit_probe(self.features_of(seed, drawn), labels, setting)
            predictions = probe.predict(self.features_of(seed, self._test()))
            return FitResult(predictions, probe.params, probe.steps)
        tuned = self.tune(drawn, labels, seed, setting)
        predictions = predict(
            tuned,
            take(self.examples, self._test()),
            self.model,
            feature_config=self.recipe.finetune.feature_config,
        )
        return FitResult(predictions, tuned, self.tuning(setting).num_steps(len(labels)))

    def fit_flops(self, labels, setting) -> float:
        """Forward once per label for a probe, three times per example drawn for fine-tuning.

        Twice for LoRA, which has no products for the gradients of kernels (its own are small).
        """
        length = self.examples["segments"].shape[1]
        streams = modalities_in(self.examples, self.model)
        if setting["adapt"] == "probe":
            return labels * flops.forward_flops(
                self.model, length, num_predictions=0, modalities=streams
            )
        tuning = self.recipe.finetune
        return (
            (2 / 3 if setting["adapt"] == "lora" else 1)
            * tuning.num_steps(labels)
            * tuning.batch_size
            * flops.train_flops(
                self.model,
                min(tuning.tokens_kept or length, length),
                num_predictions=0,
                modalities=streams,
            )
        )

    def _test(self) -> np.ndarray:
        return np.arange(self.test_from, len(self.examples["segments"]))

    def lock(self, key: int) -> threading.Lock:
        """Held while what belongs to a starting point is computed."""
        return self._locks[key]

    def features_of(self, seed: int, wanted: np.ndarray) -> np.ndarray:
        """Features of the wanted rows from the seed's starting parameters, each computed once."""
        key = seed % len(self.checkpoints) if self.checkpoints else seed
        with self.lock(key):
            known = self._features.setdefault(key, {})
            missing = [row for row in wanted.tolist() if row not in known]
            if missing:
                made = probe_features(
                    self.initial_params(seed),
                    take(self.examples, np.array(missing)),
                    self.model,
                    feature_config=self.recipe.finetune.feature_config,
                )
                known.update(zip(missing, made, strict=True))
        return np.stack([known[row] for row in wanted.tolist()])
