"""Saved classical models: kept as the examples they learn from, and fitted to them when loaded.

A classical model is quick to fit and its fitted parts are of many libraries, so what is saved is
the labeled examples with their labels, the unlabeled examples if the model learns from them, the
settings, and of a model that reads a network's features beside its own that network. A conditional
random field is saved as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler, normalize

from fm.adaptation.batching import BATCH_SIZE
from fm.adaptation.linear_probe import Rescaling
from fm.errors import UserError
from fm.evaluation import ner_baseline
from fm.evaluation.baselines import Examples, FeatureSet, FeatureStore
from fm.evaluation.baselines.features import stack
from fm.study import task_models
from fm.study.adaptation import CLASSICAL, Predictions
from fm.study.adapted_model import AdaptedModel, new_record, to_host
from fm.study.baseline_arms import ClassicalArm, ClassicalNerArm
from fm.study.head_task_types import HeadTaskType
from fm.study.task import Task

# Most examples that are saved with a model.
_MAX_EXAMPLES = 100_000


class ClassicalModel(AdaptedModel):
    """A classical model that predicts labels of new examples, batch by batch of one size."""

    @functools.cached_property
    def fitted(self) -> Any:
        """The conditional random field; of other models None, they are fitted batch by batch."""
        content = self.arrays.get("crf")
        return None if content is None else ner_baseline.load_crf(content.tobytes())

    def predict(self, inputs: Any) -> Predictions:
        """Returns predictions for new examples; see `AdaptedModel.predict`."""
        if not len(inputs):
            return Predictions(np.zeros(0, int))
        if self.fitted is not None:
            values = np.empty(len(inputs), object)
            values[:] = self.fitted.predict(inputs)
            return Predictions(values)
        parts = []
        for start in range(0, len(inputs), BATCH_SIZE):
            own = inputs[start : start + BATCH_SIZE]
            # Filled up with repeats: products of matrices depend on their shape in the last bits.
            idx = np.minimum(np.arange(BATCH_SIZE), len(own) - 1)
            filled = own[idx] if isinstance(own, np.ndarray) else [own[n] for n in idx]
            values, probabilities = self._predict_batch(filled)
            shown = None if probabilities is None else probabilities[: len(own)]
            parts.append((values[: len(own)], shown))
        all_values, all_probabilities = zip(*parts, strict=True)
        if all_probabilities[0] is None:
            return Predictions(np.concatenate(all_values))
        return Predictions(np.concatenate(all_values), np.concatenate(all_probabilities))

    def _predict_batch(self, inputs: Any) -> tuple[np.ndarray, np.ndarray | None]:
        state, num_pool = self.record.state, len(self._pool)
        store = self._store.with_examples(_ExamplesAfter(self._pool, inputs))
        truths = self.arrays.get("truths")
        if truths is not None:  # those of new examples are not looked at
            blank = np.zeros((len(inputs), *truths.shape[1:]), truths.dtype)
            truths = np.concatenate([truths, blank])
        assert isinstance(self.task_type, HeadTaskType)
        family = self.task_type.family_builder(truths)(
            self.record.modality, store, len(self.names), self._network
        )
        idx = np.arange(num_pool, num_pool + len(inputs))
        train_idx, labels = self.arrays["train_idx"], self.arrays["labels"]
        return family.predict(train_idx, labels, state["seed"], self.record.hparams, idx)

    @functools.cached_property
    def _pool(self) -> Examples:
        return self._examples("pool")

    def _examples(self, name: str) -> Examples:
        inputs = self.arrays.get(name)
        if inputs is None:
            inputs = self.record.state[name]
        return Examples(inputs, self.record.reading.get("rate"))

    @functools.cached_property
    def _store(self) -> FeatureStore:
        """The labeled pool, with what is learned from the unlabeled examples."""
        state = self.record.state
        if not state["num_in_corpus"]:
            return FeatureStore(self._pool)
        has = "unlabeled" in state or "unlabeled" in self.arrays
        unlabeled = self._examples("unlabeled") if has else None
        return FeatureStore(self._pool, unlabeled, len(self._pool))

    @functools.cached_property
    def _network(self) -> FeatureSet | None:
        """Features of the network, as in `build_network_beside_classical_arm`; None without one."""
        if "scaler" not in self.arrays:
            return None
        scale = Rescaling.restore("standardise", self.arrays["scaler"])

        def extract(inputs: Any, sample_rate: float | None) -> np.ndarray:
            rows: np.ndarray | None = None
            row_length = self.record.row_length
            for places, model in self.model.on_new_examples(inputs, self.tokenizer, row_length):
                own = model.features(0, model.test_idx)
                if rows is None:
                    rows = np.zeros((len(inputs), own.shape[1]), own.dtype)
                rows[places] = own[: len(places)]
            assert rows is not None
            return np.asarray(normalize(scale.scaler.transform(rows)))

        return FeatureSet("network", extract)


class _ExamplesAfter(Examples):
    """Examples of which the first ones are others whose rows are known."""

    def __init__(self, first: Examples, inputs: Any):
        super().__init__(inputs, first.sample_rate)
        self._first = first

    def __len__(self) -> int:
        return len(self._first) + len(self.inputs)

    def rows(self, extract: Any) -> Any:
        """Returns the rows of the first examples, then of the others."""
        return stack([self._first.rows(extract), super().rows(extract)])


def classical_model(
    task: Task,
    arm: ClassicalArm | ClassicalNerArm,
    train_idx: np.ndarray,
    hparams: Mapping[str, Any],
    seed: int,
    *,
    tokenizer: Any = None,
    columns: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> ClassicalModel:
    """Returns a classical model of a study, ready to be saved.

    Args:
      task: of the study.
      arm: of the task.
      train_idx: indices into the task's training split of the labels it is fitted to.
      hparams: of the fit.
      seed: of the fit.
      tokenizer: of the network whose features it reads, if it does and that reads text.
      columns: see `adapted_model`.
      run: see `adapted_model`.

    Raises:
      UserError: it cannot be kept.
    """
    options: dict[str, Any] = {"columns": columns, "run": run}
    own_hparams = {"method": CLASSICAL, **hparams}
    pool_idx = task.pool_rows(train_idx)
    if isinstance(arm, ClassicalNerArm):
        words, tags = [arm.words[n] for n in pool_idx], [arm.tags[n] for n in pool_idx]
        content = ner_baseline.fit(words, tags, dict(hparams)).content
        arrays: dict[str, Any] = {"crf": np.frombuffer(content, np.uint8)}
        record = new_record(task.dataset, task.task_type, own_hparams, {"seed": seed}, **options)
        return ClassicalModel(record, arrays)
    if task_models.baseline_modality(task) != task.modality:
        raise UserError("classical models of pairs of texts are not kept")
    family = arm.families[seed % len(arm.families)]
    member = next(each for each in family.members if each.name == hparams["member"])
    pool = task.labeled_pool if member.needs_unlabeled else train_idx
    rest = task.unlabeled_idx if member.needs_unlabeled else np.zeros(0, int)
    if len(pool) + len(rest) > _MAX_EXAMPLES:
        raise UserError(f"it learns from more than {_MAX_EXAMPLES:,} examples")
    state: dict[str, Any] = {
        "seed": seed,
        "num_in_corpus": len(pool) if member.needs_unlabeled else 0,
    }
    arrays = {
        "train_idx": pool_idx if member.needs_unlabeled else np.arange(len(train_idx)),
        "labels": np.asarray(task.strata[train_idx]),
    }
    assert isinstance(task.task_type, HeadTaskType)
    truths = task.task_type.truths(task.dataset.train, task.dataset)
    if truths is not None:
        arrays["truths"] = np.asarray(truths)[pool]
    for name, idx in (("pool", pool), ("unlabeled", rest)) if len(rest) else (("pool", pool),):
        inputs = task.dataset.train.inputs(idx)
        if isinstance(inputs, list):
            state[name] = inputs
        else:
            arrays[name] = np.asarray(inputs)
    if arm.network is None:
        record = new_record(task.dataset, task.task_type, own_hparams, state, **options)
        return ClassicalModel(record, arrays)
    network = arm.network
    if tokenizer is not None and tokenizer.vocab_size != network.model_config.vocab_size:
        raise UserError("the tokenizer of its network is not that of the first recipe")
    features = network.features(seed % len(arm.families), np.arange(network.test_from))
    scaler = StandardScaler().fit(features)
    arrays["scaler"] = Rescaling("standardise", scaler).arrays()
    arrays["initial"] = to_host(network.initial_params(seed))
    options |= {"model": network, "tokenizer": tokenizer}
    record = new_record(task.dataset, task.task_type, own_hparams, state, **options)
    return ClassicalModel(record, arrays, tokenizer)
