"""Attention: one function, a plain reference and one module per implementation.

Sizes: B batch, L query length, S key length, H heads, K key/value heads, C head dimension.
"""

from fm.attention.api import Choice, attention, choose, explain_choice, select_implementation
from fm.attention.mask import Mask

__all__ = ["Choice", "Mask", "attention", "choose", "explain_choice", "select_implementation"]
