import gguf
import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from fm.errors import UserError
from fm.hf.gguf import PRE_TOKENIZERS, build_tokenizer, end_token_ids, read_gguf
from tests.hf import helpers_gguf as made


def gguf_of(tmp_path, architecture, **changed):
    """A written file of one architecture and the tensors that went into it."""
    metadata, tensors = made.gpt2() if architecture == "gpt2" else made.llama_like(architecture)
    metadata |= made.tokenizer_metadata(made.byte_bpe()) | changed
    return made.write(tmp_path / "a.gguf", architecture, metadata, tensors), tensors


def rotated(x_LC, interleaved):
    """Rotary positions as llama.cpp turns neighbours, or as `transformers` turns halves."""
    length, width = x_LC.shape
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    one, two = (
        (x_LC[:, 0::2], x_LC[:, 1::2])
        if interleaved
        else (x_LC[:, : width // 2], x_LC[:, width // 2 :])
    )
    turned = one * np.cos(angle) - two * np.sin(angle), one * np.sin(angle) + two * np.cos(angle)
    return np.concatenate(turned, axis=1)


def test_llama_scores_are_those_of_interleaved_rotary(tmp_path):
    path, stored = gguf_of(tmp_path, "llama")
    _, read, _ = read_gguf(path)
    x_LD = np.random.default_rng(3).normal(size=(6, made.WIDTH))
    for n in range(made.LAYERS):
        for h in range(made.HEADS):
            k = h // (made.HEADS // made.KV_HEADS)
            scores = []
            for tensors, names, interleaved in (
                (stored, (f"blk.{n}.attn_q", f"blk.{n}.attn_k"), True),
                (read, (f"model.layers.{n}.self_attn.{p}_proj" for p in "qk"), False),
            ):
                q, key = (
                    rotated(
                        x_LD @ tensors[f"{name}.weight"][i * made.HEAD : (i + 1) * made.HEAD].T,
                        interleaved,
                    )
                    for name, i in zip(names, (h, k), strict=True)
                )
                scores.append(q @ key.T)
            np.testing.assert_allclose(*scores, rtol=1e-6, atol=1e-6)


def test_llama_queries_and_keys_are_turned_back(tmp_path):
    metadata, wanted = made.llama_like()
    stored = dict(wanted)
    for n in range(made.LAYERS):
        for name, heads in (("attn_q", made.HEADS), ("attn_k", made.KV_HEADS)):
            key = f"blk.{n}.{name}.weight"
            stored[key] = made.permuted(wanted[key], heads)
            assert not np.array_equal(stored[key], wanted[key])
    metadata |= made.tokenizer_metadata(made.byte_bpe())
    _, read, _ = read_gguf(made.write(tmp_path / "a.gguf", "llama", metadata, stored))
    for n in range(made.LAYERS):
        for name, there in (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v")):
            found = read[f"model.layers.{n}.self_attn.{there}_proj.weight"]
            np.testing.assert_array_equal(found, wanted[f"blk.{n}.{name}.weight"])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_is_not_permuted(tmp_path, architecture):
    path, stored = gguf_of(tmp_path, architecture)
    config, read, _ = read_gguf(path)
    assert len(read) == len(stored)
    for name in ("q", "k"):
        found = read[f"model.layers.1.self_attn.{name}_proj.weight"]
        np.testing.assert_array_equal(found, stored[f"blk.1.attn_{name}.weight"])
    assert config["model_type"] == architecture and config["head_dim"] == made.HEAD


def test_gpt2_matrices_are_input_first(tmp_path):
    path, stored = gguf_of(tmp_path, "gpt2")
    config, read, _ = read_gguf(path)
    found = read["transformer.h.1.attn.c_attn.weight"]
    np.testing.assert_array_equal(found, stored["blk.1.attn_qkv.weight"].T)
    np.testing.assert_array_equal(read["transformer.wpe.weight"], stored["position_embd.weight"])
    assert config["n_embd"] == made.WIDTH and config["n_positions"] == 16


def test_the_configuration_of_a_llama(tmp_path):
    config, _, tokenizer = read_gguf(made.llama_file(tmp_path / "a.gguf"))
    wanted = {
        "model_type": "llama",
        "vocab_size": 323,
        "hidden_size": made.WIDTH,
        "num_hidden_layers": made.LAYERS,
        "num_attention_heads": made.HEADS,
        "num_key_value_heads": made.KV_HEADS,
        "intermediate_size": made.FORWARD,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    assert {key: config[key] for key in wanted} == wanted
    assert tokenizer.get_vocab_size() <= 323


@pytest.mark.parametrize("same", [True, False])
def test_an_output_matrix_unties_unless_it_is_the_embedding(tmp_path, same):
    metadata, tensors = made.llama_like()
    embedding = tensors["token_embd.weight"]
    tensors["output.weight"] = embedding if same else embedding + 1
    metadata |= made.tokenizer_metadata(made.byte_bpe())
    config, read, _ = read_gguf(made.write(tmp_path / "a.gguf", "llama", metadata, tensors))
    assert config["tie_word_embeddings"] is same
    assert ("lm_head.weight" in read) is not same


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_same(tmp_path, architecture):
    """Tensors bit for bit, and the same configuration builds a model that they fill."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    path, _ = gguf_of(tmp_path, architecture)
    config, read, _ = read_gguf(path)
    with torch.device("meta"):
        described = transformers.AutoConfig.for_model(**config)
        model = transformers.AutoModelForCausalLM.from_config(described)
    loaded = theirs.load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    assert loaded["tensors"].keys() == read.keys()
    for name, value in read.items():
        np.testing.assert_array_equal(value, loaded["tensors"][name].numpy(), err_msg=name)
    left = model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in read.items()}, strict=False, assign=True
    )
    assert not left.unexpected_keys and left.missing_keys in ([], ["lm_head.weight"])
    for key, value in loaded["config"].items():
        same = {"num_hidden_layers", "num_attention_heads", "rope_theta", "tie_word_embeddings"}
        if key in same:
            attribute = described.attribute_map.get(key, key)
            assert config.get(attribute, config.get(key)) == value


def test_missing_keys_are_named(tmp_path):
    for key in ("llama.block_count", "llama.attention.layer_norm_rms_epsilon"):
        path = made.llama_file(tmp_path / "a.gguf", without=[key])
        with pytest.raises(UserError, match=f"no {key}") as raised:
            read_gguf(path)
        assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


BAD = {
    "llama__block_count": ("two", "llama.block_count is not one number but text"),
    "llama__attention__head_count": ([4, 4], "head_count is not one number but ndarray"),
    "llama__embedding_length": (31, "does not fit its tensors"),
    "llama__attention__head_count_kv": (4, r"'blk.0.attn_k.weight' has 16 rows, not 4 x 8"),
    "llama__rope__dimension_count": (4, "only 4 of a head's 8"),
    "llama__expert_count": (8, "llama.expert_count is set"),
    "llama__rope__scaling__factor": (4.0, "rope.scaling.factor is set"),
    "llama__context_length": (0, "llama.context_length is 0, not a count"),
    "llama__rope__freq_base": (float("nan"), "not a positive number"),
    "tokenizer__ggml__eos_token_id": (9999, "9999, not one of the 30"),
}


@pytest.mark.parametrize("key", BAD)
def test_what_does_not_fit_is_one_line(tmp_path, key):
    value, reason = BAD[key]
    path = made.llama_file(tmp_path / "a.gguf", **{key: value})
    with pytest.raises(UserError, match=reason) as raised:
        read_gguf(path)
    assert "\n" not in str(raised.value)


def test_an_unknown_architecture_lists_the_known(tmp_path):
    metadata, tensors = made.llama_like("mamba")
    path = made.write(tmp_path / "a.gguf", "mamba", metadata, tensors)
    with pytest.raises(UserError, match=r"'mamba' is not known; known: gpt2, llama, qwen2, qwen3"):
        read_gguf(path)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "extra", "v.blk.0.attn_q.weight"]
)
def test_a_tensor_without_a_place_is_named(tmp_path, name):
    metadata, tensors = made.llama_like()
    metadata |= made.tokenizer_metadata(made.byte_bpe())
    tensors[name] = np.ones(4, np.float32)
    path = made.write(tmp_path / "a.gguf", "llama", metadata, tensors)
    with pytest.raises(UserError, match=f"'{name}' has no place in a llama"):
        read_gguf(path)


def test_more_tokens_than_rows_is_refused(tmp_path):
    metadata, tensors = made.llama_like(vocab=300)
    metadata |= made.tokenizer_metadata(made.byte_bpe())
    path = made.write(tmp_path / "a.gguf", "llama", metadata, tensors)
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens, its embedding 300 rows"):
        read_gguf(path)


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


@pytest.mark.parametrize("says", [None, True, False])
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_bos_is_added_as_the_file_says_or_by_its_pre_tokenizer(pre, says):
    """llama.cpp's default is true for the pre-tokenizer of Llama 3, false for the others here."""
    metadata = made.tokenizer_metadata(made.byte_bpe(), pre)
    if says is not None:
        metadata["tokenizer.ggml.add_bos_token"] = says
    ids = build_tokenizer(metadata).encode("the").ids
    wanted = pre in ("llama-bpe", "llama3", "llama-v3") if says is None else says
    assert (ids[0] == 1) is wanted and ids.count(1) == int(wanted)


def ends_of(**changed):
    """The ends of a small file; "<|eot_id|>" is token 1, of the type "control"."""
    metadata = made.tokenizer_metadata(made.byte_bpe())
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[0], tokens[1] = "<eos>", changed.pop("second", "<s>")
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return end_token_ids(metadata)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, 0),
        ({"eot_token_id": 5}, [0, 5]),
        ({"eot_token_id": 5, "eom_token_id": 7}, [0, 5, 7]),
        ({"eot_token_id": 0}, 0),
        ({"second": "<|eot_id|>"}, [0, 1]),
        ({"second": "<|im_end|>", "eot_token_id": 1}, [0, 1]),
        ({"eos_token_id": 5, "second": "<|endoftext|>"}, [5, 1]),
    ],
)
def test_all_ends_that_a_file_has_end_a_text(changed, wanted):
    assert ends_of(**changed) == wanted


def test_a_token_spelled_like_an_end_is_one_only_if_it_is_special():
    metadata = made.tokenizer_metadata(made.byte_bpe())
    tokens, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    tokens[9] = "<|eot_id|>"
    assert end_token_ids(metadata) == 0
    kinds[9] = 3
    assert end_token_ids(metadata) == [0, 9]


def sentence_piece_file(folder, **changed):
    """A file whose kind of tokenizer is not known."""
    return made.llama_file(folder / "a.gguf", tokenizer__ggml__model="llama", **changed)


@pytest.mark.parametrize(("says", "begins"), [(None, False), (True, True), (False, False)])
def test_a_tokenizer_beside_the_file_is_read_where_its_own_cannot_be(
    tmp_path, capsys, says, begins
):
    changed = {} if says is None else {"tokenizer__ggml__add_bos_token": says}
    path = sentence_piece_file(tmp_path, **changed)
    made.byte_bpe().save(str(tmp_path / "tokenizer.json"))
    _, _, tokenizer = read_gguf(path)
    wanted = made.byte_bpe().encode("the cat").ids
    assert tokenizer.encode("the cat").ids == [1] * begins + wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "is 'llama'" in line and "tokenizer.json beside it is read" in line


def test_what_is_advised_of_a_tokenizer_is_looked_for(tmp_path):
    path = sentence_piece_file(tmp_path)
    with pytest.raises(UserError, match=r"a tokenizer.json .* beside .* but there is none"):
        read_gguf(path)
    made.byte_bpe(vocab=310).save(str(tmp_path / "tokenizer.json"))
    other = made.byte_bpe()
    other.add_tokens(["more"])
    tokens = made.tokenizer_metadata(other)["tokenizer.ggml.tokens"]
    path = sentence_piece_file(
        tmp_path,
        tokenizer__ggml__tokens=[*tokens[:5], "other", *tokens[6:]],
        tokenizer__ggml__token_type=[1] * len(tokens),
    )
    with pytest.raises(UserError, match="is not of the model beside it: token 5 is") as raised:
        read_gguf(path)
    assert "\n" not in str(raised.value)


def test_the_chat_template_of_a_file(tmp_path):
    assert read_gguf(made.llama_file(tmp_path / "a.gguf"))[0]["chat_template"] is None
    path = made.llama_file(tmp_path / "a.gguf", tokenizer__chat_template="{{ bos_token }}")
    assert read_gguf(path)[0]["chat_template"] == "{{ bos_token }}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, kind, value):
    """Of a quantized tensor it is the scale of a block."""
    metadata, tensors = made.llama_like()
    metadata |= made.tokenizer_metadata(made.byte_bpe())
    name, kind = "blk.1.ffn_up.weight", gguf.GGMLQuantizationType[kind]
    whole = tensors[name]
    if kind == gguf.GGMLQuantizationType.Q8_0:
        stored = gguf.quantize(whole, kind).copy()
        stored[3, :2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    else:
        whole[3, 0] = value
        stored = gguf.quantize(whole, kind)
    path = made.write(
        tmp_path / "a.gguf", "llama", metadata, tensors | {name: stored}, {name: kind}
    )
    with pytest.raises(UserError, match=rf"{name} has \d+ of 2048 numbers .* first at \[3, 0\]"):
        read_gguf(path)


def test_words_of_llama_3_are_taken_whole_where_merges_do_not_lead():
    metadata = made.tokenizer_metadata(made.byte_bpe(), "llama-bpe")
    tokens = [*metadata["tokenizer.ggml.tokens"], "zq"]
    kinds = [*metadata["tokenizer.ggml.token_type"], 1]
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    for pre, count in (("llama-bpe", 1), ("gpt-2", 2)):
        built = build_tokenizer(metadata | more | {"tokenizer.ggml.pre": pre})
        assert len(built.encode("zq", add_special_tokens=False).ids) == count


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
