import pytest

from fm.report import formats

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.123, "+12.3"), (-0.031, "−3.1"), (-0.0001, "0.0"), (0.0, "0.0"), (None, "–")],
)
def test_points(value, expected):
    assert formats.points(value) == expected


def test_units_keep_numbers_short():
    assert formats.flops(4.1e14) == "410 TFLOP" and formats.flops(1.234e12) == "1.23 TFLOP"
    assert formats.flops(0) == "0"
    assert formats.seconds(0.8) == "0.8 s"
    assert formats.seconds(141) == "2.4 min"
    assert formats.seconds(9000) == "2.5 h"
    assert formats.num_bytes(12_600_000) == "12.6 MB" and formats.num_bytes(140) == "140 B"
    assert formats.num_bytes(None) == formats.MISSING
    assert formats.si_prefixed(1500) == "1.5k" and formats.si_prefixed(0.25) == "0.25"
    assert formats.si_prefixed(999_999) == "1M" and formats.si_prefixed(2e9, " ") == "2 G"
    assert formats.multiplier(3.3) == "3.3x"
    assert formats.p_value(0.0001) == "<0.001"
    assert formats.count(25_000) == "25,000"
    assert formats.interval(0.091, 0.152) == "9.1 to 15.2"
    assert formats.std_points(0.0004) == "2.00"
    assert formats.difference(0.011, -0.009, 0.031) == "+1.1 [−0.9, 3.1]"
    assert formats.difference(0.011, None, None) == "+1.1"
    assert formats.label_budget(400) == "400 labels"
    assert formats.label_budget(None) == "mean of all labels"


def test_a_detectable_difference_is_at_most_100_points():
    assert formats.detectable(0.0421) == "4.2" and formats.detectable(3.74) == "over 100"
    assert formats.detectable(None) == formats.MISSING


def test_percentages_do_not_depend_on_the_last_bit_of_a_mean():
    below, above = 0.6885 - 1e-15, 0.6885 + 1e-15
    assert f"{100 * below:.1f}" != f"{100 * above:.1f}"
    assert formats.percent(below) == formats.percent(0.6885) == formats.percent(above)
    assert formats.percent(0.824) == "82.4%" and formats.percent(None) == formats.MISSING


def test_small_numbers_have_a_real_minus_in_their_power():
    assert formats.power_of_ten(2.6e-7) == "3 × 10⁻⁷" and formats.power_of_ten(0.0) == "0"


def test_an_interval_of_scores_ends_where_scores_end():
    assert formats.score_interval(-0.98, 1.14) == "0.0 to 100.0"
    assert formats.score_interval(-0.98, 0.5, lowest=-1) == f"{MINUS}98.0 to 50.0"


def test_plain_text_keeps_hyphens():
    assert formats.to_ascii(f"{MINUS}3.1 {formats.MISSING}") == "-3.1 -"
