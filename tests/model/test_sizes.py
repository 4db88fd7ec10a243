"""Named sizes and architectures, whole-size models by their shapes alone."""

import dataclasses

import jax
import pytest

from fm.errors import UserError
from fm.hf.weights import choose_family
from fm.model.sizes import (
    ARCHS,
    PUBLISHED_CONFIGS,
    SIZE_ALIASES,
    SIZES,
    canonical_size,
    config_for_size,
    describe_sizes,
    format_count,
    num_layer_params,
    with_arch,
)
from fm.model.transformer import init


def shapes(config):
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", SIZES)
def test_layer_parameters_are_those_of_the_model(size, arch):
    config = config_for_size(size, arch, vocab_size=64)
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes(config)["layers"]))
    assert num_layer_params(config) == counted


@pytest.mark.parametrize("size", PUBLISHED_CONFIGS)
def test_published_sizes_have_the_parameters_they_are_called_by(size):
    expected = {
        "124m": 124_439_808,
        "355m": 354_823_168,
        "774m": 774_030_080,
        "1b": 1_235_814_400,
        "3b": 3_212_749_824,
        "8b": 8_030_261_248,
    }[size]
    config = PUBLISHED_CONFIGS[size]
    mask_embedding = config.d_model
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes(config))) - mask_embedding
    assert counted == expected
    assert choose_family(config)[0].name == ("gpt2" if size.endswith("m") else "llama")


def test_an_architecture_keeps_the_size_and_about_the_parameters():
    own = config_for_size("small", vocab_size=64)
    llama = with_arch(own, "llama")
    assert llama.mlp_dim == 1024 and llama.arch == ARCHS["llama"]
    assert num_layer_params(llama) == pytest.approx(num_layer_params(own), rel=0.01)
    assert with_arch(llama, "fm") == own
    assert with_arch(llama, "llama") == llama
    assert config_for_size("small", "llama", vocab_size=64) == llama


def test_the_llama_shape_has_a_counterpart_and_ours_has_none():
    config = dataclasses.replace(config_for_size("nano", "llama", vocab_size=64), max_seq_len=32)
    assert choose_family(config)[0].name == "llama"
    with pytest.raises(UserError, match="no known model is like this one"):
        choose_family(dataclasses.replace(config, arch=ARCHS["fm"]))


def test_sizes_are_described_with_their_parameters():
    assert describe_sizes().startswith("nano (49 k), micro (98 k), tiny (786 k), small (11 M)")
    assert [format_count(count) for count in (7, 9_960, 9_940, 7_140_000, 8e9, 999_900)] == [
        *("7", "10 k", "9.9 k", "7.1 M", "8.0 B", "1.0 M"),
    ]
    for call, match in (
        (lambda: config_for_size("7b"), r"size '7b'.*8b \(7.0 B\)"),
        (lambda: config_for_size("nano", "gpt"), "arch 'gpt' is unknown; accepted are fm, llama"),
    ):
        with pytest.raises(UserError, match=match):
            call()


def test_sizes_have_the_names_other_trainers_give_them_and_heads_of_64():
    for alias, size in SIZE_ALIASES.items():
        assert config_for_size(alias, "llama") == config_for_size(size, "llama")
    assert config_for_size("gpt2-124m").d_model == 768 and canonical_size("350m") == "355m"
    assert "124m or gpt2-124m (85 M)" in describe_sizes()
    for size in SIZES:
        config = config_for_size(size)
        assert config.head_dim >= 64 or config.d_model < 128, size
