"""The transformer: configuration, layers, embeddings and heads, generation.

Axis letters in array names: B batch, L length, S key length, D d_model, H query heads, K key/value
heads, C head width, F MLP width, V vocabulary, P numbers per patch, M mixture components, N layers,
A position axes, T predictions.
"""

from fm.model.config import ModelConfig
from fm.model.sizes import config_for_size
from fm.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "config_for_size"]
