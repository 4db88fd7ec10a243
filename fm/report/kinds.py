"""What each field of results.json must be, so that no page stumbles over one that is not."""

from typing import Any

from fm.errors import UserError

_TEXTS = (
    "task modality arm metric baseline beyond method title name description licence fingerprint "
    "split kind unit prompt text caption png wav gif truth prediction baseline_prediction "
    "condition wording way against source format note item upstream"
)
_LISTS = "trials classes values never"
_MAPPINGS = "variance imported shares setting"
# Of curves these are lists, elsewhere numbers.
_SERIES = "tokens steps value validation_tokens validation"
_MOST = 2**63  # larger whole numbers are no number of anything


def check(section: str, fields: str, rows: list[dict[str, Any]]) -> None:
    """Sees that every field of every row is of its kind, or None.

    Raises:
        UserError: one is not; names it by its section, row and field.
    """
    accepts = {field: _kind(section, field) for field in fields.split()}
    for n, row in enumerate(rows):
        for field, (words, fits) in accepts.items():
            value = row.get(field)
            if value is not None and not fits(value):
                raise UserError(
                    f"results: {section}[{n}].{field} takes {words}, not {str(value)!r:.60}"
                )


def _kind(section: str, field: str) -> tuple[str, Any]:
    """In words, and as a test."""
    if section == "curves" and field in _SERIES.split():
        return "a list of numbers", _is_series
    if field in _LISTS.split() or (section, field) == ("break_even", "tasks"):
        return "a list", lambda value: isinstance(value, list)
    if field in _TEXTS.split():
        return "a text", lambda value: isinstance(value, str)
    if field in _MAPPINGS.split():
        return "an object", lambda value: isinstance(value, dict)
    return "a number", _is_number


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST)


def _is_series(value: Any) -> bool:
    return isinstance(value, list) and all(each is None or _is_number(each) for each in value)
