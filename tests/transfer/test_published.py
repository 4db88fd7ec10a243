import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.transfer import published
from fm.transfer.pretrained import write
from fm.transfer.pretrained.named import NAMED
from tests.transfer.pretrained.made import llama_file
from tests.transfer.pretrained.problems import pretrained, same


def test_a_folder_is_found(tmp_path):
    made = pretrained("llama", specials={"eos_token_id": [2, 3]})
    write(tmp_path / "m", made)
    found = published.find(str(tmp_path / "m"))
    same(found.params, made.params)
    assert found.causal and found.ends == (2, 3)
    assert (found.source, found.licence) == ("a file of your own", "not known")
    assert found.tokenizer.decode(found.encode(["w3 w1"], 8)[0]) == "w3 w1"


@pytest.mark.parametrize(("special", "ends"), [({}, ()), ({"eos_token_id": 4}, (4,))])
def test_what_ends_a_text(tmp_path, special, ends):
    write(tmp_path / "m", pretrained("gpt2", specials=special))
    assert published.find(str(tmp_path / "m")).ends == ends


def test_a_gguf_file_is_found(tmp_path):
    found = published.find(str(llama_file(tmp_path / "a.gguf")))
    assert found.causal and found.ends == (0,) and found.tokenizer.eos == 0


def test_a_bert_sees_both_ways(tmp_path):
    write(tmp_path / "m", pretrained("bert"))
    assert not published.find(str(tmp_path / "m")).causal


def test_a_name_brings_its_source_and_licence(tmp_path, monkeypatch):
    write(tmp_path / "m", pretrained("bert"))
    monkeypatch.setattr(published, "fetch_named", lambda name: tmp_path / "m")
    found = published.find("minilm-l6")
    known = NAMED["minilm-l6"]
    assert (found.source, found.licence) == (known.source, known.licence)


def test_the_digest_is_of_the_numbers(tmp_path):
    for name in ("one", "two"):
        made = pretrained("llama")
        if name == "two":
            made.params["layers"]["up"] = made.params["layers"]["up"].at[0, 0, 0].add(1e-3)
        write(tmp_path / name, made)
    one, two = (published.find(str(tmp_path / name)) for name in ("one", "two"))
    assert one.digest() == published.find(str(tmp_path / "one")).digest() != two.digest()


def test_a_long_text_keeps_both_its_ends(tmp_path):
    write(tmp_path / "m", pretrained("llama"))
    found = published.find(str(tmp_path / "m"))
    long = " ".join(f"w{n}" for n in range(1, 21))
    kept, short, empty = found.encode([long, "w7 w8", ""], 7)
    assert len(kept) <= 7 and kept[0] == 1 and kept[-1] == 20
    assert short.tolist() == [7, 8] and empty.tolist() == [0]
    with pytest.raises(UserError, match="2 tokens leave no room"):
        found.encode(["w1"], 2)
    assert kept.dtype == np.int32


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
        published.find(str(tmp_path / name))


def test_without_a_tokenizer(tmp_path):
    write(tmp_path / "m", dataclasses.replace(pretrained("llama"), tokenizer=None))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        published.find(str(tmp_path / "m"))
