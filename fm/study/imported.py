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

from fm.errors import UserError
from fm.evaluation.logistic import log_grid
from fm.evaluation.probe import fit_probe, probe_trials
from fm.evaluation.validation import folds
from fm.model import flops
from fm.study.adaptation import Fitted, Network, Setting, Trial
from fm.study.config import ImportedConfig
from fm.transfer import prompts, stored
from fm.transfer.features import Reading, side_by_side
from fm.transfer.prompts import CONTENT_FREE, Prompter, Template
from fm.transfer.published import Published

# Penalties for each of the features, in powers of ten: more of them, standardised, weigh more.
_L2_RANGE = (-0.5, 1.0)


def reading(causal: bool, layers: int) -> Reading:
    """What a probe reads: of an encoder the means of its last two layers, of a decoder more.

    The last third of a decoder's layers, at the last token, which alone has seen all of the text,
    and on average: the very last ones are busy with the next token.
    """
    if not causal:
        return Reading("mean", depths=tuple(range(max(1, layers - 1), layers + 1)))
    depths = {layers, max(1, layers - 1), layers - layers // 6, layers - layers // 3}
    return Reading("mean+last", causal=True, depths=tuple(sorted(depths)))


@dataclasses.dataclass(eq=False)
class Imported:
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

    model: Published
    config: ImportedConfig
    texts: list[str]
    test_from: int
    adapt: tuple[str, ...]
    trials: int
    tuned: bool = False
    network: Network | None = None
    # Seeds run side by side; texts are read once, by the first who wants them.
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __post_init__(self):
        if not self.grid() and not (self.tuned and {"full", "lora"} & set(self.adapt)):
            kind = "" if self.model.causal else ", which follows no prompts,"
            raise UserError(
                f"--adapt={','.join(self.adapt)}: the imported arm ({self.model.name}){kind} can "
                "do none of these here; add probe, or leave it out of --arms"
            )

    def grid(self) -> list[Setting]:
        """Probes by penalty, as many as the other methods leave of the trials."""
        others = self.network.grid() if self.network else []
        if "prompt" in self.adapt and self.model.causal:
            others += [
                {"adapt": "prompt", "shots": shots, "calibrated": calibrated}
                for shots in self.config.shots
                for calibrated in (False, True)
            ]
        if "probe" not in self.adapt:
            return others
        read = reading(self.model.causal, self.model.config.depth)
        size = len(read.parts) * len(read.depths or ()) * self.model.config.width
        return [
            {"adapt": "probe", "scale": "standardise", "l2": size * penalty}
            for penalty in log_grid(*_L2_RANGE, max(1, self.trials - len(others)))
        ] + others

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """See `Arm`."""
        cut = folds(labels, seed=seed)
        probes = [setting for setting in self.grid() if setting["adapt"] == "probe"]
        trials = probe_trials(self.features[drawn], labels, probes, cut) if probes else []
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
        self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: Setting
    ) -> np.ndarray:
        """See `Arm`."""
        return self.fit(drawn, labels, seed, setting).predictions

    def fit(self, drawn: np.ndarray, labels: np.ndarray, seed: int, setting: Setting) -> Fitted:
        """Fits a setting on all drawn labels; a prompt fits nothing."""
        if setting["adapt"] == "probe":
            probe = fit_probe(self.features[drawn], labels, setting)
            return Fitted(probe.predict(self.features[self.test_from :]), probe.params, probe.steps)
        if setting["adapt"] == "prompt":
            test = np.arange(self.test_from, len(self.texts))
            return Fitted(self._answer(test, drawn, labels, setting), self.model.params, 0)
        assert self.network is not None
        return self.network.fit(drawn, labels, seed, setting)

    def fit_flops(self, labels: int, setting: Setting) -> float:
        """Forward once per label for a probe; a prompt fits nothing."""
        if setting["adapt"] == "prompt":
            return 0.0
        if setting["adapt"] == "probe":
            model = self.model.config
            return labels * flops.forward_flops(model, self.config.length, predictions=0)
        assert self.network is not None
        return self.network.fit_flops(labels, setting)

    def about(self) -> dict[str, Any]:
        """Whose model it is and how it was used, JSON-able."""
        read = reading(self.model.causal, self.model.config.depth)
        return {
            "model": self.config.model,
            "source": self.model.source,
            "licence": self.model.licence,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.model.params)),
            "reading": f"{read.pool} of depths {', '.join(map(str, read.depths or ()))} "
            f"of {self.model.config.depth} layers",
            "tokens": self.config.length,
            "template": self.config.words if self.model.causal else None,
            "answers": list(self.config.answers) if self.model.causal else None,
        }

    @property
    def length(self) -> int:
        """The most tokens of a text it reads."""
        return min(self.config.length, self.model.config.context or self.config.length)

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
        read = reading(model.causal, model.config.depth)
        found = stored.features(self._digest, model.params, model.config, ids, read)
        return side_by_side(found.values, read)

    @functools.cached_property
    def _digest(self) -> str:
        return self.model.digest()

    @functools.cached_property
    def _prompter(self) -> Prompter:
        template = Template(self.config.words, self.config.answers)
        # Each solved example has as much room as the question.
        room = self.config.length * (1 + max(self.config.shots))
        most = min(room, self.model.config.context or room)
        return Prompter(template, self.model.tokenizer, most)

    def _answer(self, wanted, shown, labels, setting: Setting) -> np.ndarray:
        """Classes of the wanted texts, the first of the shown ones solved before them."""
        shots = [
            (self.texts[row], int(label))
            for row, label in zip(shown[: setting["shots"]], labels, strict=False)
        ]
        found = self._scores(wanted, shots)
        if setting["calibrated"]:
            free = self._kept(self._prompter.prompts(CONTENT_FREE, shots))
            found = prompts.calibrated(found, free)
        return found.argmax(axis=1)

    def _scores(self, wanted: np.ndarray, shots: list[tuple[str, int]]) -> np.ndarray:
        """Log probability of each answer after each wanted text, [N, A]."""
        if shots:
            return self._kept(self._prompter.prompts([self.texts[row] for row in wanted], shots))
        with self._lock:
            return self._zero_shot[wanted]

    @functools.cached_property
    def _zero_shot(self) -> np.ndarray:
        """Of all texts: without solved examples the labels drawn do not matter."""
        print(f"{self.model.name}: asking about {len(self.texts)} texts …", file=sys.stderr)
        return self._kept(self._prompter.prompts(self.texts))

    def _kept(self, asked: list[np.ndarray]) -> np.ndarray:
        """`prompts.scores`, from the cache if they are there."""
        model, answers = self.model, self._prompter.answers()
        about = {"model": self._digest, "answers": [each.tolist() for each in answers]}
        return stored.kept(
            about, asked, lambda: prompts.scores(model.params, model.config, asked, answers)
        ).values
