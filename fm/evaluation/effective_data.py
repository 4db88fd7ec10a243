"""Effective data transferred: how much data of its own a model would need for what it was given.

A pretrained model fine-tuned on D_F of a task's data has the loss that one from scratch has on D_E;
D_T = D_E - D_F is what was transferred (Hernandez et al. 2021, sec. 1 and eq. 1.1):

    D_T = k D_F^a N^b

with N parameters.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fm.errors import UserError

# Points that k, a and b and their residual need.
MIN_POINTS = 5


@dataclasses.dataclass(frozen=True)
class TransferLaw:
    """A fitted law of the data transferred.

    Attributes:
      log_k: natural logarithm of k.
      data_exponent: a, of the fine-tuning data.
      parameters_exponent: b, of the parameters.
      r2: share of the variance of log D_T that it explains.
      num_points: points it is fitted to, those with D_T above 0.
    """

    log_k: float
    data_exponent: float
    parameters_exponent: float
    r2: float
    num_points: int


def data_at_loss(data_D: np.ndarray, losses_D: np.ndarray, loss: float) -> float:
    """Returns the data with which a model from scratch has a loss; NaN outside what was measured.

    The logarithm of the loss is interpolated in the logarithm of the data. Where more data gave a
    higher loss, the lowest loss so far counts.

    Args:
      data_D: ascending, above 0.
      losses_D: above 0, of the models from scratch.
      loss: above 0.
    """
    lowest_D = np.minimum.accumulate(np.asarray(losses_D, float))
    if not lowest_D[-1] <= loss <= lowest_D[0]:
        return float("nan")
    # From the highest data down, since `np.interp` takes ascending values; of equal losses the
    # least data counts.
    keep_D = np.concatenate([[True], np.diff(lowest_D) < 0])
    logs_K = np.log(lowest_D[keep_D])[::-1]
    return float(np.exp(np.interp(np.log(loss), logs_K, np.log(np.asarray(data_D)[keep_D])[::-1])))


def transferred_data(
    data_D: np.ndarray, scratch_ND: np.ndarray, pretrained_ND: np.ndarray
) -> np.ndarray:
    """Returns D_T by parameters and data, [N, D]: negative where pretraining hurts.

    NaN where the pretrained model is better than any from scratch of its size, or worse than all.

    Args:
      data_D: fine-tuning data, ascending.
      scratch_ND: losses from scratch by parameters and data.
      pretrained_ND: losses of the pretrained.
    """
    data_D = np.asarray(data_D, float)
    return np.array(
        [
            [
                data_at_loss(data_D, scratch_D, loss) - data
                for data, loss in zip(data_D, row_D, strict=True)
            ]
            for scratch_D, row_D in zip(scratch_ND, pretrained_ND, strict=True)
        ]
    )


def fit_transfer_law(
    parameters_N: np.ndarray, data_D: np.ndarray, transferred_ND: np.ndarray
) -> TransferLaw:
    """Returns the law by least squares in the logarithm, over points with D_T above 0.

    Args:
      parameters_N: of the models.
      data_D: fine-tuning data.
      transferred_ND: see `transferred_data`.

    Raises:
      UserError: fewer than `MIN_POINTS` points are above 0, or they have one size or one amount.
    """
    n, d = np.nonzero(np.nan_to_num(transferred_ND, nan=-1.0) > 0)
    if len(n) < MIN_POINTS or len(set(n)) < 2 or len(set(d)) < 2:
        raise UserError(
            f"data was transferred at {len(n)} points of {len(set(n))} sizes and {len(set(d))} "
            f"amounts of data; a law needs {MIN_POINTS} points, 2 sizes and 2 amounts"
        )
    logs_P = np.log(transferred_ND[n, d])
    terms_P3 = np.stack(
        [
            np.ones(len(n)),
            np.log(np.asarray(data_D, float)[d]),
            np.log(np.asarray(parameters_N, float)[n]),
        ],
        axis=1,
    )
    solution, *_ = np.linalg.lstsq(terms_P3, logs_P)
    residual = float(((logs_P - terms_P3 @ solution) ** 2).sum())
    spread = float(((logs_P - logs_P.mean()) ** 2).sum())
    log_k, a, b = map(float, solution)
    return TransferLaw(log_k, a, b, 1 - residual / spread if spread else 1.0, len(n))
