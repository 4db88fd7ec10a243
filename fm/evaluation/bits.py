"""Likelihood as bits: per byte of text, per dimension of a picture."""

from __future__ import annotations

import math


def bits_per_byte(nll_nats_sum: float, bytes: float) -> float:
    """Compression of a text, comparable between tokenizers.

    Args:
      nll_nats_sum: negative log-likelihood of a text, or of a token in the mean, in nats.
      bytes: length of the same in UTF-8 bytes.

    Raises:
      ValueError: no bytes.
    """
    if bytes <= 0:
        raise ValueError(f"bytes must be positive, got {bytes}")
    return nll_nats_sum / (bytes * math.log(2))


def bits_per_dimension(nll_nats_mean_per_dim: float, bins: int = 256) -> float:
    """Bits for one value of `bins` levels, from a density of the dequantised value.

    For a density over y = (x + u) / bins, u uniform on [0, 1), the discrete value costs at most
    NLL / (D ln 2) + log2(bins) bits per dimension (Theis, van den Oord and Bethge 2016,
    section 3.1): 8 bits when the density is uniform over 256 levels.

    Args:
      nll_nats_mean_per_dim: NLL / D of y, in nats; negative where the density exceeds 1.
      bins: number of levels of the undequantised value.
    """
    return nll_nats_mean_per_dim / math.log(2) + math.log2(bins)
