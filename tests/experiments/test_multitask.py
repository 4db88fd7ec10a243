"""Bad flags of experiments.multitask are refused in one line before any data is loaded."""

import pytest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=digits", "--arms=joint"], "--arms=joint: takes two or more different arms"),
        (
            ["--tasks=digits", "--arms=joint,out_of_domain"],
            "--arms: 'out_of_domain' is not an arm of multitask; must be some of scratch",
        ),
        (["--tasks=digits,digits"], "--tasks=digits,digits: takes one or more different names"),
        (
            ["--tasks=digits", "--mixture=pears:1"],
            "--mixture=pears:1: takes weights above 0 for digits",
        ),
        (["--tasks=digits", "--mixture=digits:0"], "takes weights above 0"),
        (
            ["--tasks=digits", "--label_budgets=ten"],
            "--label_budgets=ten: takes whole numbers above 0",
        ),
        (
            ["--tasks=digits", "--ablations=matrices"],
            "--ablations: 'matrices' must be one of transfer_matrix, mixture, data_amount",
        ),
        (
            ["--tasks=digits", "--ablations=data_amount", "--arms=scratch,in_domain"],
            "--ablations=data_amount: needs the joint arm in --arms",
        ),
        (["--tasks=no such data"], "unknown data set 'no such data'"),
    ],
)
def test_bad_flags_are_one_line(call, tmp_path, flags, message):
    done = call("multitask", *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2 and message in done.error
    assert not (tmp_path / "out").exists()
