"""The report: one page, its plots and its tables, written from the content of a results.json."""

from fm.report.files import write
from fm.report.table import text_table
from fm.report.verdict import headline

__all__ = ["headline", "text_table", "write"]
