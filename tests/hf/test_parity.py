"""Every family against `transformers`, in float32, both directions."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fm.attention import Mask
from fm.errors import UserError
from fm.hf import PretrainedModel, load_pretrained, save_pretrained
from fm.hf.config import family_of
from fm.hf.config_reader import ConfigReader
from fm.model import embeddings
from fm.model.generate import generate
from fm.model.sampling import GREEDY
from fm.model.transformer import forward, init
from tests.hf import helpers_hf as problems
from tests.hf.helpers_hf import CASES, params, same
from tests.model.helpers_kv_cache import cached_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, CONTEXT = 70, 160
OLD = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEW = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": CONTEXT,
}
ROTARY = NEW | {"bos_token_id": 1, "eos_token_id": 2}
GEMMA = ROTARY | {
    "num_key_value_heads": 2,
    "head_dim": 12,
    "sliding_window": 7,
    "query_pre_attn_scalar": 20,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
# Five layers: full, sliding, sliding, full, sliding; within 5 tokens on each side.
MODERN = NEW | {
    **{"num_hidden_layers": 5, "local_attention": 10, "pad_token_id": 0},
    **{"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2},
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", OLD),
    "gpt2, other sizes": ("GPT2LMHeadModel", OLD | {"n_inner": 48, "tie_word_embeddings": False}),
    "llama, grouped": ("LlamaForCausalLM", ROTARY | {"num_key_value_heads": 2}),
    "llama, tied and stretched": (
        "LlamaForCausalLM",
        ROTARY
        | {
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_theta": 500.0,
            "rope_scaling": LLAMA3,
        },
    ),
    "llama, biases and head width": (
        "LlamaForCausalLM",
        ROTARY | {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "smollm2": (
        "LlamaForCausalLM",
        ROTARY
        | {
            "hidden_size": 36,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rope_theta": 100_000.0,
            "rms_norm_eps": 1e-5,
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", ROTARY | {"num_key_value_heads": 2}),
    "qwen2, tied": (
        "Qwen2ForCausalLM",
        ROTARY | {"tie_word_embeddings": True, "rope_theta": 1e6, "num_key_value_heads": 4},
    ),
    "qwen3": ("Qwen3ForCausalLM", ROTARY | {"num_key_value_heads": 2, "head_dim": 10}),
    "qwen3, biases": (
        "Qwen3ForCausalLM",
        ROTARY | {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True},
    ),
    "llama, linear": (
        "LlamaForCausalLM",
        ROTARY | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "llama, dynamic": (
        "LlamaForCausalLM",
        ROTARY | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "llama, yarn": (
        "LlamaForCausalLM",
        ROTARY
        | {
            "num_key_value_heads": 2,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        },
    ),
    "mistral": (
        "MistralForCausalLM",
        ROTARY | {"num_key_value_heads": 2, "sliding_window": 7},
    ),
    "mistral, no window": (
        "MistralForCausalLM",
        ROTARY | {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 12},
    ),
    "qwen2, windows": (
        "Qwen2ForCausalLM",
        ROTARY
        | {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "phi3": ("Phi3ForCausalLM", ROTARY | {"num_key_value_heads": 2, "pad_token_id": 0}),
    "phi3, windows": (
        "Phi3ForCausalLM",
        ROTARY | {"num_key_value_heads": 4, "pad_token_id": 0, "sliding_window": 7},
    ),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma2, no caps": (
        "Gemma2ForCausalLM",
        GEMMA
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        GEMMA
        | {
            "num_hidden_layers": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "bert": ("BertModel", NEW | {"type_vocab_size": 2}),
    "modernbert": ("ModernBertModel", MODERN),
    "modernbert, biases": (
        "ModernBertModel",
        MODERN
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "num_hidden_layers": 3,
        },
    ),
}
ENCODERS = ("bert", "modernbert")
DECODERS = [name for name in MODELS if not name.startswith(ENCODERS)]


def model_of(name):
    """A random model of `transformers`."""
    architecture, settings = MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, architecture)
    return randomised(built(built.config_class(**settings)).eval())


def randomised(model):
    """Every vector too: zeros and ones hide mistakes."""
    # Gemma adds 1 to the weight of a norm.
    scale = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(scale * ("norm" in name.lower() and "bias" not in name), 0.2)
            else:
                weight.normal_(0.0, 0.2)
    return model


def inputs_of(B, L, padding):
    """Token ids and a mask with a few pieces missing, on one side or the other."""
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(0, VOCAB, (B, L))
    lengths_B1 = rng.integers(L // 2, L, (B, 1))
    lengths_B1[0] = L
    places = np.arange(L) if padding == "right" else np.arange(L)[::-1]
    filled_BL = places < lengths_B1 if padding else np.ones((B, L), bool)
    types_BL = (np.arange(L) > L // 3).astype(np.int64) * np.ones((B, 1), np.int64)
    return tokens_BL, filled_BL, types_BL


def theirs(model, tokens_BL, filled_BL, types_BL):
    """Logits, or an encoder's last hidden states."""
    given = {"input_ids": torch.tensor(tokens_BL), "attention_mask": torch.tensor(filled_BL).long()}
    if model.config.model_type == "bert":
        given["token_type_ids"] = torch.tensor(types_BL)
    elif model.config.model_type not in ENCODERS:
        positions_BL = np.maximum(np.cumsum(filled_BL, axis=1) - 1, 0)
        given["position_ids"] = torch.tensor(positions_BL)
    with torch.no_grad():
        out = model(**given)
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


@functools.partial(jax.jit, static_argnames=("config", "causal"))
def run(params, inputs, segments_BL, config, causal):
    mask = Mask(causal=causal, q_segments=segments_BL, kv_segments=segments_BL)
    final_BLD = forward(params, inputs, config, mask=mask)["final"]
    return embeddings.token_logits(params["streams"], final_BLD, config) if causal else final_BLD


def ours(pretrained, tokens_BL, filled_BL, types_BL):
    """The same of `fm`; padding is a segment of its own."""
    positions_BL = np.maximum(np.cumsum(filled_BL, axis=1) - 1, 0)
    if not pretrained.causal:  # `transformers` counts an encoder's padding too
        positions_BL = np.tile(np.arange(tokens_BL.shape[1]), (len(tokens_BL), 1))
    inputs = {"tokens": tokens_BL, "positions": positions_BL, "types": types_BL}
    inputs = {name: value.astype(np.int32) for name, value in inputs.items()}
    segments_BL = filled_BL.astype(np.int32)
    out = run(pretrained.params, inputs, segments_BL, pretrained.config, pretrained.causal)
    return np.asarray(out, np.float32)


def agree(pretrained, model, B=3, L=24, padding="", atol=1e-4):
    inputs = inputs_of(B, L, padding)
    want, got = theirs(model, *inputs), ours(pretrained, *inputs)
    assert np.std(want) > 0.1
    shown = inputs[1]
    np.testing.assert_allclose(got[shown], want[shown], rtol=0, atol=atol)


def saved(model, folder, **options):
    model.save_pretrained(folder, safe_serialization=True, **options)
    return folder


@pytest.mark.parametrize("name", MODELS)
class TestEveryFamily:
    def test_what_transformers_saves_is_read(self, name, tmp_path):
        model = model_of(name)
        pretrained = load_pretrained(saved(model, tmp_path / "theirs"))
        agree(pretrained, model)
        for padding in ("right", "left"):
            agree(pretrained, model, padding=padding)
        agree(pretrained, model, B=1, L=CONTEXT)
        assert pretrained.unused_tensors == ()

    def test_what_fm_writes_transformers_loads(self, name, tmp_path):
        save_pretrained(
            tmp_path / "ours", load_pretrained(saved(model_of(name), tmp_path / "theirs"))
        )
        built = getattr(transformers, MODELS[name][0])
        model, report = built.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        assert not report["mismatched_keys"] and model.dtype == torch.float32
        agree(load_pretrained(tmp_path / "ours"), model.eval())


@pytest.mark.parametrize("name", DECODERS)
class TestTheCache:
    @pytest.mark.parametrize("prompts", [(24, 5, 17), (CONTEXT - 6,)], ids=["ragged", "long"])
    def test_its_logits_are_those_of_whole_rows_there(self, name, prompts, tmp_path):
        model = model_of(name)
        pretrained = load_pretrained(saved(model, tmp_path / "theirs"))
        rng = np.random.default_rng(1)
        rows = [rng.integers(0, VOCAB, length + 6) for length in prompts]
        got = cached_logits(pretrained.params, rows, prompts, pretrained.config)
        for row, length, found in zip(rows, prompts, got, strict=True):
            whole = theirs(model, row[None], np.ones((1, len(row)), bool), None)[0]
            assert found.shape == (7, VOCAB) and np.std(whole) > 0.1
            np.testing.assert_allclose(found, whole[length - 1 :], rtol=0, atol=1e-4)

    def test_greedy_texts_are_those_of_generate_there(self, name, tmp_path):
        """Padded on the right here and on the left there, each with a cache of its own."""
        model = model_of(name)
        pretrained = load_pretrained(saved(model, tmp_path / "theirs"))
        tokens_BL, filled_BL, _ = inputs_of(4, 24, "left")
        prompts = [row[shown] for row, shown in zip(tokens_BL, filled_BL, strict=True)]
        assert len({len(prompt) for prompt in prompts}) > 2
        model.generation_config.eos_token_id = None
        wanted = model.generate(
            torch.tensor(tokens_BL),
            attention_mask=torch.tensor(filled_BL).long(),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
        got = generate(
            pretrained.params, prompts, pretrained.config, sampling_config=GREEDY, max_new_tokens=20
        )
        np.testing.assert_array_equal(np.stack(got), wanted[:, 24:].numpy())


@pytest.mark.parametrize("name", CASES)
def test_models_of_fms_own_are_loaded(name, tmp_path):
    """Parameters drawn here, not there: nothing is right because it came from `transformers`."""
    family, config = CASES[name]
    save_pretrained(tmp_path / "m", PretrainedModel(config, params(config), problems.tokenizer()))
    auto = transformers.AutoModel if family in ENCODERS else transformers.AutoModelForCausalLM
    built = transformers.BertModel if family == "bert" else auto
    options = {} if family != "bert" else {"add_pooling_layer": config.arch.pooler}
    model, report = built.from_pretrained(tmp_path / "m", output_loading_info=True, **options)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(0, config.vocab_size, (2, 20))
    inputs = tokens_BL, np.ones((2, 20), bool), np.zeros((2, 20), np.int64)
    got = ours(PretrainedModel(config, params(config), family=family), *inputs)
    np.testing.assert_allclose(got, theirs(model.eval(), *inputs), rtol=0, atol=1e-4)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")
    assert tokenizer("w3 w1 w29")["input_ids"] == [3, 1, 29]


def test_a_berts_pooler_is_transformers(tmp_path):
    model = model_of("bert")
    pretrained = load_pretrained(saved(model, tmp_path / "theirs"))
    tokens_BL, filled_BL, types_BL = inputs_of(2, 9, "")
    with torch.no_grad():
        out = model(torch.tensor(tokens_BL), token_type_ids=torch.tensor(types_BL))
    final_BLD = jnp.asarray(ours(pretrained, tokens_BL, filled_BL, types_BL))
    got = embeddings.pooled_output(pretrained.params["streams"], final_BLD)
    np.testing.assert_allclose(got, out.pooler_output.numpy(), rtol=0, atol=1e-4)


def test_a_bert_with_heads_says_what_it_left(tmp_path):
    config = transformers.BertConfig(**MODELS["bert"][1])
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    pretrained = load_pretrained(saved(model, tmp_path / "theirs"))
    assert pretrained.unused_tensors and all(
        n.startswith("cls.") for n in pretrained.unused_tensors
    )
    inputs = inputs_of(2, 9, "")
    want = theirs(model.bert, *inputs)
    np.testing.assert_allclose(ours(pretrained, *inputs), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped", "bert"])
def test_shards(name, tmp_path):
    model = model_of(name)
    saved(model, tmp_path / "whole")
    saved(model, tmp_path / "parts", max_shard_size="20KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    same(load_pretrained(tmp_path / "parts").params, load_pretrained(tmp_path / "whole").params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama, tied and stretched", "qwen3", "bert", "modernbert"]
)
def test_half_precision_files(name, dtype, tmp_path):
    built = getattr(transformers, MODELS[name][0])
    pretrained = load_pretrained(
        saved(model_of(name).to(getattr(torch, dtype)), tmp_path / "theirs")
    )
    # Loaded anew: a model that was half once keeps rounded rotary frequencies.
    model = built.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    agree(pretrained, model, padding="right")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pretrained.params)} == {"float32"}
    low = load_pretrained(tmp_path / "theirs", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(low.params)} == {"bfloat16"}
    save_pretrained(tmp_path / "ours", low)
    again = built.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    again = built.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    in32 = dataclasses.replace(low, config=dataclasses.replace(low.config, dtype="float32"))
    agree(in32, again)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("GPT2LMHeadModel", OLD),
        ("LlamaForCausalLM", ROTARY),
        ("Qwen2ForCausalLM", ROTARY | {"num_key_value_heads": 4}),
        ("Qwen3ForCausalLM", ROTARY | {"num_key_value_heads": 4, "head_dim": 8}),
        ("BertModel", NEW),
        ("MistralForCausalLM", ROTARY | {"num_attention_heads": 8}),
        ("Phi3ForCausalLM", ROTARY | {"pad_token_id": 0}),
        ("Gemma2ForCausalLM", ROTARY),
        (  # as in the text_config of the model of 4 B parameters
            "Gemma3ForCausalLM",
            {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 7},
        ),
        ("ModernBertModel", NEW | {"pad_token_id": 0}),
    ],
)
def test_a_setting_not_given_is_what_transformers_takes(architecture, sizes, tmp_path):
    """Read from a config.json of sizes alone, where `transformers` writes everything out."""
    built = getattr(transformers, architecture)
    model = randomised(built(built.config_class(**sizes)))
    saved(model, tmp_path / "m")
    whole = load_pretrained(tmp_path / "m")
    kind = {"model_type": built.config_class.model_type}
    (tmp_path / "m" / "config.json").write_text(json.dumps(sizes | kind))
    assert load_pretrained(tmp_path / "m").config == whole.config


@pytest.mark.parametrize(
    "architecture",
    [
        *("MistralForCausalLM", "Phi3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
        "ModernBertModel",
    ],
)
def test_a_published_size_has_the_parameters_it_has_there(architecture):
    """The default config of each family is that of a published size; no memory is taken."""
    built = getattr(transformers, architecture)
    with torch.device("meta"):
        model = built(built.config_class())
    wanted = sum(parameter.numel() for parameter in model.parameters())
    values = json.loads(model.config.to_json_string(use_diff=False))
    config = family_of(values).to_model_config(ConfigReader(values), ())
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    # Neither the mask embedding nor a norm that is not read is there.
    unread = config.d_model * (1 + (not config.arch.first_attention_norm))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) - unread == wanted
    assert wanted > 1e8


GEMMA3_ON_THE_HUB = {
    "model_type": "gemma3_text",
    **{"vocab_size": 70, "hidden_size": 32, "num_hidden_layers": 7, "intermediate_size": 56},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
    **{"max_position_embeddings": 160, "query_pre_attn_scalar": 8, "sliding_window": 7},
    **{"sliding_window_pattern": 3, "rope_theta": 1e5, "rope_local_base_freq": 500.0},
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
MODERNBERT_ON_THE_HUB = MODERN | {
    "model_type": "modernbert",
    **{"global_attn_every_n_layers": 2, "global_rope_theta": 5e4, "local_rope_theta": 200.0},
}


@pytest.mark.parametrize("values", [GEMMA3_ON_THE_HUB, MODERNBERT_ON_THE_HUB])
def test_config_keys_of_before_transformers_5(values, tmp_path):
    """Published folders have those; `transformers` 5 writes `rope_parameters` and `layer_types`."""
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM if "head_dim" in values else transformers.AutoModel
    model = randomised(auto.from_config(config).eval())
    saved(model, tmp_path / "m")
    now = load_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    before = load_pretrained(tmp_path / "m")
    assert before.config == now.config and len(set(before.config.layer_kinds)) == 2
    agree(before, model)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        (
            "llama, grouped",
            {"rope_parameters": {"rope_type": "longrope"}},
            "'longrope'.*dynamic, llama3",
        ),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention'.*sliding"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3"),
        ("phi3", {"rope_parameters": {"type": "longrope"}}, "'longrope' is not supported"),
        ("phi3", {"partial_rotary_factor": 0.4}, "partial_rotary_factor=0.4 is not supported"),
        ("gemma2", {"sliding_window": None}, "needs a sliding_window"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("modernbert", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of modernbert"),
        ("gemma2", {"model_type": "gemma3", "text_config": 3}, "text_config=3 must be an object"),
    ],
)
def test_what_is_not_supported_is_one_line(name, change, named, tmp_path):
    saved(model_of(name), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=named) as caught:
        load_pretrained(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("renamed", [False, True])
def test_the_text_model_of_gemma_3_with_images_is_read(renamed, tmp_path):
    """Files name its tensors `language_model.model.…` or `model.language_model.…`."""
    text = transformers.Gemma3TextConfig(**MODELS["gemma3"][1])
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=69
    )
    torch.manual_seed(0)
    model = randomised(transformers.Gemma3ForConditionalGeneration(config).eval())
    folder = saved(model, tmp_path / "m")
    if renamed:
        tensors = load_file(folder / "model.safetensors")
        tensors = {
            re.sub("^(language_model.model|vision_tower)", r"model.\1", name).replace(
                "language_model.model.", "language_model."
            ): value
            for name, value in tensors.items()
        }
        assert "model.language_model.norm.weight" in tensors
        assert any(name.startswith("model.vision_tower.") for name in tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained = load_pretrained(folder)
    assert pretrained.family == "gemma3_text"
    assert any("vision_tower" in name for name in pretrained.unused_tensors)
    inputs = inputs_of(2, 24, "")
    tokens_BL = inputs[0] % 60  # no token of images
    want = theirs(model, tokens_BL, *inputs[1:])
    np.testing.assert_allclose(ours(pretrained, tokens_BL, *inputs[1:]), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral", "modernbert"])
def test_gradients_are_finite(name, tmp_path):
    pretrained = load_pretrained(saved(model_of(name), tmp_path / "m"))
    tokens_BL, filled_BL, _ = inputs_of(2, 24, "right")
    positions_BL = np.tile(np.arange(24, dtype=np.int32), (2, 1))
    inputs = {"tokens": tokens_BL.astype(np.int32), "positions": positions_BL}
    segments_BL = filled_BL.astype(np.int32)

    def loss(params):
        out = run(params, inputs, segments_BL, pretrained.config, pretrained.causal)
        return jnp.mean(jnp.where(filled_BL[..., None], out, 0.0) ** 2)

    gradients = jax.jit(jax.grad(loss))(pretrained.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    read = {name for name in gradients["layers"] if np.any(gradients["layers"][name])}
    assert read == set(gradients["layers"])
