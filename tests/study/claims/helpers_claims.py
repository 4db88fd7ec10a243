"""A claim made up for tests: what it measures is a number that is given."""

from fm.report import style
from fm.study.claims.registry import (
    Claim,
    Condition,
    Paper,
    PaperFigure,
    is_above,
    verdict_of,
)

PAPER = Paper("Doe and Roe", "More is more", 2020, "arXiv", "https://arxiv.org/abs/0000.00000")


def judge(measured):
    low, high = measured["interval"]
    held = is_above(low, high)
    figures = f"{low:+.1f} to {high:+.1f}"
    return verdict_of([Condition("the gap is above 0", held, figures)], f"gap {figures}")


def plot(measured, figure):
    figure.subplots().plot(measured["interval"])


def claim(measure=lambda profile, out_dir, data_dir: {"interval": [0.5, 1.5]}, **changes):
    """A claim whose criterion is that an interval lies above 0."""
    given = {
        "name": "made_up",
        "statement": "More is more.",
        "paper": PAPER,
        "figures": (PaperFigure("+3.0 points", "Table 1"),),
        "protocol": "Two numbers are made up.",
        "criterion": ("the gap is above 0",),
        "minutes": {"quick": 0.1, "pilot": 0.2, "full": 1.0},
        "settings": lambda profile, data_dir: {"seeds": 2 if profile == "quick" else 4},
    }
    return Claim(**given | changes, measure=measure, judge=judge, plot=plot)


def difference_row(points, half_width=0.5, **key):
    """A row of differences in points: clear where its interval leaves 0 out."""
    low, high = points - half_width, points + half_width
    clear, within = low > 0 or high < 0, abs(points) + 0.8 * half_width < 1
    return key | {
        "difference": points / 100,
        "low": low / 100,
        "high": high / 100,
        "margin": 0.01,
        "p_adjusted": 0.01 if clear else 0.5,
        "p_equivalence": 0.01 if within else 0.5,
    }


def is_drawn(claim, measured):
    """Whether a claim's picture shows something: axes with lines, and no text cut off."""
    with style.plot_style():
        figure = style.new_figure(claim.figure_height)
        claim.plot(measured, figure)
    assert figure.axes and all(axes.lines and axes.get_ylabel() for axes in figure.axes)
    return style.to_png(figure).startswith(b"\x89PNG")
