import pytest
from tokenizers import Regex, pre_tokenizers

from fm.errors import UserError
from fm.hf.gguf import PRE_TOKENIZERS, build_tokenizer

from . import made

DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
TEXTS = [
    *made.TEXT,
    "",
    "  the   cat  2024\n\n  mat\t\t12",
    "x = {'a': 1}  # naïve",
    "½ ² ٣٤ e\u0301 \u00a0\u3000 字😀",
    "<think> the cat</think>",
]


@pytest.mark.parametrize(("pre", "cut"), [("gpt-2", None), ("smollm", DIGITS)])
def test_it_is_the_tokenizer_the_file_was_made_from(pre, cut):
    original = made.byte_bpe(cut)
    rebuilt = build_tokenizer(made.tokenizer_metadata(original, pre))
    for text in TEXTS:
        assert rebuilt.encode(text).ids == original.encode(text).ids
        assert rebuilt.decode(rebuilt.encode(text).ids) == text
    assert rebuilt.get_vocab() == original.get_vocab()


def words(tokenizer, text):
    """How a text is cut before merging, as text."""
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("gpt-2", ["It", "'s", " 2024", ",", " ", " '", "S", "\n", "\n", "x"]),
        ("smollm", ["It", "'s", " ", "2", "0", "2", "4", ",", " ", " '", "S", "\n", "\n", "x"]),
        ("llama-bpe", ["It", "'s", " ", "202", "4", ",", " ", " '", "S", "\n\n", "x"]),
        ("qwen2", ["It", "'s", " ", "2", "0", "2", "4", ",", " ", " '", "S", "\n\n", "x"]),
    ],
)
def test_how_each_cuts_a_text(pre, wanted):
    text = "It's 2024,  'S\n\nx"
    assert words(build_tokenizer(made.tokenizer_metadata(made.byte_bpe(), pre)), text) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_transformers_cuts_alike(pre):
    theirs = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    pattern = Regex(theirs.GGUF_PRE_TOKENIZER_SPLITS[pre])
    other = pre_tokenizers.Split(pattern, "isolated")
    mine = build_tokenizer(made.tokenizer_metadata(made.byte_bpe(), pre))
    for text in (*TEXTS, "It's I'M  12345 ---\r\n\r\n x\u00a0y"):
        cut = [text[start:end] for _, (start, end) in other.pre_tokenize_str(text)]
        assert words(mine, text) == cut


def test_control_tokens_are_special_and_user_defined_are_text():
    rebuilt = build_tokenizer(made.tokenizer_metadata(made.byte_bpe()))
    ids = rebuilt.encode("<|start|>the<think><|end|>").ids
    assert ids[0] == 1 and ids[-1] == 0 and ids[-2] == rebuilt.token_to_id("<think>")
    assert rebuilt.decode(ids, skip_special_tokens=True) == "the<think>"


@pytest.mark.parametrize(("add", "ends"), [("bos", (1, None)), ("eos", (None, 0))])
def test_ends_are_put_only_where_the_file_says(add, ends):
    metadata = made.tokenizer_metadata(made.byte_bpe())
    plain = build_tokenizer(metadata).encode("the").ids
    assert build_tokenizer(metadata).encode("the", add_special_tokens=True).ids == plain
    asked = build_tokenizer(metadata | {f"tokenizer.ggml.add_{add}_token": True})
    wanted = [*([1] if ends[0] else []), *plain, *([0] if ends[1] == 0 else [])]
    assert asked.encode("the", add_special_tokens=True).ids == wanted
    assert asked.encode("the", add_special_tokens=False).ids == plain


def test_words_of_llama_3_are_taken_whole_where_merges_do_not_lead():
    metadata = made.tokenizer_metadata(made.byte_bpe(), "llama-bpe")
    tokens = [*metadata["tokenizer.ggml.tokens"], "zq"]
    kinds = [*metadata["tokenizer.ggml.token_type"], 1]
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    assert build_tokenizer(metadata | more).encode("zq").ids == [len(tokens) - 1]
    assert (
        len(build_tokenizer(metadata | more | {"tokenizer.ggml.pre": "gpt-2"}).encode("zq").ids)
        == 2
    )


def test_qwen_composes_characters():
    rebuilt = build_tokenizer(made.tokenizer_metadata(made.byte_bpe(), "qwen2"))
    assert rebuilt.encode("e\u0301").ids == rebuilt.encode("\u00e9").ids


def test_gpt2_needs_no_name_of_a_pre_tokenizer_others_do():
    metadata = made.tokenizer_metadata(made.byte_bpe())
    del metadata["tokenizer.ggml.pre"]
    assert build_tokenizer(metadata | {"general.architecture": "gpt2"}).encode(" 2024").ids
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre is None"):
        build_tokenizer(metadata | {"general.architecture": "llama"})


def test_unknown_kinds_list_the_known():
    metadata = made.tokenizer_metadata(made.byte_bpe())
    with pytest.raises(UserError, match=r"model is 'llama'; known: 'gpt2'"):
        build_tokenizer(metadata | {"tokenizer.ggml.model": "llama"})
    with pytest.raises(UserError, match=r"pre is 'tekken'; known: gpt-2,") as raised:
        build_tokenizer(metadata | {"tokenizer.ggml.pre": "tekken"})
    assert all(name in str(raised.value) for name in PRE_TOKENIZERS)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("tokens", None, "no list of texts tokenizer.ggml.tokens"),
        ("tokens", [], "no list of texts tokenizer.ggml.tokens"),
        ("tokens", ["a", "a"], "a token twice"),
        ("merges", None, "no list of texts tokenizer.ggml.merges"),
        ("merges", ["the"], "'the', no pair of tokens"),
        ("merges", ["the \u4e00"], "no pair of tokens"),
        ("token_type", [1, 2], "does not give a type"),
        ("token_type", 3, "does not give a type"),
        ("token_type", ["x"] * 304, "does not give a type"),
        ("pre", ["a"], r"pre is \['a'\]"),
        ("bos_token_id", "x", "bos_token_id is 'x'"),
        ("bos_token_id", 10**6, "not one of the"),
    ],
)
def test_malformed_metadata_is_one_line(key, value, reason):
    metadata = made.tokenizer_metadata(made.byte_bpe()) | {"tokenizer.ggml.add_bos_token": True}
    with pytest.raises(UserError, match=reason) as raised:
        build_tokenizer(metadata | {f"tokenizer.ggml.{key}": value})
    assert "\n" not in str(raised.value)
