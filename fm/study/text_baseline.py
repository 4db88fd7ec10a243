"""The classical arm of a task of texts to write: nothing is written, something is picked."""

from __future__ import annotations

import dataclasses

import numpy as np

from fm.evaluation.baselines import first_sentences, nearest_neighbor_targets
from fm.evaluation.metrics import chrf
from fm.evaluation.model_selection import make_folds
from fm.study.adaptation import HParams, Trial

PICKS = ("first sentence", "nearest target")


@dataclasses.dataclass(frozen=True, eq=False)
class ExtractiveTextArm:
    """A text's first sentence, or what was wanted of the labelled text most like it.

    Attributes:
      texts: labelled, then the test items.
      targets: what is wanted of each.
      test_from: place of the first test item.
    """

    texts: list[str]
    targets: list[str]
    test_from: int

    def grid(self) -> list[HParams]:
        """The two ways to pick: there are no more."""
        return [{"method": "pick", "text": pick} for pick in PICKS]

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """See `fm.study.adaptation.Arm`."""
        cut = make_folds(labels, seed=seed)
        trials = []
        for setting in self.grid():
            found = [self._scored(drawn[fit], drawn[held], setting) for fit, held in cut]
            trials.append({"config": setting, "validation": float(np.concatenate(found).mean())})
        return trials

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """chrF of what is picked for the test items, [N]."""
        return self._scored(drawn, np.arange(self.test_from, len(self.texts)), setting)

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """Too little to count beside a network's."""
        return 0.0

    def _scored(self, drawn: np.ndarray, wanted: np.ndarray, setting: HParams) -> np.ndarray:
        texts = [self.texts[n] for n in wanted]
        if setting["text"] == PICKS[0]:
            picked = first_sentences(texts)
        else:
            own = [self.texts[n] for n in drawn], [self.targets[n] for n in drawn]
            picked = nearest_neighbor_targets(*own, texts)
        return chrf(picked, [self.targets[n] for n in wanted])
