"""The imported arm: what others pretrained, read by a probe or asked in words.

Its weights stay as they are, so what it makes of a text is computed once, whatever the labels,
and kept in the cache by content.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
from typing import Any

import jax
import numpy as np

from fm.adaptation import feature_cache, prompting
from fm.adaptation.features import FeatureConfig, normalize_and_concat
from fm.adaptation.linear_probe import cross_validate_probe, fit_probe
from fm.adaptation.prompting import CONTENT_FREE, PromptEncoder, PromptTemplate
from fm.errors import UserError
from fm.evaluation.logistic import log_grid
from fm.evaluation.model_selection import make_folds
from fm.hf.model_zoo import PublishedModel
from fm.model import flops
from fm.study.adaptation import FitResult, HParams, NetworkArm, Trial
from fm.study.config import PublishedConfig

# Penalties for each of the features, in powers of ten: more of them, standardised, weigh more.
_L2_RANGE = (-0.5, 1.0)


def probe_feature_config(causal: bool, layers: int) -> FeatureConfig:
    """What a probe reads: of an encoder the means of its last two layers, of a decoder more.

    The last third of a decoder's layers, at the last token, which alone has seen all of the text,
    and on average: the very last ones are busy with the next token.
    """
    if not causal:
        return FeatureConfig("mean", layers=tuple(range(max(1, layers - 1), layers + 1)))
    depths = {layers, max(1, layers - 1), layers - layers // 6, layers - layers // 3}
    return FeatureConfig("mean+last", causal=True, layers=tuple(sorted(depths)))


@dataclasses.dataclass(eq=False)
class PublishedArm:
    """A published model on a task; see `Arm`.

    Attributes:
      model: what others pretrained.
      config: how it reads and is asked.
      texts: of the labelled examples, then of the test items.
      test_from: place of the first test item.
      adapt: methods asked for; it does those it can.
      trials: settings to try.
      tuned: whether methods that train the model itself are to come, as `network`.
      network: does these.
    """

    model: PublishedModel
    config: PublishedConfig
    texts: list[str]
    test_from: int
    adapt: tuple[str, ...]
    trials: int
    tuned: bool = False
    network: NetworkArm | None = None
    # Seeds run side by side; texts are read once, by the first who wants them.
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __post_init__(self):
        if not self.grid() and not (self.tuned and {"full", "lora"} & set(self.adapt)):
            kind = "" if self.model.causal else ", which follows no prompts,"
            raise UserError(
                f"--adapt={','.join(self.adapt)}: the imported arm ({self.model.name}){kind} can "
                "do none of these here; add probe, or leave it out of --arms"
            )

    def grid(self) -> list[HParams]:
        """Probes by penalty, as many as the other methods leave of the trials."""
        others = self.network.grid() if self.network else []
        if "prompt" in self.adapt and self.model.causal:
            others += [
                {"adapt": "prompt", "shots": shots, "calibrated": calibrated}
                for shots in self.config.num_fewshot
                for calibrated in (False, True)
            ]
        if "probe" not in self.adapt:
            return others
        read = probe_feature_config(self.model.causal, self.model.config.num_layers)
        size = len(read.pooling_parts) * len(read.layers or ()) * self.model.config.d_model
        return [
            {"adapt": "probe", "scale": "standardise", "l2": size * penalty}
            for penalty in log_grid(*_L2_RANGE, max(1, self.trials - len(others)))
        ] + others

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """See `Arm`."""
        cut = make_folds(labels, seed=seed)
        probes = [setting for setting in self.grid() if setting["adapt"] == "probe"]
        trials = cross_validate_probe(self.features[drawn], labels, probes, cut) if probes else []
        trials += self.network.validate(drawn, labels, seed) if self.network else []
        for setting in self.grid()[len(trials) :]:
            right = 0
            for fit, held in cut:
                guessed = self._answer(drawn[held], drawn[fit], labels[fit], setting)
                right += int(np.sum(guessed == labels[held]))
            held_out = sum(len(held) for _, held in cut)
            trials.append({"config": setting, "validation": right / held_out})
        return trials

    def fit_predict(
        self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: HParams
    ) -> np.ndarray:
        """See `Arm`."""
        return self.fit(drawn, labels, seed, setting).predictions

    def fit(self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: HParams) -> FitResult:
        """Fits a setting on all drawn labels; a prompt fits nothing."""
        if setting["adapt"] == "probe":
            probe = fit_probe(self.features[drawn], labels, setting)
            return FitResult(
                probe.predict(self.features[self.test_from :]), probe.params, probe.steps
            )
        if setting["adapt"] == "prompt":
            test = np.arange(self.test_from, len(self.texts))
            return FitResult(self._answer(test, drawn, labels, setting), self.model.params, 0)
        assert self.network is not None
        return self.network.fit(drawn, labels, seed, setting)

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """Forward once per label for a probe; a prompt fits nothing."""
        if setting["adapt"] == "prompt":
            return 0.0
        if setting["adapt"] == "probe":
            model = self.model.config
            return labels * flops.forward_flops(model, self.config.max_length, num_predictions=0)
        assert self.network is not None
        return self.network.fit_flops(labels, setting)

    def description(self) -> dict[str, Any]:
        """Whose model it is and how it was used, JSON-able."""
        read = probe_feature_config(self.model.causal, self.model.config.num_layers)
        return {
            "model": self.config.model,
            "source": self.model.source,
            "licence": self.model.license,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.model.params)),
            "reading": f"{read.pooling} of depths {', '.join(map(str, read.layers or ()))} "
            f"of {self.model.config.num_layers} layers",
            "tokens": self.config.max_length,
            "template": self.config.template if self.model.causal else None,
            "answers": list(self.config.answers) if self.model.causal else None,
        }

    @property
    def length(self) -> int:
        """The most tokens of a text it reads."""
        return min(self.config.max_length, self.model.config.max_seq_len or self.config.max_length)

    @property
    def features(self) -> np.ndarray:
        """Of all texts, float32 [N, E]."""
        with self._lock:
            return self._features

    @functools.cached_property
    def _features(self) -> np.ndarray:
        model = self.model
        ids = model.encode(self.texts, self.length)
        print(f"{model.name}: reading {len(ids)} texts …", file=sys.stderr, flush=True)
        read = probe_feature_config(model.causal, model.config.num_layers)
        found = feature_cache.cached_features(self._digest, model.params, model.config, ids, read)
        return normalize_and_concat(found.values, read)

    @functools.cached_property
    def _digest(self) -> str:
        return self.model.digest()

    @functools.cached_property
    def _prompter(self) -> PromptEncoder:
        template = PromptTemplate(self.config.template, self.config.answers)
        # Each solved example has as much room as the question.
        room = self.config.max_length * (1 + max(self.config.num_fewshot))
        most = min(room, self.model.config.max_seq_len or room)
        return PromptEncoder(template, self.model.tokenizer, most)

    def _answer(self, wanted, shown, labels, setting: HParams) -> np.ndarray:
        """Classes of the wanted texts, the first of the shown ones solved before them."""
        shots = [
            (self.texts[row], int(label))
            for row, label in zip(shown[: setting["shots"]], labels, strict=False)
        ]
        found = self._scores(wanted, shots)
        if setting["calibrated"]:
            free = self._kept(self._prompter.encode_prompts(CONTENT_FREE, shots))
            found = prompting.calibrate(found, free)
        return found.argmax(axis=1)

    def _scores(self, wanted: np.ndarray, shots: list[tuple[str, int]]) -> np.ndarray:
        """Log probability of each answer after each wanted text, [N, A]."""
        if shots:
            return self._kept(
                self._prompter.encode_prompts([self.texts[row] for row in wanted], shots)
            )
        with self._lock:
            return self._zero_shot[wanted]

    @functools.cached_property
    def _zero_shot(self) -> np.ndarray:
        """Of all texts: without solved examples the labels drawn do not matter."""
        print(f"{self.model.name}: asking about {len(self.texts)} texts …", file=sys.stderr)
        return self._kept(self._prompter.encode_prompts(self.texts))

    def _kept(self, asked: list[np.ndarray]) -> np.ndarray:
        """`prompts.scores`, from the cache if they are there."""
        model, answers = self.model, self._prompter.encode_answers()
        about = {"model": self._digest, "answers": [each.tolist() for each in answers]}
        return feature_cache.cached(
            about,
            asked,
            lambda: prompting.answer_logprobs(model.params, model.config, asked, answers),
        ).values
