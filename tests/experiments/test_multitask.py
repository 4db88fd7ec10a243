"""Flags of the study of one model for many tasks: wrong ones are one line, before any data."""

import pytest


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--arms=joint"], "--arms=joint: takes two or more different arms"),
        (
            ["--arms=joint,out_of_domain"],
            "--arms: 'out_of_domain' is not an arm of multitask; must be some of scratch",
        ),
        (["--tasks=digits,digits"], "--tasks=digits,digits: takes one or more different names"),
        (
            ["--tasks=digits", "--mixture=pears:1"],
            "--mixture=pears:1: takes weights above 0 for digits",
        ),
        (["--tasks=digits", "--mixture=digits:0"], "takes weights above 0"),
        (["--label_budgets=ten"], "--label_budgets=ten: takes whole numbers above 0"),
        (
            ["--ablations=matrices"],
            "--ablations: 'matrices' must be one of transfer_matrix, mixture, data_amount",
        ),
        (
            ["--ablations=data_amount", "--arms=scratch,in_domain"],
            "--ablations=data_amount: needs the joint arm in --arms",
        ),
        (["--tasks=no such data"], "unknown data set 'no such data'"),
    ],
)
def test_bad_flags_are_one_line(call, tmp_path, flags, says):
    made = call("multitask", *flags, f"--out={tmp_path / 'out'}")
    assert made.code == 2 and says in made.error
    assert not (tmp_path / "out").exists()
