"""The report of a study: one page, its plots and its tables, from the content of a results.json."""

from fm.report.headline import headline
from fm.report.pages import write
from fm.report.tables import text_table

__all__ = ["headline", "text_table", "write"]
