"""The table of scores by group of test items, such as their source or speaker."""

import dataclasses

from fm.report.records import GroupScore
from fm.report.schema import Results

# Of more groups, the table shows each arm's lowest, middle and highest.
MAX_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class GroupTable:
    """A task's scores by group.

    Attributes:
      title: of the table.
      columns: names of the groups with their numbers of items, or of places in their order.
      rows: arm, number of labels and a score per column.
      named: whether a cell needs the name of its group.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, float | None, list[GroupScore]]]
    named: bool


def group_tables(results: Results) -> list[GroupTable]:
    """Returns a table per task with groups: arms and label budgets by group of test items."""
    tables = []
    for task in results.task_names():
        scores = [row for row in results.group_scores if row.task == task and row.value is not None]
        if not scores:
            continue
        sizes = {row.group: row.items for row in scores}
        named = len(sizes) > MAX_COLUMNS
        columns = [f"{name} ({size:,} items)" for name, size in sizes.items() if size is not None]
        if named:
            columns = ["lowest group", "middle group", "highest group"]
        rows = []
        for arm in results.arm_names(row.arm for row in scores):
            own = [row for row in scores if row.arm == arm]
            for num_labels in sorted({row.num_labels for row in own}, key=lambda n: n or 0):
                cells = [row for row in own if row.num_labels == num_labels]
                if named:
                    order = sorted(cells, key=lambda row: row.value or 0)
                    cells = [order[0], order[len(order) // 2], order[-1]]
                rows.append((arm, num_labels, cells))
        about = results.task(task)
        group = about.item_group or "group"
        tables.append(GroupTable(f"{about.title}, {about.metric} by {group}", columns, rows, named))
    return tables
