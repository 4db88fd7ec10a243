"""Attention: one contract, a plain reference, one file per implementation.

Sizes: B batch, L query length, S key length, H heads, K key/value heads, C head width.
"""

from fm.attention.api import Choice, attention, choose, explain_choice
from fm.attention.mask import Mask

__all__ = ["Choice", "Mask", "attention", "choose", "explain_choice"]
