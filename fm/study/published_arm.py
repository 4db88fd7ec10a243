"""Published models on a text task: frozen features of whole texts, prompts, and fine-tuning.

The weights stay as they are, so features and answers of a text are computed once and cached by
content.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fm.adaptation import feature_cache, prompting
from fm.adaptation.batching import LENGTH_MULTIPLE, fixed_batches, pad_sequences
from fm.adaptation.features import FeatureConfig, normalize_and_concat
from fm.adaptation.prompting import CONTENT_FREE, PromptEncoder, PromptTemplate
from fm.adaptation.targets import ClassTarget, Target
from fm.adaptation.task_model import TaskModel
from fm.errors import UserError
from fm.hf import model_zoo
from fm.hf.model_zoo import PublishedModel
from fm.model import flops
from fm.progress_lines import phase
from fm.study.adaptation import ModelArm
from fm.study.config import PublishedConfig, Recipe
from fm.study.published_model import AnyPublishedTaskModel, published_recipe


def probe_feature_config(causal: bool, num_layers: int) -> FeatureConfig:
    """Returns which layers a linear probe of a published model reads, and how it pools them.

    Of a decoder the last third of the layers, averaged and at the last token, which alone has
    attended to the whole text: the very last layers specialize in the next token.
    """
    if not causal:
        return FeatureConfig("mean", layers=tuple(range(max(1, num_layers - 1), num_layers + 1)))
    layers = {num_layers, max(1, num_layers - 1), num_layers - num_layers // 6}
    layers.add(num_layers - num_layers // 3)
    return FeatureConfig("mean+last", causal=True, layers=tuple(sorted(layers)))


@dataclasses.dataclass(eq=False, kw_only=True)
class PublishedTaskModel(AnyPublishedTaskModel):
    """A published model with a classification task's texts, ready for an adaptation method.

    `inputs` are texts; `config` says how the model reads them and is prompted.
    """

    published: PublishedModel
    config: PublishedConfig
    inputs: list[str]

    @property
    def max_length(self) -> int:
        """Returns the most tokens of a text that are read."""
        return min(self.config.max_length, self.model_config.max_seq_len or self.config.max_length)

    @property
    def probe_config(self) -> FeatureConfig:
        """Returns the config of the features that a probe reads."""
        return probe_feature_config(self.published.causal, self.model_config.num_layers)

    def num_features(self) -> int:
        """Returns the number of features of a text (E)."""
        read = self.probe_config
        return len(read.pooling_parts) * len(read.layers or ()) * self.model_config.d_model

    def feature_flops(self) -> float:
        """Returns the FLOPs of computing the features of a text."""
        length, causal = self.config.max_length, self.published.causal
        return flops.forward_flops(self.model_config, length, num_predictions=0, causal=causal)

    def features(self, seed: int, idx: np.ndarray) -> np.ndarray:
        """Returns features of the texts `idx`, [n, E]; the same for every seed."""
        with self._lock:
            return self._text_features[idx]

    def solved_examples(self, idx: np.ndarray, labels: np.ndarray) -> list[tuple[str, int]]:
        """Returns the (text, class) of texts `idx`, of which `labels` are the first classes."""
        return [(self.inputs[n], int(label)) for n, label in zip(idx, labels, strict=False)]

    def predict_prompted(
        self, idx: np.ndarray, solved: Sequence[tuple[str, int]], hparams: dict[str, Any]
    ) -> np.ndarray:
        """Returns the likeliest classes of texts `idx` by prompts, each after solved examples."""
        fewshot = list(solved)
        logprobs = self._logprobs(idx, fewshot)
        if hparams["calibrated"]:
            content_free = self._cached_logprobs(
                self._prompt_encoder.encode_prompts(CONTENT_FREE, fewshot)
            )
            logprobs = prompting.calibrate(logprobs, content_free)
        return logprobs.argmax(axis=1)

    def on_new_examples(
        self, inputs: Any, tokenizer: Any, row_length: int
    ) -> Iterator[tuple[np.ndarray, TaskModel]]:
        """Yields models with new texts, read by their own tokenizer; see `TaskModel`."""
        texts = list(inputs)
        ids = self.published.encode(texts, self.max_length)
        longest = -(-self.max_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        examples = pad_sequences(ids, max(longest, row_length))
        for places, filled, length in fixed_batches(examples["segments"], row_length):
            own = {key: value[filled, :length] for key, value in examples.items()}
            own_texts = [texts[n] for n in filled]
            yield places, self._with_examples(own, inputs=own_texts, are_new=True)

    def description(self) -> dict[str, Any]:
        """Returns source, license and use of the model, for results.json."""
        read, causal = self.probe_config, self.published.causal
        layers = ", ".join(map(str, read.layers or ()))
        return self._source() | {
            "reading": f"{read.pooling} of layers {layers} of {self.model_config.num_layers}",
            "tokens": self.config.max_length,
            "template": self.config.template if causal else None,
            "answers": list(self.config.answers) if causal else None,
        }

    @functools.cached_property
    def _text_features(self) -> np.ndarray:
        """Features of all texts, float32 [N, E]."""
        if self.are_new:
            texts, inverse = _distinct(self.inputs)
            values = feature_cache.compute_features(
                self.published.params,
                self.model_config,
                self.published.encode(texts, self.max_length),
                self.probe_config,
                own_length=True,
            )
            return normalize_and_concat(values[inverse], self.probe_config)
        ids = self.published.encode(self.inputs, self.max_length)
        with phase(f"{self.published.name}: reading {len(ids):,} texts"):
            cached = feature_cache.cached_features(
                self._digest, self.published.params, self.model_config, ids, self.probe_config
            )
        return normalize_and_concat(cached.values, self.probe_config)

    @functools.cached_property
    def _prompt_encoder(self) -> PromptEncoder:
        template = PromptTemplate(self.config.template, self.config.answers)
        # Each solved example has as many tokens as the question.
        wanted = self.config.max_length * (1 + max(self.config.num_fewshot))
        max_length = min(wanted, self.model_config.max_seq_len or wanted)
        return PromptEncoder(template, self.published.tokenizer, max_length)

    def _logprobs(self, idx: np.ndarray, fewshot: list[tuple[str, int]]) -> np.ndarray:
        """Log probability of each answer to the prompts of texts `idx`, [n, A]."""
        if self.are_new:
            texts, inverse = _distinct([self.inputs[n] for n in idx])
            return self._cached_logprobs(self._prompt_encoder.encode_prompts(texts, fewshot))[
                inverse
            ]
        if fewshot:
            texts = [self.inputs[n] for n in idx]
            return self._cached_logprobs(self._prompt_encoder.encode_prompts(texts, fewshot))
        with self._lock:
            return self._zero_shot_logprobs[idx]

    @functools.cached_property
    def _zero_shot_logprobs(self) -> np.ndarray:
        """Of all texts: without solved examples they do not depend on the labels."""
        with phase(f"{self.published.name}: prompting with {len(self.inputs):,} texts"):
            return self._cached_logprobs(self._prompt_encoder.encode_prompts(self.inputs))

    def _cached_logprobs(self, prompts: list[np.ndarray]) -> np.ndarray:
        answers = self._prompt_encoder.encode_answers()
        params, config = self.published.params, self.model_config
        if self.are_new:
            return prompting.answer_logprobs(params, config, prompts, answers, own_length=True)
        key = {"model": self._digest, "answers": [each.tolist() for each in answers]}
        return feature_cache.cached(
            key, prompts, lambda: prompting.answer_logprobs(params, config, prompts, answers)
        ).values


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the different texts, and for each text its place among them."""
    places = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], int)


def build_published_arm(
    config: PublishedConfig,
    recipe: Recipe,
    texts: list[str],
    *,
    methods: Sequence[str],
    test_from: int,
    num_classes: int,
    pad_to: int,
    trainable: bool,
    target: Target | None = None,
    truths: np.ndarray | None = None,
) -> ModelArm:
    """Loads a published model; returns its arm, with hyper-parameter grids for its adaptation.

    Args:
      config: the model, and how it is used.
      recipe: the task's recipe.
      texts: labeled examples, then test items.
      methods: adaptation methods asked for.
      test_from: index of the first test item.
      num_classes: number of classes, or of a head's outputs.
      pad_to: the largest number of labels.
      trainable: whether methods may train the model itself.
      target: what a text's label is; a class by default.
      truths: see `TaskModel`.

    Raises:
      UserError: there is no such model, it cannot be read, or it supports none of the methods.
    """
    target = target or ClassTarget(num_classes)
    published = model_zoo.load_published(config.model)
    features = FeatureConfig("mean", causal=published.causal)
    recipe = published_recipe(recipe, finetune={"feature_config": features})
    model = PublishedTaskModel(
        checkpoints=[published.params],
        model_config=published.config,
        recipe=recipe,
        examples={},
        test_from=test_from,
        num_classes=num_classes,
        target=target,
        truths=truths,
        pad_to=pad_to,
        trainable=trainable,
        # Prompts are answered with the name of a class.
        num_fewshot=config.num_fewshot if published.causal and target.predicts_classes else (),
        published=published,
        config=config,
        inputs=texts,
    )
    arm = ModelArm(model, tuple(methods))
    if not arm.supported_methods():
        limits = "" if published.causal else ", which does not follow prompts,"
        raise UserError(
            f"--adapt={','.join(methods)}: the published model {config.model}{limits} supports "
            "none of these here; add probe, or leave published out of --arms"
        )
    if any(method.updates_model for method in arm.supported_methods()):
        ids = published.encode(texts, model.max_length)
        model.examples = pad_sequences(ids, -(-max(map(len, ids)) // 16) * 16)
    return arm
