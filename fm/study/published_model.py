"""What published models of every modality have in common on a task.

The weights stay as they are, so what is computed of an example is cached by content.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import jax
import numpy as np

from fm.adaptation.task_model import TaskModel
from fm.study.config import Recipe

# Pretrained weights take a hundredth of what small fresh models take.
_LEARNING_RATES, _LORA_LEARNING_RATES = (1e-4,), (1e-3,)


@dataclasses.dataclass(eq=False, kw_only=True)
class AnyPublishedTaskModel(TaskModel):
    """A published model with a task's data, ready for an adaptation method.

    Attributes:
      published: the model.
      config: how it is used.
      inputs: labeled examples, then test items.
      are_new: whether the examples are new ones, each of which gets numbers that depend on no other
        example and are not cached.
    """

    published: Any
    config: Any
    inputs: Any
    are_new: bool = False
    # Seeds run in parallel threads; what is computed of all examples is computed once.
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def test_idx(self) -> np.ndarray:
        """Returns the indices of the test items."""
        return np.arange(self.test_from, len(self.inputs))

    @property
    def num_examples(self) -> int:
        """Returns the number of examples."""
        return len(self.inputs)

    @functools.cached_property
    def _digest(self) -> str:
        return self.published.digest()

    def _source(self) -> dict[str, Any]:
        """Returns what `description` says of the model itself."""
        return {
            "model": self.config.model,
            "source": self.published.source,
            "licence": self.published.license,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.published.params)),
        }

    def _with_examples(self, examples: Any, **fields: Any) -> Any:
        return super()._with_examples(examples, _lock=threading.Lock(), **fields)


def published_recipe(recipe: Recipe, *, finetune: dict[str, Any], **fields: Any) -> Recipe:
    """Returns a task's recipe with learning rates for published weights.

    Args:
      recipe: of the task.
      finetune: fields of its `finetune` to replace. Published models are trained on whole examples.
      fields: of the recipe to replace.
    """
    return dataclasses.replace(
        recipe,
        finetune=dataclasses.replace(recipe.finetune, tokens_kept=0, **finetune),
        learning_rates=_LEARNING_RATES,
        lora_learning_rates=_LORA_LEARNING_RATES,
        **fields,
    )
