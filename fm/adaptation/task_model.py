"""A model together with the examples of one task: what adaptation methods work on."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from fm.adaptation import finetune
from fm.adaptation.batching import (
    TokenizedExamples,
    continuous_examples,
    fixed_batches,
    pad_rows,
    take,
    text_examples,
)
from fm.adaptation.features import probe_features
from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.lora import LoraConfig
from fm.adaptation.svc import fit_svc
from fm.adaptation.targets import ClassTarget, Target
from fm.data.media import PatchLayout
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.embeddings import modalities_in
from fm.model.transformer import init

Fold = tuple[np.ndarray, np.ndarray]
FitPredict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class AdaptationRecipe(Protocol):
    """Protocol: fixed settings and hyper-parameter grids of the adaptation methods.

    Attributes:
      finetune: fine-tuning, except for what the grids below set.
      learning_rates: grid of full fine-tuning, the first tried first.
      regularizers: grid of fine-tuning, see `fm.adaptation.methods.regularization`.
      search_grid: "product" tries every pair of learning rate and regularizer, "star" every
        learning rate with the first regularizer, and every regularizer with the first rate.
      lora: adapters of LoRA.
      lora_learning_rates: grid of LoRA.
      l2_penalties: grid of the linear probe, see `fm.adaptation.linear_probe.fit_probe`.
    """

    @property
    def finetune(self) -> FinetuneConfig: ...  # noqa: D102
    @property
    def learning_rates(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def regularizers(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def search_grid(self) -> str: ...  # noqa: D102
    @property
    def lora(self) -> LoraConfig: ...  # noqa: D102
    @property
    def lora_learning_rates(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def l2_penalties(self) -> tuple[float, ...]: ...  # noqa: D102


@dataclasses.dataclass(eq=False)
class TaskModel:
    """A transformer to adapt to a task, with the task's labeled examples and test items.

    Subclasses read other examples, or predict something of every token.

    Attributes:
      checkpoints: pretrained parameters, shared out over the seeds; empty for fresh parameters.
      model_config: architecture.
      recipe: see `AdaptationRecipe`.
      examples: labeled examples, then test items, then perhaps unlabeled ones, as the model reads
        them.
      test_from: index of the first test item.
      num_classes: number of the head's outputs.
      pad_to: the largest number of labels, see `finetune.finetune`.
      trainable: whether methods may train the model itself.
      num_fewshot: numbers of solved examples to try in prompts; empty for a model that does not
        follow prompts.
      layout: how examples were cut into patches, for augmentation; None for text.
      unlabeled_idx: rows of `examples` that are neither labeled nor test items, int [U].
      target: what an example's label is; by default one of `num_classes` classes.
      truths: the labels of all labeled examples and test items, [N, ...], where methods are given
        strata instead; None where they are given the labels.
    """

    checkpoints: Sequence[dict]
    model_config: ModelConfig
    recipe: Any
    examples: TokenizedExamples
    test_from: int
    num_classes: int
    pad_to: int
    trainable: bool = True
    num_fewshot: tuple[int, ...] = ()
    layout: PatchLayout | None = None
    unlabeled_idx: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    target: Target | None = None
    truths: np.ndarray | None = None
    # Seeds run in parallel threads; features are computed once per starting point.
    _features: dict[int, Any] = dataclasses.field(default_factory=dict)
    _locks: dict[int, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    @property
    def predicts_classes(self) -> bool:
        """Returns whether predictions are classes."""
        return self.head_target.predicts_classes

    @property
    def head_target(self) -> Target:
        """Returns `target`, or its default."""
        return self.target or ClassTarget(self.num_classes)

    @property
    def test_idx(self) -> np.ndarray:
        """Returns the indices of the test items."""
        after = np.arange(self.test_from, len(self.examples["segments"]))
        return np.setdiff1d(after, self.unlabeled_idx)

    @property
    def corpus_idx(self) -> np.ndarray:
        """Returns the indices of all examples but the test items, labeled or not, ascending."""
        return np.concatenate([np.arange(self.test_from), self.unlabeled_idx])

    @property
    def num_examples(self) -> int:
        """Returns the number of examples."""
        return len(self.examples["segments"])

    def description(self) -> dict[str, Any] | None:
        """Returns source, license and use of a published model; None for others."""
        return None

    def initial_params(self, seed: int) -> dict:
        """Returns the parameters that training with a seed starts from."""
        if self.checkpoints:
            return self.checkpoints[seed % len(self.checkpoints)]
        return init(jax.random.key(1000 + seed), self.model_config)

    def truths_of(self, idx: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the labels of the examples `idx`, [n, ...], of which `labels` may be strata."""
        return labels if self.truths is None else self.truths[idx]

    def targets(self, train_idx: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the training targets of fine-tuning."""
        return self.head_target.encode(self.truths_of(train_idx, labels))

    def finish_head(self, head: dict, train_idx: np.ndarray, labels: np.ndarray) -> dict:
        """Returns the head fine-tuned on these examples with logits in the units of the labels."""
        return self.head_target.in_label_units(head, self.truths_of(train_idx, labels))

    def predict_finetuned(self, params: dict, idx: np.ndarray) -> np.ndarray:
        """Returns a fine-tuned model's outputs for the examples `idx`."""
        return self.head_target.outputs(self._finetuned_logits(params, idx))

    def predict_finetuned_proba(self, params: dict, idx: np.ndarray) -> Any:
        """Returns class probabilities, float32 [n, classes]; None if the target has none."""
        return self.head_target.probabilities(self._finetuned_logits(params, idx))

    def _finetuned_logits(self, params: dict, idx: np.ndarray) -> np.ndarray:
        return finetune.predict_logits(
            params,
            take(self.examples, idx),
            self.model_config,
            feature_config=self.recipe.finetune.feature_config,
        )

    def init_head(self) -> dict:
        """Returns the initial head that fine-tuning adds."""
        return finetune.init_zero_head(
            self.examples, self.model_config, self.num_classes, self.recipe.finetune.feature_config
        )

    def train_flops(self, length: int = 0) -> float:
        """FLOPs of a training step per example, of which at most `length` tokens are kept."""
        own = self.examples["segments"].shape[1]
        return flops.train_flops(
            self.model_config,
            min(length or own, own),
            num_predictions=0,
            modalities=modalities_in(self.examples, self.model_config),
            causal=self.recipe.finetune.feature_config.causal,
        )

    def feature_flops(self) -> float:
        """Returns the FLOPs of computing the frozen features of an example."""
        return flops.forward_flops(
            self.model_config,
            self.examples["segments"].shape[1],
            num_predictions=0,
            modalities=modalities_in(self.examples, self.model_config),
            causal=self.recipe.finetune.feature_config.causal,
        )

    def num_features(self) -> int:
        """Returns the number of frozen features of an example (E)."""
        layers = self.recipe.finetune.feature_config.resolve_layers(self.model_config.num_layers)
        return self.init_head()["kernel"].shape[0] * len(layers)

    def features(self, seed: int, idx: np.ndarray) -> Any:
        """Returns frozen features of the examples `idx` from the seed's initial model, [n, E]."""
        key = self.start_key(seed)
        with self._locks[key]:
            known = self._features.setdefault(key, {})
            missing = [n for n in idx.tolist() if n not in known]
            if missing:
                computed = probe_features(
                    self.initial_params(seed),
                    take(self.examples, np.array(missing)),
                    self.model_config,
                    feature_config=self.recipe.finetune.feature_config,
                )
                known.update(zip(missing, computed, strict=True))
        return np.stack([known[n] for n in idx.tolist()])

    def fit_probe(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, hparams: dict[str, Any]
    ) -> Any:
        """Fits a linear probe to the examples `train_idx`; it has `params` and `steps`."""
        truths = self.truths_of(train_idx, labels)
        return self.head_target.fit_probe(self.features(seed, train_idx), truths, hparams)

    def predict_probe(self, probe: Any, seed: int, idx: np.ndarray) -> np.ndarray:
        """Returns a probe's outputs for the examples `idx`."""
        return probe.predict(self.features(seed, idx))

    def predict_probe_proba(self, probe: Any, seed: int, idx: np.ndarray) -> Any:
        """Returns class probabilities, float32 [n, classes]; None if the target has none."""
        return self.head_target.probe_probabilities(probe, self.features(seed, idx))

    def search_probe(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]
    ) -> list[tuple[dict[str, Any], float]]:
        """Returns (hyper-parameters, validation metric) of the linear probes tried."""
        features, penalties = self.features(seed, train_idx), self.recipe.l2_penalties
        truths = self.truths_of(train_idx, labels)
        return self.head_target.search_probe(features, truths, penalties, folds)

    def fit_svc(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, hparams: dict[str, Any]
    ) -> Any:
        """Fits a support-vector classifier to features of the examples `train_idx`."""
        return fit_svc(self.features(seed, train_idx), labels, hparams)

    def restore_probe(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Any:
        """Returns the probe of `fit_probe` of whose `dump` these are."""
        return self.head_target.restore_probe(arrays, state)

    def solved_examples(self, idx: np.ndarray, labels: np.ndarray) -> list[tuple[str, int]]:
        """Returns the (text, class) of examples `idx`, of which `labels` are the first classes."""
        raise NotImplementedError(f"{type(self).__name__} does not follow prompts")

    def predict_prompted(
        self, idx: np.ndarray, solved: Sequence[tuple[str, int]], hparams: dict[str, Any]
    ) -> np.ndarray:
        """Returns answers to prompts about examples `idx`, each after the solved examples."""
        raise NotImplementedError(f"{type(self).__name__} does not follow prompts")

    def on_new_examples(
        self, inputs: Any, tokenizer: Any, row_length: int
    ) -> Iterator[tuple[np.ndarray, TaskModel]]:
        """Yields (places in `inputs`, model with these examples) until all have been yielded.

        Every model has `BATCH_SIZE` examples, the first of them those at the places and the others
        repeats, in rows of one of two lengths, so that the numbers of an example depend on no other
        example.

        Args:
          inputs: texts, or arrays [N, ...].
          tokenizer: of the model, for texts.
          row_length: tokens of a row; longer texts get rows as long as the recipe allows.
        """
        if self.layout is not None:
            examples = continuous_examples(np.asarray(inputs), self.layout)
        else:
            assert tokenizer is not None, "texts are read by a tokenizer"
            seq_len, num_windows = self.recipe.seq_len, self.recipe.num_windows
            keep_eos = self.recipe.finetune.feature_config.plain_head
            texts = list(inputs)
            examples = text_examples(tokenizer, texts, seq_len, num_windows, keep_eos=keep_eos)
            examples = pad_rows(examples, seq_len * num_windows)
        for places, filled, length in fixed_batches(examples["segments"], row_length):
            own = {key: value[filled, :length] for key, value in examples.items()}
            yield places, self._with_examples(own)

    def _with_examples(self, examples: TokenizedExamples, **fields: Any) -> Any:
        """Returns the model with other examples, all of them test items."""
        return dataclasses.replace(
            self,
            examples=examples,
            test_from=0,
            unlabeled_idx=np.zeros(0, int),
            _features={},
            _locks=collections.defaultdict(threading.Lock),
            **fields,
        )

    def cross_validate(
        self,
        fit_predict: FitPredict,
        train_idx: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[Fold],
    ) -> float:
        """Returns the validation metric over all examples that the folds hold out.

        `fit_predict` maps (training indices, their labels, held-out indices) to outputs; folds
        are pairs of (training, held-out) places in `train_idx`.
        """
        return self.tuned_by_folds(fit_predict, train_idx, labels, folds)[0]

    def tuned_by_folds(
        self,
        fit_predict: FitPredict,
        train_idx: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[Fold],
    ) -> tuple[float, dict[str, Any]]:
        """Returns what `cross_validate` does, and hyper-parameters fitted to the same outputs."""
        outputs = [
            fit_predict(train_idx[fit], labels[fit], train_idx[held_out]) for fit, held_out in folds
        ]
        held_out = np.concatenate([each for _, each in folds])
        return self.tune(np.concatenate(outputs), train_idx[held_out], labels[held_out])

    def tune(
        self, outputs: np.ndarray, idx: np.ndarray, labels: np.ndarray
    ) -> tuple[float, dict[str, Any]]:
        """Returns the validation metric of outputs for held-out examples `idx`, see `Target.tune`.

        The second value are hyper-parameters fitted to these outputs, such as a threshold.
        """
        return self.head_target.tune(outputs, self.truths_of(idx, labels))

    def decide(self, outputs: np.ndarray, hparams: dict[str, Any]) -> np.ndarray:
        """Returns the predictions that a study scores, [n, ...], from a method's outputs."""
        return self.head_target.decide(outputs, hparams)

    def standard_error(self, score: float, count: int) -> float:
        """Returns the standard error of a validation metric over `count` held-out examples."""
        return self.head_target.standard_error(score, count)

    def start_key(self, seed: int) -> int:
        """Returns the number of the starting point of a seed: of its checkpoint, if pretrained."""
        return seed % len(self.checkpoints) if self.checkpoints else seed
