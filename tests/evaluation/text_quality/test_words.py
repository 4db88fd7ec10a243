import pytest

from fm.evaluation.text_quality.words import FAULTS, find_faults


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A film to see twice.\n\tTruly.", ()),
        ("très bien …", ()),
        ("... --- ****", ("empty",)),
        ("", ("empty",)),
        ("half a \N{REPLACEMENT CHARACTER} character", ("broken",)),
        ("a bell \x07 rings", ("control",)),
        ("very very very good", ()),
        ("it was Very very very VERY good", ("stuck",)),
        ("wait.......", ()),
        ("what !!!!", ("stuck",)),
        ("\x00", ("empty", "control")),
    ],
)
def test_faults(text, found):
    assert find_faults(text) == found
    assert set(found) <= set(FAULTS)
