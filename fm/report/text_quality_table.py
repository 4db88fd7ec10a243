"""Every figure of a study of text as one tidy table."""

import csv
import io
from collections.abc import Iterator
from typing import Any

_COLUMNS = ("of", "domain", "arm", "stage", "decoding", "metric", "value", "low", "high")


def csv_table(results: dict[str, Any]) -> str:
    """One row for a metric of a sample, with a heading.

    Column `of` says whose text it is: "model", a sample that choices were made among; "fresh", one
    written anew after a metric had chosen it (once for each different choice); "real".
    """
    made = io.StringIO()
    table = csv.writer(made, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows(_rows(results))
    return made.getvalue()


def _rows(results: dict[str, Any]) -> Iterator[list[str]]:
    groups = {
        "real": results["human"],
        "model": results["samples"],
        "fresh": [row for choice in results["choices"] for row in _different(choice)],
    }
    for of, rows in groups.items():
        for row in rows:
            place = [row["domain"], *(row.get(key, "") for key in ("arm", "stage", "decoding"))]
            for metric, values in row["values"].items():
                yield [of, *place, metric, *(f"{value:.6g}" for value in values)]


def _different(choice: dict[str, Any]) -> list[dict[str, Any]]:
    chosen = choice["chosen"].values()
    return list({(row["arm"], row["stage"], row["decoding"]): row for row in chosen}.values())
