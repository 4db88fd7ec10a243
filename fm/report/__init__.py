"""The report: one page, its plots and its tables, written from the content of a results.json."""

from fm.report.files import write
from fm.report.headline import headline
from fm.report.table import text_table

__all__ = ["headline", "text_table", "write"]
