import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fm.errors import UserError
from fm.hf.tokenizer import HFTokenizer, check_vocab_size, read_tokenizer
from tests.hf import helpers_gguf as made

TEXT = "the cat in 2024, naïve 😀"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sep", "[", "]"]


def word_piece():
    """A small BERT tokenizer whose tokenizer.json cuts and pads at 4, as MiniLM's does at 128."""
    vocab = {word: number for number, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", "[SEP]"], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.add_special_tokens(WORDS[:5])
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    return inner


@pytest.fixture
def imported():
    return HFTokenizer(made.byte_bpe(), bos=1, eos=0)


def test_a_text_comes_back(imported):
    (ids,) = imported.encode([TEXT])
    assert ids.dtype == np.int32 and not {0, 1} & set(ids.tolist())
    assert imported.decode(ids) == TEXT
    assert imported.decode([1, *ids, 0]) == TEXT
    assert imported.encode([]) == [] and imported.encode([""])[0].shape == (0,)


def test_many_texts_keep_their_order(imported):
    texts = [f"the cat {n}" for n in range(2500)]
    assert [imported.decode(ids) for ids in imported.encode(texts)] == texts


def test_spelled_specials_are_text_unless_asked(imported):
    spelled = "<|start|>the<|end|>"
    (literal,) = imported.encode([spelled])
    (parsed,) = imported.encode([spelled], parse_specials=True)
    assert not {0, 1} & set(literal.tolist()) and imported.decode(literal) == spelled
    assert parsed[0] == 1 and parsed[-1] == 0 and imported.decode(parsed) == "the"
    (again,) = imported.encode([spelled])
    np.testing.assert_array_equal(again, literal)


def test_byte_level_tokens_joined_are_the_text(imported):
    text = TEXT + "<think> 字"
    (ids,) = imported.encode([text])
    assert b"".join(imported.token_bytes(ids)) == text.encode()
    assert imported.token_bytes([1, ids[0], 0, 10**6]) == [
        b"",
        imported.token_bytes(ids)[0],
        b"",
        b"",
    ]


def test_word_pieces_are_spelled_with_a_space_between_words():
    read = HFTokenizer(word_piece())
    (ids,) = read.encode_with_specials(["the cats cat"])
    assert read.token_bytes(ids) == [b"", b"the", b" cat", b"s", b" cat", b""]


def test_sentence_pieces_are_spelled():
    vocab = {"\u2581the": 0, "<0xC3>": 1, "<0xAF>": 2, "s": 3}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    assert HFTokenizer(inner).token_bytes([0, 1, 2, 3]) == [b" the", b"\xc3", b"\xaf", b"s"]


def test_cutting_and_padding_are_off():
    read = HFTokenizer(word_piece(), pad=0)
    long, short = read.encode(["the cats " * 50, "cat"])
    assert len(long) == 150 and short.tolist() == [6]
    with_ends = read.encode_with_specials(["the cats " * 50, "cat"])
    assert len(with_ends[0]) == 152 and with_ends[1].tolist() == [2, 6, 3]


def test_encoders_get_their_ends_and_no_more():
    read = HFTokenizer(word_piece())
    (ids,) = read.encode_with_specials(["the [SEP] cat"])
    assert ids.tolist() == [2, 5, 9, 8, 10, 6, 3]
    assert read.decode(ids) == "the [ sep ] cat"


def test_bytes_per_token_and_size(imported):
    (ids,) = imported.encode([TEXT])
    assert imported.bytes_per_token([TEXT]) == len(TEXT.encode()) / len(ids)
    assert imported.vocab_size == made.byte_bpe().get_vocab_size(with_added_tokens=True)
    assert HFTokenizer(word_piece()).vocab_size == len(WORDS)


def test_a_saved_folder_is_read_with_its_ids(tmp_path, imported):
    imported.save_folder(tmp_path)
    read = read_tokenizer(tmp_path)
    assert (read.pad, read.bos, read.eos, read.mask) == (None, 1, 0, None)
    np.testing.assert_array_equal(read.encode([TEXT])[0], imported.encode([TEXT])[0])
    imported.save(tmp_path / "other.json")
    assert read_tokenizer(tmp_path / "other.json").bos == 1


def test_ids_come_from_the_files_beside_it(tmp_path):
    word_piece().save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).mask is None
    named = {"mask_token": {"content": "[MASK]"}, "pad_token": "[PAD]", "eos_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text('{"bos_token_id": 2, "eos_token_id": [3, 4]}')
    read = read_tokenizer(tmp_path / "tokenizer.json")
    assert (read.pad, read.bos, read.eos, read.mask) == (0, 2, None, 4)


def folder_of(path, inner=None, **files):
    """A folder of a byte-level BPE's tokenizer.json and JSON files by their names."""
    (inner or made.byte_bpe()).save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def with_bos():
    inner = made.byte_bpe()
    inner.post_processor = processors.TemplateProcessing(
        single=["<|start|>", "$A"], special_tokens=[("<|start|>", 1)]
    )
    return inner


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("says", [None, False, True])
def test_tokenizer_json_decides_what_is_added_and_a_contradiction_is_told(
    tmp_path, capsys, adds, says
):
    config = {"bos_token": "<|start|>"} | ({} if says is None else {"add_bos_token": says})
    folder = folder_of(tmp_path, with_bos() if adds else None, tokenizer_config=config)
    (ids,) = read_tokenizer(folder).encode_with_specials(["the"])
    assert bool(ids[0] == 1) is adds
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (says is not None and says != adds)
    if lines:
        assert f"add_bos_token={str(says).lower()}, but tokenizer.json" in lines[0]


def test_a_prompt_that_begins_with_bos_gets_no_second_one():
    read = HFTokenizer(with_bos(), bos=1, eos=0)
    texts = ["<|start|>the<|end|>", "the", ""]
    got = read.encode_with_specials(texts, parse_specials=True)
    the = read.encode(["the"])[0].tolist()
    assert [ids.tolist() for ids in got] == [[1, *the, 0], [1, *the], [1]]
    (literal,) = read.encode_with_specials(texts[:1])
    assert literal.tolist().count(1) == 1 and 0 not in literal
    assert read.spelled_specials(texts[0]) == ["<|end|>", "<|start|>"]
    assert read.spelled_specials("<think> <|star|>") == []


SIZE = made.byte_bpe().get_vocab_size()
ADDING = {
    "tokenizer_config": {"added_tokens_decoder": {str(SIZE): {"content": "<x>", "special": True}}},
    "added_tokens": {"<x>": SIZE},
    "special_tokens_map": {"additional_special_tokens": ["cat", {"content": "mat"}]},
}


@pytest.mark.parametrize("file", ADDING)
def test_tokens_that_another_file_adds_or_calls_special(tmp_path, file):
    read = read_tokenizer(folder_of(tmp_path, **{file: ADDING[file]}))
    if file == "special_tokens_map":
        assert read.spelled_specials("the cat") == ["cat"]
        (ids,) = read.encode(["the cat mat"], parse_specials=True)
        assert "cat" not in read.decode(ids) and "mat" not in read.decode(ids)
        return
    (ids,) = read.encode(["the<x>"], parse_specials=True)
    assert ids[-1] == SIZE and read.vocab_size == SIZE + 1
    assert read.decode(ids) == ("the" if file == "tokenizer_config" else "the<x>")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("added_tokens", {"<x>": SIZE + 3}, "'<x>' has the id"),
        ("added_tokens", {"<|end|>": 5}, r"'<\|end\|>' has the id 5, 0 in the tokenizer"),
        ("added_tokens", {"<x>": "5"}, "'<x>' has the id '5'"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"x": "<x>"}},
            "added_tokens_decoder has 'x'",
        ),
        ("tokenizer_config", {"added_tokens_decoder": {"7": 3}}, "added_tokens_decoder has '7'"),
    ],
)
def test_tokens_that_contradict_tokenizer_json_are_one_line(tmp_path, file, content, reason):
    folder = folder_of(tmp_path, **{file: content})
    with pytest.raises(UserError, match=reason) as raised:
        read_tokenizer(folder)
    assert f"{file}.json" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "Other"}}', "[]"])
def test_what_is_no_tokenizer_is_one_line(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a tokenizer") as raised:
        read_tokenizer(tmp_path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_or_malformed_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read tokenizer .*tokenizer\.json: No such file"):
        read_tokenizer(tmp_path)
    word_piece().save(str(tmp_path / "tokenizer.json"))
    for content, reason in (("{", "is not JSON"), ("[1]", "does not hold a JSON object")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=rf"tokenizer_config\.json {reason}"):
            read_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_named():
    read = HFTokenizer(word_piece())
    check_vocab_size(read, len(WORDS))
    check_vocab_size(read, len(WORDS) + 50)
    with pytest.raises(UserError, match=r"has 11 ids, the model's vocabulary 10$"):
        check_vocab_size(read, len(WORDS) - 1)
