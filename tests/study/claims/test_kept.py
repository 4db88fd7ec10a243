"""The kept results of claims are what their criteria and their kept predictions say."""

import json
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fm.study.claims import CLAIMS, effective_data, shared_basin
from fm.study.claims.registry import FULL
from fm.study.claims.runner import judged

ROOT = Path(__file__).parents[3]
CLAIMS_FOLDER = ROOT / "experiments/results/claims"
KEPT = sorted(path.parent for path in CLAIMS_FOLDER.glob("*/results.json.xz"))


def results_of(folder):
    return json.loads(lzma.decompress((folder / "results.json.xz").read_bytes()))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_verdict_is_that_of_the_criterion(folder):
    results, claim = results_of(folder), CLAIMS[folder.name]
    assert results["profile"] == FULL
    assert results["config"]["criterion"] == list(claim.criterion)
    verdict = json.loads(json.dumps(judged(claim, FULL, results["measured"]).to_dict()))
    assert results["verdict"] == verdict
    page = (ROOT / "docs/claims.md").read_text()
    assert f"experiments/results/claims/{folder.name}/{folder.name}.png" in page


def scratch_catches_up(measured):
    """Yields the name of each run without its seed, and the accuracies by seed."""
    for row in measured["scores"]:
        study = f"updates-{row['updates']}"
        yield f"studies/{study}/{row['arm']}/{row['num_labels']}", row["values"]
    for row in measured["chosen_scores"]:
        yield f"studies/updates-chosen/{row['arm']}/{row['num_labels']}", row["values"]


def self_training(measured):
    """Yields the name of each run without its seed, and the accuracies by seed."""
    for row in measured["scores"]:
        yield f"studies/{row['study']}/{row['arm']}/{row['num_labels']}", row["values"]


@pytest.mark.parametrize("scores", [scratch_catches_up, self_training])
def test_scores_are_those_of_the_predictions(scores):
    folder = CLAIMS_FOLDER / scores.__name__
    table = pd.read_csv(folder / "predictions.csv.xz", dtype=str)
    right = table.iloc[:, 5:].eq(table.truth, axis=0)
    runs = 0
    for name, values in scores(results_of(folder)["measured"]):
        own = [right[f"{name}/{seed}"].mean() for seed in range(len(values))]
        np.testing.assert_allclose(own, values, rtol=1e-12)
        runs += len(own)
    assert runs == right.shape[1] > 0


def accuracies(name):
    """Returns the mean accuracy over seeds: a table of (study, labels) by arm."""
    table = pd.read_csv(CLAIMS_FOLDER / name / "predictions.csv.xz", dtype=str)
    right = table.iloc[:, 5:].eq(table.truth, axis=0).mean()
    # By study, arm, labels and seed.
    right.index = pd.MultiIndex.from_tuples([name.split("/")[1:] for name in right.index])
    return right.groupby(level=[0, 2, 1]).mean().unstack()


def test_differences_of_scratch_catches_up_are_those_of_the_predictions():
    folder = CLAIMS_FOLDER / "scratch_catches_up"
    by_arm = accuracies(folder.name)
    gaps = by_arm["in_domain"] - by_arm["scratch"]
    for row in results_of(folder)["measured"]["differences"]:
        labels = str(row.get("num_labels"))
        want = {
            "gap": lambda row=row, n=labels: gaps[f"updates-{row['updates']}", n],
            "gap at chosen lengths": lambda n=labels: gaps["updates-chosen", n],
            "fall with updates": lambda n=labels: gaps["updates-100", n] - gaps["updates-6400", n],
            "fall with labels": lambda: gaps["updates-6400", "400"] - gaps["updates-6400", "26000"],
        }[row["what"]]()
        assert row["difference"] == pytest.approx(want, abs=1e-12)


def test_differences_of_self_training_are_those_of_the_predictions():
    folder = CLAIMS_FOLDER / "self_training"
    by_arm = accuracies(folder.name)
    measured = results_of(folder)["measured"]
    budgets = [str(n) for n in measured["label_budgets"]]
    alone, both = (
        {each: by_arm.loc[f"{each}-{method}"] for each in measured["augmentations"]}
        for method in ("full", "self_training")
    )
    gaps = {each: own["in_domain"] - own["scratch"] for each, own in alone.items()}
    gains = {each: both[each] - alone[each] for each in alone}
    plain, augmented = measured["augmentations"]
    want = {
        "fall with labels": np.mean([gap[budgets[0]] - gap[budgets[-1]] for gap in gaps.values()]),
        "fall with augmentation": (gaps[plain] - gaps[augmented]).mean(),
        "self-training in the mean": np.mean([gain["scratch"] for gain in gains.values()]),
    }
    for row in measured["differences"]:
        if row["what"] == "gap":
            expected = gaps[row["augmentation"]][str(row["num_labels"])]
        elif row["what"] == "self-training":
            expected = gains[row["augmentation"]].loc[str(row["num_labels"]), row["arm"]]
        else:
            expected = want[row["what"]]
        assert row["difference"] == pytest.approx(expected, abs=1e-12)


def test_each_run_on_python_ended_by_itself_and_is_scored_where_it_was_best():
    measured = results_of(CLAIMS_FOLDER / "effective_data")["measured"]
    size = effective_data.SIZES[FULL]
    runs = {
        (row["layers"], row["width"], row["characters"], row["arm"], row["seed"]): row
        for row in measured["runs"]
    }
    assert len(runs) == len(measured["runs"])
    assert len(runs) == len(size.models) * len(size.characters) * 2 * size.seeds
    for row in runs.values():
        assert row["step"] <= row["steps"] <= size.max_steps
        # Bits on the passages that chose the step; nats on others of the same files.
        assert row["nats"] == pytest.approx(min(row["readings"]) * np.log(2), rel=0.1)
    found = effective_data.losses(measured)
    for (layers, width, characters, arm, seed), row in runs.items():
        place = (
            list(found.parameters_N).index(effective_data.num_parameters(layers, width)),
            list(found.characters_D).index(characters),
            seed,
        )
        assert getattr(found, f"{arm}_NDS")[place] == row["nats"]


def test_barriers_are_those_of_the_lines_and_lines_end_at_their_networks():
    measured = results_of(CLAIMS_FOLDER / "shared_basin")["measured"]
    means = {}
    for group in measured["groups"]:
        lines = np.array(group["lines"])
        accuracies = np.array(group["accuracies"])
        first, second = np.array(group["pairs"]).T
        assert len(lines) == len(accuracies) * (len(accuracies) - 1) / 2
        np.testing.assert_allclose(lines[:, 0], accuracies[first], atol=1e-6)
        np.testing.assert_allclose(lines[:, -1], accuracies[second], atol=1e-6)
        straight = np.linspace(lines[:, 0], lines[:, -1], lines.shape[1]).T
        depth = (straight - lines).max(axis=1)
        means.setdefault((group["inputs"], group["start"]), []).append(depth.mean())
        # Runs that share all but the order of images still differ.
        predictions = np.array(group["predictions"])
        assert all((predictions[a] != predictions[b]).any() for a, b in group["pairs"])
    assert len(means["plain", "one checkpoint"]) == 4
    for key, values in means.items():
        assert shared_basin.barriers(measured, *key).mean == pytest.approx(np.mean(values))
