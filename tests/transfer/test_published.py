import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.transfer import pretrained, published
from tests.transfer.pretrained import problems
from tests.transfer.pretrained.made import llama_file


@pytest.fixture
def folder(tmp_path):
    def write(name="bert"):
        pretrained.write(tmp_path / name, problems.pretrained(name))
        return tmp_path / name

    return write


@pytest.mark.parametrize(("name", "causal"), [("bert", False), ("llama", True), ("gpt2", True)])
def test_a_folder(folder, name, causal):
    path = folder(name)
    found = published.find(str(path))
    assert published.locate(str(path)) == path
    assert found.causal is causal and found.name == str(path)
    assert found.licence == "not known" and found.source == "a file of your own"
    problems.same(found.params["layers"], problems.pretrained(name).params["layers"])
    assert found.digest() == published.find(str(path)).digest()


def test_a_gguf_file(tmp_path):
    path = llama_file(tmp_path / "it.gguf")
    found = published.find(str(path))
    assert found.causal and found.ends == (0,)
    ids = found.encode(["the cat", ""], 16)
    assert ids[0][0] == found.tokenizer.bos and len(ids[1]) == 1


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_long_text_keeps_both_ends(folder, name):
    found = published.find(str(folder(name)))
    text = " ".join(f"w{n}" for n in range(1, 30))
    short, whole, empty = found.encode(["w5 w6 w7", text, ""], 11)
    own = found.tokenizer.encode(["w5 w6 w7", text])
    assert len(whole) == 11 - (found.causal) and len(empty) == 1
    assert np.array_equal(short[-3:], own[0]) and short.dtype == np.int32
    half = len(whole) - len(whole) // 2
    assert np.array_equal(whole[:half], own[1][:half])
    assert np.array_equal(whole[half:], own[1][-(len(whole) // 2) :])
    with pytest.raises(UserError, match="2 tokens leave no room" if found.causal else "1 tokens"):
        found.encode([text], 2 if found.causal else 1)


@pytest.mark.parametrize("count", [0, 5, 6, 7])
def test_ends(count):
    ids = np.arange(9)
    kept = published.ends(ids[:count], 6)
    assert np.array_equal(kept, ids[:count] if count <= 6 else [0, 1, 2, 4, 5, 6])


def test_what_is_no_model(tmp_path, folder):
    for name in ("nonsense", str(tmp_path)):
        assert published.locate(name) is None
        with pytest.raises(UserError, match=f"{name}: neither .* minilm-l6"):
            published.find(name)
    path = folder()
    (path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        published.find(str(path))


def test_a_digest_is_of_the_numbers(folder):
    found = published.find(str(folder()))
    layers = found.params["layers"]
    other = found.params | {"layers": layers | {"up": layers["up"] + 1}}
    assert found.digest() != dataclasses.replace(found, params=other).digest()
