"""Any value of any flag: taken, or refused in a line that names it."""

import contextlib
import csv
import functools
import importlib
import pathlib
import tempfile

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import guard, junk
from tests.study.problems import texts

# Data that fits, so that later checks are reached; and nothing that is fetched.
BASE = {
    "compare": ["--dataset=DATA", "--imported=", "--budgets=20", "--seeds=2"],
    "ablate": ["--dataset=DATA", "--imported=", "--budgets=20", "--seeds=2"],
    "unify": ["--tasks=DATA", "--budgets=20", "--seeds=2"],
    "pretrain": ["--dataset=DATA"],
    "adapt": ["--dataset=DATA", "--labels=20"],
    "text_quality": ["--domains=DATA,OTHER", "--features=terms"],
    "benchmark": ["--what=gemm", "--peer=none"],
    "generate": ["--model=DATA", "--prompt=a"],
    "attention_maps": ["--pretrained=DATA", "--text=a"],
    "report": [],
    "plan": ["--chips=1"],
}
# They reach beyond this process: where to write, whom to wait for.
LEFT = {"out", "help", "h", "cluster", "coordinator", "processes", "process"}


@functools.cache
def names(experiment):
    values = flags.FlagValues()
    importlib.import_module(f"experiments.{experiment}").define(values)
    return sorted(set(values) - LEFT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files of labelled texts."""
    folder = tmp_path_factory.mktemp("data")
    for n, name in enumerate(("data.csv", "other.csv")):
        inputs, labels = texts(120, n)
        with (folder / name).open("w", newline="") as file:
            rows = zip(inputs, ("bad" if label else "good" for label in labels), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


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
            base = [
                each.replace("DATA", str(data / "data.csv")).replace(
                    "OTHER", str(data / "other.csv")
                )
                for each in BASE[experiment]
            ]
            arguments = [*base, f"--out={out}", *(f"--{name}={value}" for name, value in given)]
            if experiment == "plan":
                arguments.remove(f"--out={out}")
            with contextlib.chdir(folder):  # where a name that is a path finds nothing
                done = guard.run(experiment, arguments, out)
        if done.code == 2 and experiment not in ("generate", "attention_maps", "report"):
            told = [*(name for name, _ in given), *(value for _, value in given), "data.csv"]
            shown = [" ".join(each.split())[:40] for each in told]
            assert any(each and each in done.error for each in shown), done.error

    check()
