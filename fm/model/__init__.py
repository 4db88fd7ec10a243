"""The generative transformer: sizes, layers, streams in and out.

One alphabet: B batch, L length, D width, H heads, K key/value heads, C head width,
F feed-forward width, V vocabulary, P numbers in a continuous piece, M mixture components, N depth.
"""

from fm.model.config import ModelConfig, config_for_size
from fm.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "config_for_size"]
