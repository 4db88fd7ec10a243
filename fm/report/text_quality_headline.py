"""The finding of a study of text in a few sentences, all of them made from its numbers."""

from typing import Any

import numpy as np

from fm.evaluation.text_quality.metrics import BY_NAME, METRICS

Row = dict[str, Any]


def sentences(results: dict[str, Any]) -> list[str]:
    """One paragraph's sentences, domain by domain."""
    told = []
    names = {domain["letter"]: domain["name"] for domain in results["domains"]}
    for choice in results["choices"]:
        letter = choice["domain"]
        told.append(f"{_named(letter, names)}: {_closest(results, choice)}")
        told.append(_disagreement(choice))
        told.append(_copying(results, letter))
    told.append(_tuning(results))
    return [sentence for sentence in told if sentence]


def spoken(row: Row) -> str:
    """Training set, checkpoint and decoding in words."""
    stage = "" if row["stage"] == "end" else f" after {row['stage']} of its training"
    return f"“{row['arm']}”{stage} at {row['decoding']}"


def _named(letter: str, names: dict[str, str]) -> str:
    return f"On {letter} ({names[letter]})"


def _closest(results: dict[str, Any], choice: Row) -> str:
    row = choice["chosen"]["divergence"]
    human = _human(results, choice["domain"])["divergence"]
    own = row["values"]["divergence"]
    away = "clearly short of" if own[2] < human[1] else "not clearly apart from"
    return (
        f"closest to real text by MAUVE-style area is {spoken(row)}, {_with(own, '.2f')}, "
        f"{away} other real text, {_with(human, '.2f')}."
    )


def _disagreement(choice: Row) -> str:
    """How many choices there are, which is the costliest and which the cheapest."""
    places = {(row["arm"], row["stage"], row["decoding"]) for row in choice["chosen"].values()}
    if len(places) == 1:
        return f"All {len(METRICS)} metrics choose it."
    clear = [row for row in choice["regrets"] if row["clear"] and row["by"] != row["metric"]]
    if not clear:
        return (
            f"{len(METRICS)} metrics make {len(places)} choices, but no metric clearly loses by "
            "another one's choice."
        )
    worst = max(clear, key=lambda row: row["regret"])
    others: dict[str, list[float]] = {}
    for row in choice["regrets"]:
        if row["by"] != row["metric"]:
            others.setdefault(row["by"], []).append(row["regret"])
    means = {name: float(np.mean(lost)) for name, lost in others.items()}
    least = min(means, key=lambda name: means[name])
    chosen = choice["chosen"][worst["by"]]
    return (
        f"{len(METRICS)} metrics make {len(places)} different choices: that of "
        f"{BY_NAME[worst['by']].title} ({spoken(chosen)}) costs another one most, "
        f"{BY_NAME[worst['metric']].title}: {min(worst['regret'], 1.0):.0%} of its range; "
        f"that of {BY_NAME[least].title} costs the others least, {means[least]:.0%} on average."
    )


def _copying(results: dict[str, Any], letter: str) -> str:
    plain = results["config"]["decodings"][0]
    rows = [
        row
        for row in results["samples"]
        if (row["domain"], row["stage"], row["temperature"])
        == (letter, "end", plain["temperature"])
    ]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row["values"]["copied"][0])
    own, human = most["values"]["copied"], _human(results, letter)["copied"]
    than = "more than" if own[1] > human[2] else "less than" if own[2] < human[1] else "about as"
    return (
        f"At plain sampling “{most['arm']}” copies most, {_with(own, '.1f')} words in a row on "
        f"average, {than} real text ({_with(human, '.1f')})."
    )


def _tuning(results: dict[str, Any]) -> str:
    """Pretrained and tuned against scratch on the same few texts, at equal tokens."""
    diets = results["config"]["diets"]
    tuned = next((name for name, diet in diets.items() if diet["start"]), None)
    if tuned is None:
        return ""
    scratch = next(
        (
            name
            for name, diet in diets.items()
            if not diet["start"] and diet["parts"] == diets[tuned]["parts"]
        ),
        None,
    )
    if scratch is None:
        return ""
    domain = diets[tuned]["writes"][0]
    of = {
        name: [r for r in results["models"] if (r["arm"], r["domain"]) == (name, domain)]
        for name in (tuned, scratch)
    }
    best = {
        name: min((row["value"] for row in rows), key=lambda v: v[0]) for name, rows in of.items()
    }
    mine, other = best[tuned], best[scratch]
    verdict = (
        "better than"
        if mine[2] < other[1]
        else "worse than"
        if mine[1] > other[2]
        else "not clearly different from"
    )
    return (
        f"With the same few texts of {domain}, “{tuned}” is {verdict} scratch at equal "
        f"tokens, each at its best checkpoint: {_with(mine, '.3f')} against "
        f"{_with(other, '.3f')} bits per byte."
    )


def _human(results: dict[str, Any], letter: str) -> dict[str, list[float]]:
    return next(row["values"] for row in results["human"] if row["domain"] == letter)


def _with(value: list[float], form: str) -> str:
    middle, low, high = (format(each, form) for each in value)
    return f"{middle} [{low}, {high}]"
