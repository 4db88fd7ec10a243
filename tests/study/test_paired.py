"""The comparison of files of predictions, against scipy and scikit-learn where they have it."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from fm.errors import UserError
from fm.evaluation.statistics import paired_difference
from fm.study.paired import PairedConfig, compare
from fm.study.prediction_files import CLASSES, NUMBERS, SCORES, SETS, read_predictions

N = 240
TRUTH = np.random.default_rng(0).choice(["cat", "dog", "fox"], N, p=[0.6, 0.3, 0.1])
GROUP = np.arange(N) % 10


def predictions(skill, seeds, source):
    """Predictions [S, N], right with a probability of `skill`."""
    random = np.random.default_rng(source)
    wrong = random.choice(["cat", "dog", "fox"], (seeds, N))
    return np.where(random.random((seeds, N)) < skill, TRUTH, wrong)


@pytest.fixture
def files(tmp_path):
    """Writes predictions by name, and reads them."""

    def write(scores=False, grouped=False, **by_name):
        paths = []
        for name, table_SN in by_name.items():
            lines = ["item,truth,prediction,seed,group"]
            lines += [
                f"i{n},{0 if scores else TRUTH[n]},{table_SN[s][n]},{s},{GROUP[n]}"
                for s in range(len(table_SN))
                for n in range(N)
            ]
            text = "\n".join(lines)
            text = text if grouped else text.replace(",group", ",speaker", 1)
            paths.append(tmp_path / f"{name}.csv")
            paths[-1].write_text(text if len(table_SN) > 1 else text.replace(",seed", ",run", 1))
        return read_predictions(paths, kind=SCORES if scores else CLASSES)

    return write


def test_several_seeds_are_compared_by_the_crossed_model(files):
    tables = {"a": predictions(0.5, 4, 1), "b": predictions(0.8, 4, 2), "c": predictions(0.5, 4, 3)}
    results = compare(files(**tables), PairedConfig())
    rows = results["comparisons"]
    assert [(row["arm"], row["baseline"]) for row in rows] == [("b", "a"), ("c", "a")]
    expected = paired_difference(
        (tables["b"] == TRUTH).astype(float), (tables["a"] == TRUTH).astype(float)
    )
    for name in ("difference", "low", "high", "p", "p_equivalence", "margin", "seeds", "items"):
        assert rows[0][name] == getattr(expected, name), name
    better, unclear = rows
    assert better["p"] <= better["p_adjusted"] < 0.01
    assert better["seeds_to_decide"] is better["items_to_decide"] is None
    assert unclear["p_adjusted"] > 0.1 and unclear["detectable"] > abs(unclear["difference"])
    assert results["notices"][0].endswith("a.csv: columns not used: speaker.")


def test_a_single_run_is_a_t_test_over_items(files):
    tables = {"a": predictions(0.5, 1, 1), "b": predictions(0.6, 1, 2)}
    row = compare(files(**tables), PairedConfig())["comparisons"][0]
    gap_N = (tables["b"][0] == TRUTH) - (tables["a"][0] == TRUTH).astype(float)
    expected = stats.ttest_1samp(gap_N, 0)
    interval = expected.confidence_interval()
    assert row["difference"] == pytest.approx(gap_N.mean())
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == row["p_adjusted"] == pytest.approx(expected.pvalue)
    assert (row["seeds"], row["items"], row["seeds_to_decide"]) == (1, N, None)
    assert row["variance"] == {"run": None, "item": pytest.approx(gap_N.var(ddof=1))}


def test_groups_of_a_single_run_are_its_independent_draws(files):
    tables = {"a": predictions(0.5, 1, 1), "b": predictions(0.6, 1, 2)}
    row = compare(files(grouped=True, **tables), PairedConfig())["comparisons"][0]
    gap_N = (tables["b"][0] == TRUTH) - (tables["a"][0] == TRUTH).astype(float)
    means_G = [gap_N[group == GROUP].mean() for group in range(10)]  # of equal sizes
    interval = stats.ttest_1samp(means_G, 0).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert (row["groups"], row["items"]) == (10, N)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_metrics_are_those_of_scikit_learn(files, metric):
    tables = {"a": predictions(0.5, 2, 1), "b": predictions(0.7, 2, 2)}
    results = compare(files(**tables), PairedConfig(metric=metric))
    for cell in results["cells"]:
        own = tables[cell["arm"]][cell["seed"]]
        expected = {
            "accuracy": np.mean(own == TRUTH),
            "balanced_accuracy": balanced_accuracy_score(TRUTH, own),
            "macro_f1": f1_score(TRUTH, own, average="macro"),
        }
        assert cell["value"] == pytest.approx(expected[metric])
        assert cell["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])
        assert cell["macro_f1"] == pytest.approx(expected["macro_f1"])
    values = {
        arm: np.mean([cell["value"] for cell in results["cells"] if cell["arm"] == arm])
        for arm in "ab"
    }
    assert results["comparisons"][0]["difference"] == pytest.approx(values["b"] - values["a"])


def test_scores_are_compared_as_they_are(files):
    random = np.random.default_rng(0)
    tables = {"a": random.normal(10, 1, (3, N)), "b": random.normal(12, 1, (3, N))}
    results = compare(files(scores=True, **tables), PairedConfig(metric="score", margin=None))
    row = results["comparisons"][0]
    assert row["difference"] == pytest.approx(tables["b"].mean() - tables["a"].mean())
    assert row["p_equivalence"] is row["margin"] is None
    assert results["cells"][0]["macro_f1"] is results["tasks"][0]["majority_rate"] is None


def test_equal_predictions_are_equivalent(files):
    table = predictions(0.5, 2, 1)
    row = compare(files(a=table, b=table), PairedConfig())["comparisons"][0]
    assert (row["difference"], row["p"], row["p_equivalence"]) == (0, 1, 0)


def test_every_pair_and_another_baseline(files):
    given = files(**{name: predictions(0.5, 1, n) for n, name in enumerate("abc")})
    pairs = [
        [(row["arm"], row["baseline"]) for row in compare(given, config)["comparisons"]]
        for config in (PairedConfig(baseline="b"), PairedConfig(all_pairs=True))
    ]
    assert pairs == [[("a", "b"), ("c", "b")], [("b", "a"), ("c", "a"), ("c", "b")]]
    with pytest.raises(UserError, match="--baseline=d: takes one of a, b, c"):
        compare(given, PairedConfig(baseline="d"))


def test_predictions_written_unlike_the_truths_are_refused(files):
    table = predictions(0.5, 1, 1)
    with pytest.raises(UserError, match=r"b.csv: no prediction is one of the truths \('Cat',"):
        compare(files(a=table, b=np.char.capitalize(table)), PairedConfig())


def test_calibration(tmp_path):
    header = "item,truth,prediction,probability"
    (tmp_path / "a.csv").write_text(f"{header}\nx,a,a,0.9\ny,b,a,0.8\nz,b,b,0.7\n")
    (tmp_path / "b.csv").write_text("item,truth,prediction\nx,a,a\ny,b,b\nz,b,b\n")
    given = read_predictions([tmp_path / "a.csv", tmp_path / "b.csv"])
    first, second = compare(given, PairedConfig())["cells"]
    # Of two classes the true one's probability follows; three bins hold one item each.
    assert first["nll"] == pytest.approx(log_loss([0, 1, 1], [0.1, 0.2, 0.7]))
    assert first["ece"] == pytest.approx((0.1 + 0.8 + 0.3) / 3)
    assert second["nll"] is second["ece"] is None


def write_tables(tmp_path, truths, **by_name):
    """Files of one run, of texts by item."""
    paths = []
    for name, predictions in by_name.items():
        rows = zip(truths, predictions, strict=True)
        lines = [f'i{n},"{truth}","{own}"' for n, (truth, own) in enumerate(rows)]
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("\n".join(["item,truth,prediction", *lines]))
    return paths


def test_numbers_are_compared_by_rank_correlation_and_absolute_error(tmp_path):
    draws = np.random.default_rng(0)
    truth = draws.normal(size=80).round(3)
    good, poor = (truth + scale * draws.normal(size=80) for scale in (0.3, 2.0))
    paths = write_tables(tmp_path, truth, poor=poor, good=good)
    paths[1].write_text(paths[1].read_text().replace(f'"{truth[0]}"', f'"{truth[0]}000"'))
    given = read_predictions(paths, kind=NUMBERS)
    results = compare(given, PairedConfig(metric="rank_correlation"))
    for cell, own in zip(results["cells"], (poor, good), strict=True):
        assert cell["value"] == pytest.approx(stats.spearmanr(own, truth).statistic)
        assert cell["macro_f1"] is cell["ece"] is None
    (row,) = results["comparisons"]
    assert row["arm"] == "good" and row["difference"] > 0 and row["p"] < 0.01
    results = compare(given, PairedConfig(metric="absolute_error", margin=None))
    assert results["cells"][1]["value"] == pytest.approx(-np.abs(good - truth).mean())
    assert results["comparisons"][0]["difference"] > 0.5 and results["tasks"][0]["in_units"]
    paths[0].write_text(paths[0].read_text().replace(f'"{poor[3]}"', '"high"'))
    with pytest.raises(UserError, match="line 5: prediction is 'high'; takes a finite number"):
        read_predictions(paths, kind=NUMBERS)


def test_sets_of_classes_are_compared_by_micro_f1(tmp_path):
    truths = ["a;b", "", "b", "c"] * 10
    paths = write_tables(tmp_path, truths, one=["b; a", "", "c", "c"] * 10, none=[""] * 40)
    given = read_predictions(paths, kind=SETS)
    results = compare(given, PairedConfig(metric="micro_f1"))
    assert [cell["value"] for cell in results["cells"]] == pytest.approx([0.75, 0.0])
    assert results["tasks"][0]["classes"] is None and "in_units" not in results["tasks"][0]
