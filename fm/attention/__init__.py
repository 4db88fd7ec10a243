"""Attention: one contract, a plain reference, one file per implementation.

Sizes: B batch, L query length, S key length, H heads, K key/value heads, C head width.
"""

from fm.attention.api import attention, choose
from fm.attention.mask import Mask

__all__ = ["Mask", "attention", "choose"]
