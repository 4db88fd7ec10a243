"""Scores a rival no study trained: a network without pretraining merged with a classical model.

    python tests/independent/merged_rival.py experiments/results/compare

`in_domain_with_classical` has two sources, a network and a classical model; the others have one.
This asks whether a rival with two sources would do better, from the kept predictions alone: an
item's answer is that of the surer of two arms. Of two classes that is the answer of their mean
probability. Printed is, for each number of labels, the accuracy in percent of the best rival that
has one source, of the best of these mergers, chosen by test items and so flattered, and of
`in_domain_with_classical`. Imports nothing of fm.
"""

from __future__ import annotations

import pathlib
import sys

import pandas as pd

NETWORKS = ("scratch", "scratch_compute_matched", "self_training")
CLASSICAL = ("classical", "classical_unlabeled")
RIVALS = (*NETWORKS, *CLASSICAL, "random_features")
PRETRAINED = "in_domain_with_classical"


def surer(network: pd.DataFrame, classical: pd.DataFrame) -> pd.Series:
    """Returns for each item the prediction of the surer arm, in a tie the network's."""
    keep = network.probability >= classical.probability
    return network.prediction.where(keep, classical.prediction)


def table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns accuracies in percent: a row for each task and number of labels."""
    rows = []
    for (task, num_labels), group in predictions.groupby(["task", "num_labels"]):
        arms = {
            arm: part.set_index(["seed", "item"]).sort_index() for arm, part in group.groupby("arm")
        }
        truth = next(iter(arms.values())).truth
        single = {arm: (arms[arm].prediction == truth).mean() for arm in RIVALS if arm in arms}
        merged = {
            f"{network} + {classical}": (surer(arms[network], arms[classical]) == truth).mean()
            for network in NETWORKS
            for classical in CLASSICAL
            if network in arms and classical in arms
        }
        best, best_merged = max(single, key=single.__getitem__), max(merged, key=merged.__getitem__)
        rows.append(
            {
                "task": task,
                "labels": num_labels,
                "best rival": best,
                "%": 100 * single[best],
                "best merged rival": best_merged,
                "% merged": 100 * merged[best_merged],
                PRETRAINED: 100 * (arms[PRETRAINED].prediction == truth).mean(),
            }
        )
    return pd.DataFrame(rows)


def main(argv: list[str]) -> int:
    """Prints the table of one folder; returns the exit code."""
    (path,) = pathlib.Path(argv[0]).glob("predictions.csv*")
    columns = ["task", "arm", "num_labels", "seed", "item", "truth", "prediction", "probability"]
    print(table(pd.read_csv(path, usecols=columns)).round(1).to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
