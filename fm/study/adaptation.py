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

from fm.evaluation import baselines
from fm.evaluation.probe import fit_probe, probe_trials
from fm.evaluation.validation import folds
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.streams import streams_of
from fm.model.transformer import init
from fm.study.config import ADAPT, Recipe
from fm.transfer.examples import Rows, take
from fm.transfer.features import frozen_features
from fm.transfer.finetune import FinetuneConfig, finetune, predict

Setting = dict[str, Any]
Trial = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
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

    def grid(self) -> list[Setting]:
        """The settings tried; as many for every arm."""
        ...

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's accuracy on validation cut from the drawn labels."""
        ...

    def fit_predict(
        self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: Setting
    ) -> np.ndarray:
        """Classes of the test items, after fitting on all drawn labels."""
        ...

    def fit_flops(self, labels: int, setting: Setting) -> float:
        """Cost of fitting one setting on so many labels."""
        ...


def widened(values: tuple[float, ...], more: int) -> tuple[float, ...]:
    """The values and `more` others beyond them, by half decades, above and below in turn."""
    beyond = [
        max(values) * 10 ** (n / 4 + 0.5) if n % 2 == 0 else min(values) * 10 ** (-(n + 1) / 4)
        for n in range(more)
    ]
    return (*values, *beyond)


@dataclasses.dataclass(frozen=True, eq=False)
class Classical:
    """TF-IDF or pixels and logistic regression.

    Attributes:
      modality: of the task.
      inputs: from `baselines.prepare`: of the labelled examples, then of the test items.
      test_from: row of the first test item.
      trials: settings to try.
    """

    modality: str
    inputs: Any
    test_from: int
    trials: int

    def grid(self) -> list[Setting]:
        """Inverse penalties."""
        return baselines.grid(self.modality, self.trials)

    def validate(self, drawn, labels, seed) -> list[Trial]:
        """See `Arm`."""
        cut = folds(labels, seed=seed)
        return baselines.cross_validate(self.modality, self.inputs[drawn], labels, self.grid(), cut)

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `Arm`."""
        fitted = baselines.fit(self.modality, self.inputs[drawn], labels, setting)
        return fitted.predict(self.inputs[self.test_from :])

    def fit_flops(self, labels, setting) -> float:
        """Too little to count beside a network's."""
        return 0.0


@dataclasses.dataclass(eq=False)
class Network:
    """A transformer, fresh or pretrained: linear probe, full fine-tuning, adapters.

    Attributes:
      checkpoints: parameters, shared out over the seeds; none for an arm that starts afresh.
      model: architecture.
      recipe: grids and fine-tuning.
      rows: of the labelled examples, then of the test items.
      test_from: row of the first test item.
      classes: number of classes.
      capacity: the largest label budget.
      adapt: methods asked for; "prompt" is not one of its own, see `grid`.
      trials: settings to try; 0 for those of its own methods.
    """

    checkpoints: list[dict]
    model: ModelConfig
    recipe: Recipe
    rows: Rows
    test_from: int
    classes: int
    capacity: int
    adapt: tuple[str, ...] = ADAPT
    trials: int = 0
    _features: dict[int, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    # Seeds run side by side; rows are read once, by the first who wants them.
    _locks: dict[int, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    def grid(self) -> list[Setting]:
        """Probes by penalty, then fine-tuning and LoRA by learning rate.

        Where others try prompts, which a model this small does not follow, it tries as many
        more penalties or rates of the first method it has.
        """
        values = {
            "probe": self.recipe.penalties,
            "full": self.recipe.learning_rates,
            "lora": self.recipe.adapter_rates,
        }
        values = {method: tried for method, tried in values.items() if method in self.adapt}
        first = next(iter(values))
        more = self.trials - self.recipe.trials(tuple(values)) if self.trials else 0
        values[first] = widened(values[first], more)
        key = {"probe": "l2", "full": "learning_rate", "lora": "learning_rate"}
        scale = {"probe": {"scale": self.recipe.scale}}
        return [
            {"adapt": method, **scale.get(method, {}), key[method]: value}
            for method, tried in values.items()
            for value in tried
        ]

    def start(self, seed: int) -> dict:
        """Parameters a seed starts from."""
        if self.checkpoints:
            return self.checkpoints[seed % len(self.checkpoints)]
        return init(jax.random.key(1000 + seed), self.model)

    def validate(self, drawn, labels, seed) -> list[Trial]:
        """See `Arm`."""
        cut = folds(labels, seed=seed)
        probes = [setting for setting in self.grid() if setting["adapt"] == "probe"]
        trials = []
        if probes:
            trials = probe_trials(self.features_of(seed, drawn), labels, probes, cut)
        for setting in self.grid()[len(probes) :]:
            right = 0
            for fit, held in cut:
                tuned = self.tune(drawn[fit], labels[fit], seed, setting)
                guessed = predict(
                    tuned,
                    take(self.rows, drawn[held]),
                    self.model,
                    reading=self.recipe.finetune.reading,
                )
                right += int(np.sum(guessed == labels[held]))
            held_out = sum(len(held) for _, held in cut)
            trials.append({"config": setting, "validation": right / held_out})
        return trials

    def tune(self, drawn, labels, seed, setting, steps: int | None = None) -> dict:
        """Fine-tuning of all or of adapters; see `fm.transfer.finetune`."""
        return finetune(
            self.start(seed),
            take(self.rows, drawn),
            labels,
            self.model,
            self.tuning(setting),
            classes=self.classes,
            seed=seed,
            capacity=self.capacity,
            steps=steps,
        )

    def tuning(self, setting: Setting) -> FinetuneConfig:
        """The fine-tuning that a setting asks for."""
        return dataclasses.replace(
            self.recipe.finetune,
            learning_rate=setting["learning_rate"],
            lora=self.recipe.adapters if setting["adapt"] == "lora" else None,
        )

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `Arm`."""
        return self.fit(drawn, labels, seed, setting).predictions

    def fit(self, drawn, labels, seed, setting) -> Fitted:
        """Fits a setting on all drawn labels."""
        if setting["adapt"] == "probe":
            probe = fit_probe(self.features_of(seed, drawn), labels, setting)
            predictions = probe.predict(self.features_of(seed, self._test()))
            return Fitted(predictions, probe.params, probe.steps)
        tuned = self.tune(drawn, labels, seed, setting)
        predictions = predict(
            tuned, take(self.rows, self._test()), self.model, reading=self.recipe.finetune.reading
        )
        return Fitted(predictions, tuned, self.tuning(setting).updates(len(labels)))

    def fit_flops(self, labels, setting) -> float:
        """Forward once per label for a probe, three times per example drawn for fine-tuning.

        Twice for LoRA, which has no products for the gradients of kernels (its own are small).
        """
        length = self.rows["segments"].shape[1]
        streams = streams_of(self.rows, self.model)
        if setting["adapt"] == "probe":
            return labels * flops.forward_flops(self.model, length, predictions=0, streams=streams)
        tuning = self.recipe.finetune
        return (
            (2 / 3 if setting["adapt"] == "lora" else 1)
            * tuning.updates(labels)
            * tuning.batch_size
            * flops.train_flops(
                self.model, min(tuning.keep or length, length), predictions=0, streams=streams
            )
        )

    def _test(self) -> np.ndarray:
        return np.arange(self.test_from, len(self.rows["segments"]))

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
                made = frozen_features(
                    self.start(seed),
                    take(self.rows, np.array(missing)),
                    self.model,
                    reading=self.recipe.finetune.reading,
                )
                known.update(zip(missing, made, strict=True))
        return np.stack([known[row] for row in wanted.tolist()])
