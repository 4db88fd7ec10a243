"""Numbers as a person reads them. Every metric is a fraction from 0 to 1, higher better."""

from typing import Any

MISSING = "–"
_PREFIXES = (
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)


def points(value: float | None, signed: bool = True) -> str:
    """A difference of fractions in percentage points: 0.123 gives `+12.3`."""
    if value is None:
        return MISSING
    return _minus(f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}")


def interval(low: float | None, high: float | None) -> str:
    """An interval of fractions in percentage points: `9.1 to 15.2`."""
    if low is None or high is None:
        return "no interval"
    return f"{points(low, signed=False)} to {points(high, signed=False)}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: 0.824 gives `82.4%`."""
    return MISSING if value is None else f"{100 * value:.1f}%"


def p_value(value: float | None) -> str:
    """A p-value to three places, or that it is smaller."""
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands marked: `25,000`."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def flops(value: float | None) -> str:
    """Floating point operations with an SI prefix: `1.23 TFLOP`."""
    return MISSING if value is None else f"{si_prefixed(value, ' ')}FLOP" if value else "0"


def si_prefixed(value: float, space: str = "") -> str:
    """Three digits and an SI prefix: `1.5M`; below a thousand the number as it is."""
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{_three(value / size)}{space}{prefix}"
    return f"{value:g}{space}"


def seconds(value: float | None) -> str:
    """A duration in the unit that keeps it short: `0.42 s`, `35 s`, `12.4 min`, `3.1 h`."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{_three(value)} s" if value else "0"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def multiplier(value: float | None) -> str:
    """A ratio: `×3.3`."""
    return MISSING if value is None else f"×{_three(value)}"


def std_points(value: float | None) -> str:
    """A variance of fractions, as its square root in percentage points: `1.2`."""
    return MISSING if value is None else f"{100 * max(value, 0.0) ** 0.5:.2f}"


def config_value(value: Any) -> str:
    """Anything from a configuration: true and false in lower case, text as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)


def _three(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _minus(text: str) -> str:
    """`text` with a real minus sign, and zero without any sign."""
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def num_bytes(count: float | None) -> str:
    """Bytes in memory: 12_600_000 gives `12.6 MB`."""
    if count is None:
        return MISSING
    for unit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.1f} {prefix}B"
    return f"{count:.0f} B"
