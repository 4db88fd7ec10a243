"""The tables: every leaf has its tensor, every setting that matters is honoured or refused."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.hf import FAMILIES, from_tensors
from fm.hf.config import family_of
from fm.hf.weights import choose_family, to_tensors
from fm.model.transformer import init
from tests.hf.helpers_hf import CASES, STRETCHED, params, same


def folder(name="llama"):
    """config.json and tensors."""
    family, model = CASES[name]
    return choose_family(model, family)[1], to_tensors(FAMILIES[family], model, params(model))


def fails(match, config, tensors):
    with pytest.raises(UserError, match=match) as caught:
        from_tensors(config, tensors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
class TestEveryFamily:
    def test_every_leaf_has_a_tensor_and_is_in_one_only(self, name):
        family, model = CASES[name]
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
        leaves = [(spec.part, leaf) for spec in FAMILIES[family].entries for leaf in spec.leaves]
        assert len(leaves) == len(set(leaves))
        ours = {(part, leaf) for part in shapes for leaf in shapes[part]}
        assert ours - set(leaves) == {("streams", "hidden_piece")}

    def test_the_first_family_that_will_do(self, name):
        assert choose_family(CASES[name][1])[0].name == CASES[name][0]

    def test_a_missing_tensor_is_named(self, name):
        config, tensors = folder(name)
        prefix = FAMILIES[config["model_type"]].prefix
        for gone in tensors.keys() - {"pooler.dense.weight"}:  # without which there is no pooler
            less = {each: value for each, value in tensors.items() if each != gone}
            fails(f"missing from the weights: {gone.removeprefix(prefix)}$", config, less)

    def test_a_tensor_left_over_is_named(self, name):
        config, tensors = folder(name)
        fails(r"left over in the weights: router$", config, tensors | {"router": np.ones(2)})

    def test_a_tensor_of_another_shape_is_named(self, name):
        config, tensors = folder(name)
        for bent in tensors:
            wider = np.concatenate([tensors[bent], tensors[bent]])
            fails(f"{bent} has shape", config, tensors | {bent: wider})

    def test_names_without_the_prefix_are_known(self, name):
        config, tensors = folder(name)
        prefix = FAMILIES[CASES[name][0]].prefix
        bare = {each.removeprefix(prefix): value for each, value in tensors.items()}
        led = {prefix + each: value for each, value in bare.items() if each != "lm_head.weight"}
        led |= {each: value for each, value in bare.items() if each == "lm_head.weight"}
        for each in (bare, led):
            same(from_tensors(config, each)[1], params(CASES[name][1]))


class TestTensors:
    def test_buffers_are_passed_over(self):
        config, tensors = folder("gpt2")
        tensors["transformer.h.1.attn.bias"] = np.ones((1, 1, 64, 64), bool)
        tensors["h.0.attn.masked_bias"] = np.array(-1e4)
        same(from_tensors(config, tensors)[1], params(CASES["gpt2"][1]))
        config, tensors = folder("llama")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3)
        same(from_tensors(config, tensors)[1], params(CASES["llama"][1]))

    def test_old_names_and_heads_of_bert(self):
        config, tensors = folder("bert")
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        old |= {"cls.predictions.bias": np.ones(30), "embeddings.position_ids": np.arange(64)}
        same(from_tensors(config, old)[1], params(CASES["bert"][1]))

    def test_a_tied_head_may_be_there_if_it_is_the_embedding(self):
        config, tensors = folder("qwen2")
        head = tensors["model.embed_tokens.weight"]
        tied = tensors | {"lm_head.weight": head}
        same(from_tensors(config, tied)[1], params(CASES["qwen2"][1]))
        fails("lm_head.weight differs", config, tensors | {"lm_head.weight": head + 1})

    def test_integers_are_no_weights(self):
        config, tensors = folder()
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
        fails("model.norm.weight holds int8", config, tensors)

    def test_the_same_tensor_twice(self):
        config, tensors = folder()
        fails("share a name", config, tensors | {"norm.weight": tensors["model.norm.weight"]})

    def test_a_depth_from_nowhere(self):
        config, tensors = folder()
        fails("1000000000 layers", config | {"num_hidden_layers": 10**9}, tensors)
        fails("missing", config | {"num_hidden_layers": 3}, tensors)
        fails("left over", config | {"num_hidden_layers": 1}, tensors)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'.*gelu_new"),
        ("gpt2", {"n_head": 5}, "heads=5 must divide"),
        ("gpt2", {"n_embd": None}, "lacks n_embd"),
        ("gpt2", {"n_embd": "24"}, "n_embd='24' must be a whole number"),
        ("gpt2", {"n_layer": True}, "n_layer=True must be a whole number"),
        ("gpt2", {"layer_norm_epsilon": float("nan")}, "must be a number over 0"),
        ("gpt2", {"tie_word_embeddings": "yes"}, "must be true or false"),
        ("llama", {"hidden_act": "gelu_10"}, "hidden_act='gelu_10'"),
        ("llama", {"mlp_bias": True}, "mlp_bias without attention_bias"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "truncate": 1}}, "truncate=1 must be"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "lacks factor"),
        ("llama", {"rope_scaling": 2.0}, "must be an object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "sliding_attention.* llama"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'.*accepted are"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": -1}, "sliding_window=-1 must"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
    ],
)
def test_what_fm_cannot_honour_is_refused(name, changes, match):
    config, tensors = folder(name)
    changed = {key: value for key, value in (config | changes).items() if value is not None}
    fails(match, changed, tensors)


def test_a_window_that_no_layer_uses_is_none():
    config, tensors = folder("qwen2")
    for unused in (
        {"use_sliding_window": False, "sliding_window": 8},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"layer_types": ["full_attention"] * 2, "use_sliding_window": True, "sliding_window": 8},
    ):
        assert from_tensors(config | unused, tensors)[0] == CASES["qwen2"][1]


def test_the_newer_spelling_of_rope():
    config, tensors = folder("llama tied, stretched")
    scaling = config.pop("rope_scaling")
    config["rope_parameters"] = scaling | {"rope_theta": 500.0}
    del config["rope_theta"]
    model, _ = from_tensors(config, tensors)
    assert (model.rope_theta, model.arch.rope_scaling) == (500.0, STRETCHED)


def test_families_are_found_by_name():
    assert (
        family_of({"model_type": "qwen3"}).causal and not family_of({"model_type": "bert"}).causal
    )


def test_a_window_that_no_layer_has_is_not_written():
    config = CASES["llama"][1]
    unread = dataclasses.replace(
        config, arch=dataclasses.replace(config.arch, sliding_window=5, local_rope_theta=7.0)
    )
    family, written = choose_family(unread)
    assert (family.name, written.get("sliding_window")) == ("llama", None)
    assert choose_family(unread, "mistral")[1]["sliding_window"] is None
