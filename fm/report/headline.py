"""The sentence that a study ends with."""

from typing import Any

from fm.report import unified, verdict


def headline(results: dict[str, Any]) -> str:
    """What was found, over the tasks of a comparison or the claims about one model for many tasks.

    Raises:
        UserError: `results` is not of schema 1.
    """
    unify = isinstance(results, dict) and results.get("experiment") == "unify"
    return unified.multitask_headline(results) if unify else verdict.comparison_headline(results)
