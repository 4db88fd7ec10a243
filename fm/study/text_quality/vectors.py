"""The vectors texts are compared by: a published model's, or the study's own terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fm.errors import UserError
from fm.evaluation.text_quality.features import Features, term_features
from fm.study.text_quality.config import Whose
from fm.transfer import published, stored
from fm.transfer.features import Reading
from fm.transfer.pretrained.named import NAMED
from fm.transfer.published import Published

TERMS = "terms"
# What a sample's texts can come to in another model's tokens; beyond it the middle is left out.
_LENGTH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """What makes the features of a study.

    Attributes:
      whose: as the study's config says it.
      model: a published one; None for the terms of the study's own texts.
    """

    whose: Whose
    model: Published | None = None

    def of(self, texts: Sequence[str]) -> Features:
        """Vectors of any text; `texts` are real ones, which a published model does not need."""
        if self.model is None:
            return term_features(texts)
        return ModelFeatures(self.whose, self.model)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFeatures:
    """The mean over a text of a published model's final output, kept by content in the cache."""

    whose: Whose
    model: Published

    @property
    def name(self) -> str:
        """Whose."""
        return (
            f"the mean over a text of the final output of {self.whose.name} "
            f"({self.whose.source}; licence {self.whose.licence}), {self.model.config.width} "
            "numbers of unit length"
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of unit length; of a text over 128 tokens the beginning and the end are read."""
        config, params = self.model.config, self.model.params
        ids = self.model.encode(texts, min(_LENGTH, config.context or _LENGTH))
        reading = Reading("mean", causal=self.model.causal, depths=(-1,))
        made = stored.features(self.whose.digest, params, config, ids, reading).values[:, 0]
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        return made / np.where(norms == 0, 1.0, norms)


def find(name: str) -> Vectors:
    """The vectors of a name.

    Args:
      name: `TERMS`, or a published model as `published.find` takes it.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    if name == TERMS:
        return Vectors(Whose(TERMS))
    if published.locate(name) is None:
        raise UserError(
            f"--features={name}: takes {TERMS}, {', '.join(NAMED)}, a model's folder (config.json, "
            "safetensors) or a GGUF file"
        )
    model = published.find(name)
    whose = Whose(name, model.source, model.licence, model.digest())
    return Vectors(whose, model)
