"""The report's files: everything is made in memory first, then each file appears whole."""

from pathlib import Path

from fm.errors import UserError
from fm.files import replace
from fm.report.gallery import draw
from fm.report.page import render
from fm.report.schema import tidy
from fm.report.table import csv_table


def write(results: dict, out: Path) -> Path:
    """Write `report.html`, `table.csv` and `plots/*.png` into the folder `out`.

    The folder is made if need be. No file is ever seen half-written, the page comes last, and a
    report that is already there stays as it was if this one can't be made.

    Args:
        results: the content of a results.json of schema 1. It need hold only the contract's
            fields; a section without data says so in one line.
        out: the folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: `results` is not of schema 1, or `out` is a file.
    """
    tidied = tidy(results)
    drawings = draw(tidied)
    page, table = render(tidied, drawings), csv_table(tidied)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the report needs a folder")
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        replace(out / "plots" / drawing.file, drawing.png)
    replace(out / "table.csv", table.encode())
    replace(out / "report.html", page.encode())
    return out / "report.html"
