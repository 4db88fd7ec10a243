"""Networks on the straight line between two fitted ones, and the barrier between them.

Two networks share a basin of the loss where every network on the line between them is about as good
as they are (Neyshabur et al. 2020, sec. 3.3; linear mode connectivity, Frankle et al. 2020, sec.
2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Shares of the second network at which a line is read.
NUM_POINTS = 11


def interpolate(first: Any, second: Any, share: float) -> Any:
    """Returns `(1 - share) * first + share * second`, leaf by leaf.

    Args:
      first: arrays, such as the parameters of a network.
      second: arrays of the same structure and shapes.
      share: of the second, 0 to 1.
    """
    return jax.tree.map(lambda a, b: (1.0 - share) * a + share * b, first, second)


def scores_on_line(
    first: Any, second: Any, score: Callable[[Any], np.ndarray], num_points: int = NUM_POINTS
) -> np.ndarray:
    """Returns the scores of networks on the line between two, [points, ...], both ends included.

    Args:
      first: parameters at share 0.
      second: parameters at share 1.
      score: of parameters, higher is better; a number or one per item.
      num_points: evenly spaced shares, at least 3.
    """
    shares = np.linspace(0.0, 1.0, num_points)
    return np.stack([np.asarray(score(interpolate(first, second, share))) for share in shares])


def barrier(scores_P: Sequence[float] | np.ndarray) -> float:
    """Returns the largest fall below the straight line between the scores at the ends, at least 0.

    Frankle et al. (2020, sec. 2), with scores instead of errors.

    Args:
      scores_P: at evenly spaced shares, higher is better.
    """
    scores_P = np.asarray(scores_P, float)
    between_P = np.linspace(scores_P[0], scores_P[-1], len(scores_P))
    return float(np.max(between_P - scores_P))
