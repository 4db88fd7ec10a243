import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.study import cells

CELL = cells.Cell("digits", "in_domain", 20, {"l2": 0.1}, [], np.array([[1, 2, 3]]), 5.0, 0.5)


@pytest.fixture
def path(tmp_path):
    """A cell that was kept."""
    path = tmp_path / "digits-self-20.json"
    cells._write(path, CELL)
    return path


def test_a_cell_comes_back(path):
    back = cells._read(path)
    np.testing.assert_array_equal(back.predictions, CELL.predictions)
    plain = [dataclasses.asdict(each) | {"predictions": None} for each in (back, CELL)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"value": {"x": 1}}'])
def test_a_damaged_cell_is_told_by_its_name(content, path):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"digits-self-20.json is damaged; delete it"):
        cells._read(path)


def test_a_cell_with_another_answer_is_damaged(path):
    path.write_bytes(path.read_bytes().replace(b"[1, 2, 3]", b"[1, 2, 2]"))
    with pytest.raises(UserError, match=r"digits-self-20.json is damaged; delete it"):
        cells._read(path)
