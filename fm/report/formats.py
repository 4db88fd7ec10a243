"""Numbers as a person reads them. Every metric is a fraction from 0 to 1, higher better."""

from collections.abc import Iterable
from typing import Any

from matplotlib.ticker import EngFormatter

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_TO_ASCII = str.maketrans({"\N{MINUS SIGN}": "-", MISSING: "-"})


def points(value: float | None, signed: bool = True) -> str:
    """Formats a difference of fractions in percentage points: 0.123 gives `+12.3`."""
    if value is None:
        return MISSING
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """Formats an interval of fractions in percentage points: `9.1 to 15.2`."""
    if low is None or high is None:
        return "no interval"
    return f"{points(low, signed=False)} to {points(high, signed=False)}"


def score_interval(low: float | None, high: float | None, lowest: float = 0.0) -> str:
    """Formats an interval of scores, as far as scores go: `9.1 to 100.0`.

    Args:
      low: the lower end, a fraction.
      high: the upper end; no score is above 1.
      lowest: no score is below it, such as -1 for correlations.
    """
    if low is None or high is None:
        return "no interval"
    return interval(max(low, lowest), min(high, 1.0))


def difference(value: float | None, low: float | None, high: float | None) -> str:
    """Formats a difference in percentage points with its interval: `+1.1 [−0.9, 3.1]`."""
    if low is None or high is None:
        return points(value)
    return f"{points(value)} [{points(low, signed=False)}, {points(high, signed=False)}]"


def detectable(value: float | None) -> str:
    """Formats a smallest detectable difference in points; a score cannot differ by over 100."""
    return "over 100" if value is not None and value > 1 else points(value, signed=False)


def percent(value: float | None) -> str:
    """Formats a fraction as a percentage: 0.824 gives `82.4%`."""
    # A mean summed in another order may differ in its last bit, and so be printed as 68.8 and 68.9.
    return MISSING if value is None else f"{round(100 * value, 6):.1f}%"


def power_of_ten(value: float) -> str:
    """Formats a number to its first digit: `3 × 10⁻⁷`; `0` for zero."""
    if not value:
        return "0"
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def three_digits(value: float | None) -> str:
    """Formats a number to three significant digits: `0.693`."""
    return MISSING if value is None else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """Formats a p-value to three decimals: `0.012`, or `<0.001`."""
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def label_budget(value: float | None) -> str:
    """Formats a label budget: `400 labels`; None stands for the mean over all of them."""
    return "mean of all labels" if value is None else f"{count(value)} labels"


def count(value: float | None) -> str:
    """Formats a whole number with thousands separators: `25,000`."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def si_prefixed(value: float | None, sep: str = "", unit: str = "") -> str:
    """Formats a number to three digits with an SI prefix: `1.5M`; unchanged below 1000."""
    if value is None:
        return MISSING
    if value < 1000:
        return f"{value:g}{sep}{unit}"
    return EngFormatter(unit, sep=sep)(float(f"{value:.3g}"))


def flops(value: float | None) -> str:
    """Formats floating point operations with an SI prefix: `1.23 TFLOP`."""
    return "0" if value == 0 else si_prefixed(value, " ", "FLOP")


def num_bytes(value: float | None) -> str:
    """Formats bytes with an SI prefix: 12_600_000 gives `12.6 MB`."""
    return si_prefixed(value, " ", "B")


def seconds(value: float | None) -> str:
    """Formats a duration in a fitting unit: `0.42 s`, `35 s`, `12.4 min`, `3.1 h`."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{_two_or_three_digits(value)} s" if value else "0"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def multiplier(value: float | None) -> str:
    """Formats a ratio: `3.3x`."""
    return MISSING if value is None else f"{_two_or_three_digits(value)}x"


def std_points(variance: float | None) -> str:
    """Formats the square root of a variance of fractions, in percentage points: `1.2`."""
    return MISSING if variance is None else f"{100 * max(variance, 0.0) ** 0.5:.2f}"


def config_value(value: Any) -> str:
    """Formats a configuration value as text: booleans in lower case, strings unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)


def listed(parts: Iterable[str]) -> str:
    """Formats a list: `a, b and c`."""
    parts = list(parts)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def to_ascii(text: str) -> str:
    """Returns the text with plain hyphens for minus signs and dashes, as JSON and CSV keep it."""
    return text.translate(_TO_ASCII)


def _two_or_three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"
