"""Archives that somebody made to do harm, and ones that are merely broken."""

import io
import stat
import tarfile
import zipfile

import pytest

from fm.data.load import load
from fm.data.readers import archives
from fm.errors import UserError

TARS = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
ALL = [".zip", *TARS]


def pack(path, files, kinds=()):
    """An archive of (name, bytes or None for a folder), and of members that are neither."""
    if path.suffix in (".zip", ".whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files:
                opened.writestr(name + "/" * (content is None), content or b"")
            for name, kind in kinds:
                info = zipfile.ZipInfo(name)
                info.create_system = 3
                info.external_attr = kind << 16
                opened.writestr(info, "/etc/passwd")
        return path
    mode = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(path.suffix[1:], "")
    with tarfile.open(path, f"w:{mode}") as opened:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content or b""), tarfile.DIRTYPE
            if content is not None:
                info.type = tarfile.REGTYPE
            opened.addfile(info, io.BytesIO(content or b""))
        for name, kind in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
    return path


def refused(path, folder):
    """The one line about an archive, of which nothing may be written."""
    folder.mkdir()
    unpack = archives.unzip if path.suffix in (".zip", ".whl") else archives.untar
    with pytest.raises(UserError) as raised:
        unpack(path, folder)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert list(folder.rglob("*")) == []
    return str(raised.value)


@pytest.mark.parametrize("ending", [*ALL, ".whl"])
@pytest.mark.parametrize(
    "name",
    [
        *("../out.txt", "/tmp/out.txt", "a/../../out.txt", "a/..", "..", "C:/out.txt"),
        *("..\\out.txt", "\\\\host\\out.txt", "./../out.txt"),
    ],
)
def test_no_path_leads_outside(tmp_path, ending, name):
    path = pack(tmp_path / f"bad{ending}", [("good.txt", b"good"), (name, b"bad")])
    assert "outside" in refused(path, tmp_path / "folder")
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "folder"}


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids=["symlink", "hard link", "character device", "block device", "pipe"],
)
@pytest.mark.parametrize("ending", TARS)
def test_a_tar_holds_files_and_folders_alone(tmp_path, ending, kind):
    path = pack(tmp_path / f"bad{ending}", [("good.txt", b"good")], [("link", kind)])
    assert "'link' is neither a file nor a folder" in refused(path, tmp_path / "folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_holds_files_and_folders_alone(tmp_path, kind):
    path = pack(tmp_path / "bad.zip", [("good.txt", b"good")], [("link", kind | 0o777)])
    assert "'link' is neither a file nor a folder" in refused(path, tmp_path / "folder")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", ALL)
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a", b"1"), ("b", b"2"), ("a", b"3")], "'a' is in it twice"),
        ([("a", b"1"), ("./a", b"3")], "'./a' is in it twice"),
        ([("a", b"1"), ("a/b", b"2")], "'a' is both a file and a folder"),
        ([("a/b", b"2"), ("a", b"1")], "'a' is both a file and a folder"),
        ([("a", None), ("a", b"1")], "'a' is both a file and a folder"),
        ([(".", b"1")], "'.' is both a file and a folder"),
    ],
)
def test_every_name_is_one_thing(tmp_path, ending, files, said):
    path = pack(tmp_path / f"bad{ending}", files)
    assert said in refused(path, tmp_path / "folder")


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 2**20)
    path = pack(tmp_path / f"bomb{ending}", [(str(n), bytes(2**20)) for n in range(3)])
    assert "would unpack to over 1 MB" in refused(path, tmp_path / "folder")
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 3 * 2**20)
    (tmp_path / "other").mkdir()
    (archives.unzip if ending == ".zip" else archives.untar)(path, tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 3


def test_a_member_that_says_it_is_huge(tmp_path):
    info = tarfile.TarInfo("huge")
    info.size = 2**43
    (tmp_path / "huge.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "would unpack to over 1,024 MB" in refused(tmp_path / "huge.tar", tmp_path / "folder")


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 5)
    path = pack(tmp_path / "many.zip", [(str(n), b"") for n in range(6)])
    assert "5 files" in refused(path, tmp_path / "folder")


def test_a_zip_that_lies_about_a_size(tmp_path):
    path = pack(tmp_path / "lies.zip", [("a", bytes(5000))])
    whole = path.read_bytes()
    path.write_bytes(whole.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"lies\.zip is not a readable zip file"):
        archives.unzip(path, tmp_path / "folder")
    assert sum(file.stat().st_size for file in (tmp_path / "folder").iterdir()) <= 10


def test_a_name_with_a_nul(tmp_path):
    path = pack(tmp_path / "nul.zip", [("aXb.txt", b"1")])
    path.write_bytes(path.read_bytes().replace(b"aXb.txt", b"a\0b.txt"))
    assert "outside" in refused(path, tmp_path / "folder")


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as opened:
        for name in ("é", "b"):
            for n in range(4):
                info = tarfile.TarInfo(f"{name}/{n}.txt")
                info.size = 5
                opened.addfile(info, io.BytesIO(f"text{n}".encode()))
    with pytest.raises(UserError, match="has a name that is not UTF-8"):
        load(str(path))
    path = pack(tmp_path / "odd.zip", [("éa", b"1")])
    path.write_bytes(path.read_bytes().replace("éa".encode(), b"\xff\xfea"))
    assert "not a readable zip file" in refused(path, tmp_path / "folder")


def test_an_encrypted_zip(tmp_path):
    path = pack(tmp_path / "secret.zip", [("a", b"1")])
    whole = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        whole[whole.index(mark) + place] |= 1
    path.write_bytes(whole)
    assert "encrypted" in refused(path, tmp_path / "folder")


@pytest.mark.parametrize("ending", ALL)
def test_what_is_cut_short_or_something_else(tmp_path, ending):
    path = pack(tmp_path / f"cut{ending}", [(str(n), bytes(range(256)) * 9) for n in range(9)])
    whole = path.read_bytes()
    for n, content in enumerate((b"", b"no archive", whole[: len(whole) // 2], whole[:20])):
        path.write_bytes(content)
        (tmp_path / str(n)).mkdir()
        with pytest.raises(UserError, match=r"is not a readable (zip|tar) file") as raised:
            (archives.unzip if ending == ".zip" else archives.untar)(path, tmp_path / str(n))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", ALL)
def test_a_good_one(tmp_path, ending):
    path = pack(tmp_path / f"good{ending}", [("top", None), ("top/a.csv", b"a,b"), ("./b", b"")])
    with archives.unpacked_archive(path) as folder:
        found = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
        assert found == {"top", "top/a.csv", "b"}
        assert (folder / "top" / "a.csv").read_bytes() == b"a,b"
    assert not folder.exists()


TEXTS = {f"{kind}/{n}.txt": f"{kind} {n}".encode() for kind in ("café", "bar") for n in range(6)}


def finder(name):
    head, _, last = name.rpartition("/")
    return f"__MACOSX/{head}/._{last}"


@pytest.mark.parametrize("top", ["", "data/", "data/deep/"])
@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_what_finder_packs_is_read_as_the_folder(tmp_path, ending, top):
    files = [
        pair
        for name, content in TEXTS.items()
        for pair in ((top + name, content), (finder(top + name), b"x"))
    ]
    path = pack(tmp_path / f"mac{ending}", [*files, (f"{top}.DS_Store", b"x")])
    dataset = load(str(path))
    assert dataset.classes == ("bar", "café") and sum(
        dataset.info["counts"]["train_by_class"].values()
    )
    assert len(dataset.train) + len(dataset.test) == 12


def test_a_table_that_finder_packed(tmp_path):
    table = "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(20))
    path = pack(tmp_path / "t.zip", [("t.csv", table.encode()), ("__MACOSX/._t.csv", b"x")])
    assert load(str(path)).classes == ("0", "1")


@pytest.mark.parametrize("top", ["", "data\\"])
def test_backslashes_of_windows_lead_inside(tmp_path, top):
    files = [(top + name.replace("/", "\\"), content) for name, content in TEXTS.items()]
    path = pack(tmp_path / "win.zip", [(f"{top}bar\\", b""), *files])
    dataset = load(str(path))
    assert dataset.classes == ("bar", "café") and len(dataset.train) + len(dataset.test) == 12
    (tmp_path / "out").mkdir()
    archives.unzip(path, tmp_path / "out")
    assert not [file for file in (tmp_path / "out").rglob("*") if "\\" in file.name]


@pytest.mark.parametrize(("raw", "name"), [("é".encode(), "é"), ("é".encode("cp437"), "é")])
def test_names_of_a_zip_that_does_not_say_utf8(tmp_path, raw, name):
    path = pack(tmp_path / "a.zip", [("X" * len(raw) + ".txt", b"1")])
    path.write_bytes(path.read_bytes().replace(b"X" * len(raw), raw))
    (tmp_path / "out").mkdir()
    archives.unzip(path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"{name}.txt"]
