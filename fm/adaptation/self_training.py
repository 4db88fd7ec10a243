"""Self-training: a model's own confident answers to unlabeled examples as further labels.

The teacher is the model fitted to the labels; its student is trained from the same start on labels
and pseudo-labels (Lee 2013; Xie et al. 2020), equally many of each class, so that the teacher's
favorite class does not grow from round to round.
"""

from __future__ import annotations

import numpy as np

# Share of the unlabeled examples that become pseudo-labeled, and the most examples looked at unless
# a config says otherwise.
CONFIDENT_SHARE, MAX_UNLABELED = 0.5, 1024


def pseudo_labels(
    probabilities_NK: np.ndarray, share: float = CONFIDENT_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most confident examples, equally many of each class: (indices, classes), int [M].

    Args:
      probabilities_NK: of each class.
      share: of the examples, for all classes together; fewer if a class is predicted less often.
        Classes that are never predicted have none and do not count.
    """
    predicted_N, confidence_N = probabilities_NK.argmax(axis=1), probabilities_NK.max(axis=1)
    present, counts = np.unique(predicted_N, return_counts=True)
    each = min(int(counts.min()), int(share * len(predicted_N)) // len(present))
    order_N = np.argsort(-confidence_N, kind="stable")
    idx = [order_N[predicted_N[order_N] == k][:each] for k in present]
    chosen = np.sort(np.concatenate(idx))
    return chosen, predicted_N[chosen]


def repeats(num_labels: int, num_pseudo: int) -> int:
    """Returns how often each labeled example is repeated, to be a third or more of the whole."""
    return max(1, -(-num_pseudo // (2 * num_labels)))


def max_examples(num_labels: int, max_unlabeled: int = MAX_UNLABELED) -> int:
    """Returns the most examples, repeats counted, that a student is trained on.

    Args:
      num_labels: of its teacher.
      max_unlabeled: the most unlabeled examples looked at.
    """
    most = int(CONFIDENT_SHARE * max_unlabeled)
    return most + max(num_labels, most // 2 + num_labels)
