"""Of what the cache holds no byte changes unseen."""

import shutil

import pytest

from fm.data.load import load
from fm.errors import UserError

ROWS = "text,label\n" + "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(40))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A file of texts whose data set and index are in a cache of its own; and both folders."""
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.csv"
    path.write_text(ROWS)
    load(str(path))
    (prepared,) = (each.parent for each in tmp_path.glob("cache/files/**/dataset_info.json"))
    index, _ = tmp_path.glob("cache/index/*")  # of either split
    return path, prepared, index


@pytest.mark.parametrize("way", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("which", [1, 2])
def test_damage_is_told_by_its_folder(made, which, way):
    path, folder = str(made[0]), made[which]
    assert (folder / "digests.json").exists()
    for file in sorted(each for each in folder.iterdir() if each.is_file()):
        content = file.read_bytes()
        if way == "gone" and file.name == "digests.json":
            continue
        file.unlink()
        if way == "flipped":
            file.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
        if way == "cut":
            file.write_bytes(content[: len(content) // 2])
        # An index is found by the sizes and times of the files it was made of.
        with pytest.raises(UserError) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(f"{folder} is damaged (") and "delete it" in message
        assert file.name in message and "\n" not in message
        file.write_bytes(content)


def test_what_was_deleted_is_made_again(made):
    path, prepared, _ = made
    before = load(str(path)).info["fingerprint"]
    shutil.rmtree(prepared)
    assert load(str(path)).info["fingerprint"] == before
