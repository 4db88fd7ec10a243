"""Flags of the study of one model for many tasks: wrong ones are one line, before any data."""

import pytest


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--arms=joint"], "--arms=joint: takes two or more, none of them twice"),
        (
            ["--arms=joint,out_of_domain"],
            "--arms: 'upstream' is not known; accepted are scratch, self",
        ),
        (["--tasks=digits,digits"], "--tasks=digits,digits: takes at least one name, none of them"),
        (
            ["--tasks=digits", "--mixture=pears:1"],
            "--mixture=pears:1: takes weights above 0 of digits",
        ),
        (["--tasks=digits", "--mixture=digits:0"], "takes weights above 0"),
        (["--label_budgets=ten"], "--label_budgets=ten: takes whole numbers above 0"),
        (
            ["--ablations=matrices"],
            "--ablations: 'matrices' is not known; accepted are matrix, mixture",
        ),
        (
            ["--ablations=amount", "--arms=scratch,in_domain"],
            "--ablations=amount takes the arm joint",
        ),
        (["--tasks=no such data"], "unknown data set 'no such data'"),
    ],
)
def test_bad_flags_are_one_line(call, tmp_path, flags, says):
    made = call("unify", *flags, f"--out={tmp_path / 'out'}")
    assert made.code == 2 and says in made.error
    assert not (tmp_path / "out").exists()
