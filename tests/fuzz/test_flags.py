"""Any value of any flag: accepted, or refused with a line that names it."""

import contextlib
import csv
import functools
import importlib
import os
import pathlib
import tempfile

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from experiments import cli
from tests.fuzz import helpers_guard as guard
from tests.fuzz import helpers_junk as junk
from tests.study.helpers_study import texts

# Valid data, so that later checks are reached, and nothing that is downloaded.
BASE = {
    "compare": ["--dataset=DATA", "--model=", "--label_budgets=20", "--seeds=2"],
    "ablate": [
        *("--dataset=DATA", "--model=", "--label_budgets=20", "--seeds=2"),
        *("--field=steps", "--values=1,2"),
    ],
    "claims": ["--claim=shared_basin", "--profile=quick"],
    "search": ["--dataset=DATA", "--label_budgets=20", "--seeds=2", "--field=steps=1,2"],
    "multitask": ["--tasks=DATA", "--label_budgets=20", "--seeds=2"],
    "pretrain": ["--dataset=DATA"],
    "adapt": ["--dataset=DATA", "--labels=20"],
    "text_quality": ["--domains=DATA,OTHER", "--embedder=tfidf"],
    "benchmark": ["--suite=matmul", "--baseline=none"],
    "export": ["--model=DATA"],
    "predict": ["--model=DATA", "--dataset=DATA"],
    "generate": ["--model=DATA", "--prompt=a"],
    "attention_maps": ["--model=DATA", "--text=a"],
    "report": [],
    "paired": ["FIRST", "SECOND"],
    "doctor": [],
    "plan": ["--chips=1"],
}
# Without --out, or not a folder.
NO_OUT = ("plan", "generate", "doctor")
# Commands whose model is looked at before --out, and is none here.
MODEL_FIRST = ("export", "predict")
# --out has a test of its own.
EXCLUDED = {"out", "help", "h"}


@functools.cache
def names(experiment):
    values = flags.FlagValues()
    importlib.import_module(f"experiments.{experiment}").define(values)
    return sorted(set(values) - EXCLUDED)


def test_every_experiment_is_covered():
    folder = pathlib.Path(cli.__file__).parent
    modules = {path.stem: importlib.import_module(f"experiments.{path.stem}")
               for path in folder.glob("[a-z]*.py")}  # fmt: skip
    runnable = {
        name
        for name, module in modules.items()
        if hasattr(module, "define") and hasattr(module, "main")
    }
    assert runnable == set(BASE) == set(guard.WORK)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two files of labeled texts, and two of predictions."""
    folder = tmp_path_factory.mktemp("data")
    for n, name in enumerate(("data.csv", "other.csv")):
        inputs, labels = texts(120, n)
        with (folder / name).open("w", newline="") as file:
            rows = zip(inputs, ("bad" if label else "good" for label in labels), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    for n, name in enumerate(("first.csv", "second.csv")):
        lines = [f"{item},{item % 2},{(item + n * (item % 5 == 0)) % 2}" for item in range(20)]
        (folder / name).write_text("\n".join(["item,truth,prediction", *lines]))
    return folder


def based(experiment, data):
    names = {"DATA": "data", "OTHER": "other", "FIRST": "first", "SECOND": "second"}
    paths = {name: str(data / f"{stem}.csv") for name, stem in names.items()}
    return [
        functools.reduce(lambda text, name: text.replace(name, paths[name]), paths, each)
        for each in BASE[experiment]
    ]


@pytest.mark.parametrize("experiment", BASE)
def test_any_value_of_any_flag(experiment, data):
    wrong = st.lists(
        st.tuples(st.sampled_from([*names(experiment), "nosuchflag"]), junk.values),
        min_size=1,
        max_size=3,
    )

    @guard.cases
    @given(wrong)
    def check(given):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "out")
            base = based(experiment, data)
            arguments = [*base, f"--out={out}", *(f"--{name}={value}" for name, value in given)]
            if experiment in ("plan", "doctor"):
                arguments.remove(f"--out={out}")
            with contextlib.chdir(folder):  # an empty folder, where no name is a path
                done = guard.run(experiment, arguments, out)
        if done.code == 2 and experiment not in ("generate", "attention_maps", "report"):
            parts = [part for _, value in given for part in [value, *value.split(",")]]
            named = [*(name for name, _ in given), *parts, "data.csv", "''"]
            named += [os.path.expanduser(part) for part in parts]  # noqa: PTH111
            shown = [cli.one_line(each)[:40] for each in named]
            shown += [repr(each)[1:-1][:40] for each in named]
            assert any(each and each in done.error for each in shown), done.error

    check()


# Paths in a temporary folder; nothing outside it may change.
PLACES = [
    *("", ".", "..", "file", "file/out", "new/deeper/out", "a\nb", "\udcff", "x" * 300, "é /%s"),
    *("/dev/null", "/dev/full", "/proc/1/out", "/sys/out", "pipe", "pipe/out", "loop", "nowhere"),
    *("~nobody/out", "closed", "closed/out", "$HOME", "-", "out.json", "file.json", "\x1b[2J"),
]


@pytest.mark.parametrize(
    "experiment", [name for name in BASE if name not in (*NO_OUT, *MODEL_FIRST)]
)
def test_any_output_path(experiment, data):
    @guard.cases
    @given(st.sampled_from(PLACES))
    def check(place):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            inside = pathlib.Path(folder, "inside")
            inside.mkdir()
            os.chdir(inside)
            for name in ("file", "file.json"):
                pathlib.Path(name).write_text("mine")
            os.mkfifo("pipe")
            pathlib.Path("loop").symlink_to("loop")
            pathlib.Path("nowhere").symlink_to("not/there")
            pathlib.Path("closed").mkdir(mode=0o500)
            given = [*based(experiment, data), f"--out={place}"]
            done = guard.run(experiment, given, pathlib.Path(folder, "none"))
            if done.code == 2:
                assert "--out" in done.error or cli.one_line(place)[:40] in done.error
            assert pathlib.Path("file").read_text() == "mine"
            assert pathlib.Path("file.json").read_text() == "mine"

    check()
