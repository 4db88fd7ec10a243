import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags

from experiments import cli
from fm.errors import UserError
from fm.training.signals import Interrupted

ROOT = Path(__file__).parents[2]
NAMES = ["compare", "pretrain", "adapt", "report", "ablate"]


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_the_flags(call, name):
    done = call(name, "--help")
    assert done.code == 0 and done.err == ""
    assert f"python -m experiments.{name}" in done.out
    assert "--out=string  folder for all output" in done.out
    if name != "report":
        assert "--dataset=" in done.out and "--data_dir=" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_flag_is_named_with_what_is_accepted(call, name):
    done = call(name, "--foo=3")
    assert done.code == 2
    assert "--foo is not a flag; accepted are --" in done.error and "--out" in done.error


@pytest.mark.parametrize(
    ("argument", "accepted"),
    [
        ("--seeds=abc", "a positive integer"),
        ("--seeds=-1", "a positive integer"),
        ("--seeds=0", "a positive integer"),
        ("--seeds=", "a positive integer"),
        ("--seeds=2.5", "a positive integer"),
        ("--profile=x", "one of quick, default, full"),
        ("--help=maybe", "true or false"),
        ("--out", "a text"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(call, argument, accepted):
    done = call("compare", argument)
    assert done.code == 2
    assert done.err == f"error: {argument}: takes {accepted}\n"


def test_words_that_are_no_flags_are_refused(call):
    done = call("compare", "digits")
    assert done.code == 2
    assert "'digits' is not a flag; flags look like --name=value" in done.error


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError(2, "No such file", "a.csv"), 2, "error: a.csv: No such file"),
        (OSError("odd"), 2, "error: odd"),
        (Interrupted("stopped, saved"), 130, "error: stopped, saved"),
        (OSError(28, "No space left", "out/a"), 2, "error: out/a: No space left"),
        (MemoryError(), 2, "error: out of memory (no more from this machine); what was saved"),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
            ),
            2,
            "error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.); what",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on where it was"),
        (flags.ValidationError("x must be y"), 2, "error: x must be y"),
    ],
    ids=repr,
)
def test_errors_are_one_line_and_a_code(capsys, raised, code, line):
    def main(_):
        raise raised

    assert cli.call("x", "", lambda values: None, main, []) == code
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_a_bug_is_not_hidden():
    def main(_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.call("x", "", lambda values: None, main, [])


def test_termination_ends_as_an_interrupt_does(capsys):
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        code = cli.call(
            "x", "", lambda values: None, lambda _, number=number: os.kill(os.getpid(), number), []
        )
        assert code == 130 and "goes on where it was" in capsys.readouterr().err
        assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_is_one_line(number):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.compare", "--help"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    # Modules are told of as they are read: of the experiment's own the first is this.
    while not process.stderr.readline().endswith(" jax.version\n"):
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out) == (130, "")
    assert said == ["error: interrupted; the same command goes on where it was"]


def test_a_write_that_nobody_waits_for_is_not_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    cli.configure_process()
    cli.configure_process()
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(exc_value=RuntimeError("something else"))
    for each in (late, other):
        sys.unraisablehook(each)
    assert told == [other]
