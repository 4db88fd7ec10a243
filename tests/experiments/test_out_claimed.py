"""--out is claimed once the data are accepted: what is refused before leaves no trace there."""

import csv

import pytest

STUDY = ["--label_budgets=150", "--seeds=2", "--profile=quick"]


@pytest.fixture
def overlapping(tmp_path):
    """A CSV file of 40 texts six times over: of 240 labels the near-duplicates leave few."""
    path = tmp_path / "overlapping.csv"
    texts = [" ".join(f"word{20 * n + k}" for k in range(20)) for n in range(40)]
    with path.open("w", newline="") as file:
        rows = [(f"{n} {texts[n % 40]}", "ab"[n % 2]) for n in range(240)]
        csv.writer(file).writerows([("text", "label"), *rows])
    return f"--dataset={path}"


@pytest.fixture
def untouched(tmp_path):
    """`untouched(refused)` calls it with a new folder and with one that holds a file."""

    def check(refused):
        new, old = tmp_path / "new", tmp_path / "old"
        old.mkdir()
        (old / "own.txt").write_text("mine")
        for out in (new, old):
            refused(out)
        assert not new.exists()
        assert [path.name for path in old.iterdir()] == ["own.txt"]

    return check


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("adapt", ["--labels=150"]),
        ("compare", STUDY),
        ("ablate", [*STUDY, "--field=steps", "--values=2,3"]),
        ("search", [*STUDY, "--field=steps=2,3"]),
    ],
)
def test_data_that_are_refused_late(call, tiny, overlapping, untouched, name, flags):
    def refused(out):
        done = call(name, overlapping, *flags, f"--out={out}")
        assert done.code == 2 and "must be between" in done.error, done.err

    untouched(refused)


def test_tasks_of_one_model_that_are_refused_late(call, tiny, overlapping, untouched):
    def refused(out):
        tasks = overlapping.replace("--dataset=", "--tasks=")
        done = call("multitask", tasks, "--label_budgets=150", "--profile=quick", f"--out={out}")
        assert done.code == 2 and "must be between" in done.error, done.err

    untouched(refused)


@pytest.mark.parametrize("name", ["pretrain", "adapt", "compare", "ablate", "text_quality"])
def test_a_column_that_is_missing(call, tiny, reviews, untouched, name):
    path = reviews(reviews.rows)
    given = [f"--dataset={path}"]
    if name == "text_quality":
        given = [f"--domains={path},digits", "--profile=quick"]

    def refused(out):
        done = call(name, *given, "--text_column=body", f"--out={out}")
        assert done.code == 2 and "body" in done.error, done.err

    untouched(refused)


def test_files_of_predictions_that_do_not_fit(call, tmp_path, untouched):
    files = tmp_path / "a.csv", tmp_path / "b.csv"
    for path in files:
        path.write_text("item,truth\n1,a\n")

    def refused(out):
        assert call("paired", *map(str, files), f"--out={out}").code == 2

    untouched(refused)
