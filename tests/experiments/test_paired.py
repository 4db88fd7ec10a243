"""`experiments.paired` from files to report, and every refusal in one line."""

import json
import re
from pathlib import Path

import pytest

HEADER = "item,truth,prediction"


@pytest.fixture
def predictions(tmp_path):
    """Writes a file of predictions of 40 items, wrong on those given."""

    def write(name, wrong, more=""):
        lines = [f"i{n},{n % 2},{(n + (n in wrong)) % 2}{more and f',{n}'}" for n in range(40)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([HEADER + more, *lines]))
        return str(path)

    return write


def test_files_give_a_table_results_and_a_report(call, predictions, tmp_path):
    first, second = predictions("old", range(20)), predictions("new", range(2), ",note")
    out = tmp_path / "out"
    done = call("paired", first, "--margin=2", second, f"--out={out}")
    assert (done.code, done.err) == (0, "")
    assert "new is better than old: +45.0 points of accuracy" in done.out
    assert "One run of each" in done.out and "new.csv: columns not used: note." in done.out
    assert f"report: {out / 'report.html'}" in done.out
    results = json.loads((out / "results.json").read_text())
    (row,) = results["comparisons"]
    assert row["difference"] == pytest.approx(0.45) and row["margin"] == 0.02
    assert (out / "table.csv").read_text().startswith("arm,baseline,metric,difference,")
    # The same folder is taken again, and `report` makes the page anew.
    assert call("paired", second, first, "--baseline=new", f"--out={out}").code == 0
    (out / "report.html").unlink()
    again = call("report", f"--out={out}")
    assert again.code == 0 and "old is worse than new: −45.0 points" in again.out
    assert (out / "report.html").exists()


def test_a_score_has_no_margin_unless_it_is_given(call, tmp_path):
    for name, gain in (("a", 0), ("b", 3)):
        lines = [f"{n},{n * n % 7 + gain + n % 2}" for n in range(30)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["item,prediction", *lines]))
    files = f"--file={tmp_path / 'a.csv'}", f"--file={tmp_path / 'b.csv'}", "--metric=score"
    done = call("paired", *files, f"--out={tmp_path / 'out'}")
    assert done.code == 0 and "b is better than a: +3 in score" in done.out
    row = json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"][0]
    assert row["margin"] is None and row["p_equivalence"] is None
    assert call("paired", *files, "--margin=4", f"--out={tmp_path / 'out'}").code == 0
    row = json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"][0]
    assert row["margin"] == 4


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "bad.csv: No such file"),
        ("", "bad.csv is empty; takes a table with the columns item, truth, prediction"),
        (f"{HEADER}\ni0,0\n", "bad.csv, line 2: has 2 cells, but line 1 names 3 columns"),
        (f"{HEADER}\ni0,0,0\ni0,0,1\n", "bad.csv, line 3: item 'i0' is also on line 2"),
        (f"{HEADER}\ni0,0,0\n", "bad.csv: item 'i1' is missing, which is on line 3 of"),
        (f"{HEADER}\ni0,1,0\n", "bad.csv: item 'i1' is missing"),
        (b"\xff\xfei\x00t\x00", "it begins like UTF-16, which --encoding=utf-16 reads"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(call, predictions, tmp_path, text, part):
    bad = tmp_path / "bad.csv"
    if text is not None:
        bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = call("paired", predictions("good", ()), str(bad), f"--out={tmp_path / 'out'}")
    assert done.code == 2 and part in done.error, done.error
    assert done.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_bad_flags(call, predictions, tmp_path):
    files = predictions("a", ()), predictions("b", (1,))
    out = f"--out={tmp_path / 'out'}"
    for given, part in (
        (files[:1], "1 files of predictions given; takes two or more"),
        ((*files, "--baseline=c"), "--baseline=c: takes one of a, b"),
        ((*files, "--margin=0"), "--margin=0.0: takes a number above 0"),
        ((*files, "--metric=auc"), "--metric=auc: takes one of accuracy, balanced_accuracy"),
        ((*files, "--encoding=klingon"), "--encoding=klingon: takes the name of"),
        ((*files, "--metrics=score"), "did you mean --metric?"),
    ):
        done = call("paired", *given, out)
        assert done.code == 2 and part in done.error, done.error
    assert not (tmp_path / "out").exists()


def test_results_of_another_experiment_are_not_replaced(call, predictions, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"schema": 2, "experiment": "compare"}))
    done = call("paired", predictions("a", ()), predictions("b", (1,)), f"--out={tmp_path}")
    assert done.code == 2 and "holds a run of another experiment" in done.error
    assert "compare" in (tmp_path / "results.json").read_text()


def test_help(call):
    done = call("paired", "--help")
    assert done.code == 0 and "item, truth, prediction" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_the_guide(call, tmp_path, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "paired.md").read_text(encoding="utf-8")
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", guide, re.DOTALL)
    (command,) = re.findall(r"python -m experiments.paired (.*)", guide)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/paired.md", "exec"), {})
    done = call("paired", *command.split())
    assert (done.code, done.err) == (0, "")
    assert done.out == printed
