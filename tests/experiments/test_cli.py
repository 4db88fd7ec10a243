import importlib
import os
import shlex
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
from fm.study.arms import RENAMED_ARMS
from fm.training.signals import Interrupted

ROOT = Path(__file__).parents[2]
NAMES = ["compare", "pretrain", "adapt", "predict", "report", "ablate", "search"]
EXPERIMENTS = [
    *NAMES,
    "multitask",
    "text_quality",
    "generate",
    "attention_maps",
    "benchmark",
    "claims",
    "plan",
]


def defined_flags(name):
    values = flags.FlagValues()
    importlib.import_module(f"experiments.{name}").define(values)
    return set(values)


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_the_flags(call, name):
    done = call(name, "--help")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"fm {name}   (or: python -m experiments.{name})\n")
    assert "--out=string  folder for all output" in done.out
    if name != "report":
        assert "--dataset=" in done.out and "--data_dir=" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_flag_is_named_with_what_is_accepted(call, name):
    done = call(name, "--foo=3")
    assert done.code == 2
    assert "--foo is not a flag; accepted are --" in done.error and "--out" in done.error


@pytest.mark.parametrize(("old", "new"), cli.RENAMED_FLAGS.items())
def test_a_renamed_flag_is_answered_with_its_new_name(call, old, new):
    having = [name for name in EXPERIMENTS if new in defined_flags(name)]
    assert having and all(old not in defined_flags(name) for name in having)
    done = call(having[0], f"--{old}=1")
    assert (done.code, done.err) == (2, f"error: --{old} is now called --{new}\n")


@pytest.mark.parametrize(("old", "new"), RENAMED_ARMS.items())
def test_a_renamed_arm_is_answered_with_its_new_name(call, old, new):
    name = "multitask" if new == "instruction_tuned" else "compare"
    done = call(name, f"--arms=scratch,{old}")
    assert (done.code, done.err) == (2, f"error: --arms: {old!r} is now called {new!r}\n")


@pytest.mark.parametrize(
    ("old", "new"), [("next", "causal_lm"), ("masked", "masked_lm"), ("bag", "bag_of_words")]
)
def test_a_renamed_objective_is_answered_with_its_new_name(call, old, new):
    done = call("pretrain", "--dataset=digits", f"--objective={old}:1")
    assert (done.code, done.err) == (2, f"error: --objective: {old} is now called {new}\n")


def test_the_former_name_of_multitask():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.unify", "--profile=quick"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: experiments.unify is now called experiments.multitask\n"


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


def test_an_argument_that_is_no_flag(call):
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
        (MemoryError(), 2, "error: out of memory (no more from this machine); saved"),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
            ),
            2,
            "error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.); saved",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command resumes"),
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


def test_a_command_that_does_not_resume_says_so(capsys):
    def main(_):
        raise KeyboardInterrupt

    assert cli.call("x", "", lambda values: None, main, [], resumes=False) == 130
    assert capsys.readouterr().err == "error: interrupted; the same command begins again\n"


def test_a_bug_is_not_hidden():
    def main(_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.call("x", "", lambda values: None, main, [])


def test_sigterm_and_ctrl_c_exit_alike(capsys):
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        code = cli.call(
            "x", "", lambda values: None, lambda _, number=number: os.kill(os.getpid(), number), []
        )
        assert code == 130 and "the same command resumes" in capsys.readouterr().err
        assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_is_one_line(number):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.compare", "--help"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    # -X importtime prints every module once it is imported; this is the first of the experiment.
    while not process.stderr.readline().endswith(" jax.version\n"):
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    lines = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out) == (130, "")
    assert lines == ["error: interrupted; the same command resumes"]


def test_a_write_after_a_failed_save_is_not_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    cli.configure_process()
    cli.configure_process()
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(exc_value=RuntimeError("something else"))
    for each in (late, other):
        sys.unraisablehook(each)
    assert reported == [other]


def test_the_next_command_can_be_pasted_into_a_shell(capsys):
    cli.print_next("label new files", "predict", model=Path("my runs/a'b"), dataset="FILE", n=3)
    line = capsys.readouterr().out
    assert line.startswith("next, to label new files: fm predict ")
    command = shlex.split(line.partition(": ")[2])
    assert command[2:] == ["--model=my runs/a'b", "--dataset=FILE", "--n=3"]
    assert "--dataset=FILE" in line


def test_a_stream_that_cannot_show_a_minus_sign_gets_a_hyphen():
    text = "in_domain \N{MINUS SIGN} scratch: \N{MINUS SIGN}1.5 … é"
    assert text.encode("ascii", "fm_plain") == rb"in_domain - scratch: -1.5 ... \xe9"
