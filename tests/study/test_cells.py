import pytest

from fm.errors import UserError
from fm.study import cells


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"{}", b'{"predictions": [], "x": 1}'])
def test_a_damaged_cell_is_told_by_its_name(content, tmp_path):
    path = tmp_path / "digits-self-20.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"digits-self-20.json is damaged; delete it"):
        cells._read(path)
