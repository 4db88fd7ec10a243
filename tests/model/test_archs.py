"""Every choice of arch against the same layer written out in float64, value and gradient."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fm.attention import Mask
from fm.config_io import to_plain
from fm.errors import UserError
from fm.model import ModelConfig, embeddings
from fm.model.attention_maps import attention_weights
from fm.model.config import ArchConfig, RopeScaling
from fm.model.layers import transpose_kernel
from fm.model.transformer import forward, init, scan_groups
from tests.model import helpers_archs
from tests.model.helpers_models import params, run, text

SIZES = {
    "num_layers": 2,
    "d_model": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 48,
    "vocab_size": 19,
}
# Covers every frequency range of the scaling: wavelengths of 6 to 800 tokens, original length 64.
ROPE_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64
)
OWN = ModelConfig(**SIZES)
GPT2 = ModelConfig(
    **SIZES,
    max_seq_len=12,
    arch=helpers_archs.GPT2,
)
LLAMA = ModelConfig(
    **SIZES,
    rope_theta=1000.0,
    arch=dataclasses.replace(helpers_archs.LLAMA, rope_scaling=ROPE_SCALING),
)
QWEN2 = dataclasses.replace(
    LLAMA, arch=dataclasses.replace(LLAMA.arch, use_bias="qkv", rope_scaling=None)
)
QWEN3 = dataclasses.replace(
    LLAMA,
    head_dim_override=12,
    arch=dataclasses.replace(LLAMA.arch, qk_norm="gain", use_bias="attention"),
)
BERT = dataclasses.replace(
    GPT2,
    arch=dataclasses.replace(
        GPT2.arch,
        post_norm=True,
        embedding_norm=True,
        final_norm=False,
        activation="gelu",
        num_token_types=2,
        pooler=True,
    ),
)
MISTRAL = dataclasses.replace(
    QWEN2,
    arch=dataclasses.replace(
        helpers_archs.LLAMA, layer_pattern=("sliding",), sliding_window=4, rope_scaling=None
    ),
)
# Five layers: as a scan, two steps of the pattern and one layer more.
GEMMA2 = ModelConfig(
    **SIZES | {"num_layers": 5},
    head_dim_override=6,
    arch=helpers_archs.GEMMA2,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    num_layers=4,
    arch=dataclasses.replace(
        GEMMA2.arch,
        layer_pattern=("sliding", "sliding", "full"),
        **helpers_archs.GEMMA3_CHANGES,
    ),
)
MODERNBERT = ModelConfig(
    **SIZES | {"num_layers": 6, "num_kv_heads": 4},
    rope_theta=1000.0,
    arch=helpers_archs.MODERNBERT,
)
CASES = {
    **{"own": OWN, "gpt2": GPT2, "llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "bert": BERT},
    **{"mistral": MISTRAL, "gemma2": GEMMA2, "gemma3": GEMMA3, "modernbert": MODERNBERT},
}


def textbook(p, inputs, config, causal):
    """Final output and every layer's attention weights [N, B, H, L, L], in float64."""
    arch, C = config.arch, config.head_dim
    tokens_BL, positions_BL = inputs["tokens"], inputs["positions"]
    B, L = tokens_BL.shape

    def norm(x, vectors, name):
        x = x - (x.mean(-1, keepdims=True) if arch.norm == "layer" else 0.0)
        y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.norm_eps)
        return y * vectors.get(name, 1.0) + vectors.get(f"{name}_shift", 0.0)

    def rms(x):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.norm_eps)

    def turn(x_BLHC, kind):
        theta, scaling = config.rope_theta, arch.rope_scaling
        if kind == "sliding" and arch.local_rope_theta:
            theta, scaling = arch.local_rope_theta, None
        if arch.position_encoding == "learned":
            return x_BLHC
        out = np.empty_like(x_BLHC)
        for c in range(C // 2):
            frequency = theta ** (-2.0 * c / C)
            if scaling is not None and scaling.rope_type == "linear":
                frequency = frequency / scaling.factor
            elif scaling is not None:
                wave = 2 * np.pi / frequency
                stretched = frequency / scaling.factor
                if wave > scaling.original_max_seq_len / scaling.low_freq_factor:
                    frequency = stretched
                elif wave > scaling.original_max_seq_len / scaling.high_freq_factor:
                    share = scaling.original_max_seq_len / wave - scaling.low_freq_factor
                    share /= scaling.high_freq_factor - scaling.low_freq_factor
                    frequency = share * frequency + (1 - share) * stretched
            angle_BL1 = (positions_BL * frequency)[..., None]
            a, b = x_BLHC[..., c], x_BLHC[..., c + C // 2]
            out[..., c] = a * np.cos(angle_BL1) - b * np.sin(angle_BL1)
            out[..., c + C // 2] = b * np.cos(angle_BL1) + a * np.sin(angle_BL1)
        return out

    def activation(x):
        return {
            "relu2": lambda: np.maximum(x, 0) ** 2,
            "silu": lambda: x * special.expit(x),
            "gelu": lambda: x * special.ndtr(x),
            "gelu_tanh": lambda: (
                0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            ),
        }[arch.activation]()

    s = p["streams"]
    x = s["token_embedding"][tokens_BL] * (
        np.sqrt(config.d_model) if arch.scale_embeddings else 1.0
    )
    if arch.position_encoding == "learned":
        x = x + s["position_embedding"][positions_BL]
    if arch.num_token_types:
        x = x + s["type_embedding"][inputs["types"]]
    if arch.embedding_norm:
        x = norm(x, s, "embedding_norm")
    weights = np.zeros((config.num_layers, B, config.num_heads, L, L))
    for n in range(config.num_layers):
        w = {name: leaf[n] for name, leaf in p["layers"].items()}
        kind = arch.layer_pattern[n % len(arch.layer_pattern)]
        skips_norm = arch.post_norm or (n == 0 and not arch.first_attention_norm)
        read = x if skips_norm else norm(x, w, "attention_norm")
        q, k, v = (
            np.einsum("bld,dhc->blhc", read, w[name]) + w.get(f"{name}_bias", 0.0)
            for name in ("query", "key", "value")
        )
        if arch.qk_norm != "none":
            q, k = rms(q) * w.get("query_norm", 1.0), rms(k) * w.get("key_norm", 1.0)
        q, k = turn(q, kind), turn(k, kind)
        o = np.zeros((B, L, config.num_heads, C))
        for h in range(config.num_heads):
            of = h // (config.num_heads // config.num_kv_heads)
            scores = np.einsum("blc,bsc->bls", q[:, :, h], k[:, :, of])
            scores = scores / np.sqrt(arch.query_pre_attn_scalar or C)
            if arch.attention_softcap:
                scores = arch.attention_softcap * np.tanh(scores / arch.attention_softcap)
            ahead_LL = np.arange(L) - np.arange(L)[:, None]
            hidden_LL = causal & (ahead_LL > 0)
            if kind == "sliding":
                hidden_LL = hidden_LL | (np.abs(ahead_LL) >= arch.sliding_window)
            scores = np.where(hidden_LL, -np.inf, scores)
            weights[n, :, h] = special.softmax(scores, axis=-1)
            o[:, :, h] = weights[n, :, h] @ v[:, :, of]
        y = np.einsum("blhc,hcd->bld", o, w["attention_out"]) + w.get("attention_out_bias", 0)
        x = x + (norm(y, w, "attention_post_norm") if arch.sandwich_norm else y)
        x = norm(x, w, "attention_norm") if arch.post_norm else x
        read = x if arch.post_norm else norm(x, w, "feed_forward_norm")
        h = read @ w["up"] + w.get("up_bias", 0.0)
        h = activation(read @ w["gate"]) * h if arch.gated_mlp else activation(h)
        y = h @ w["down"] + w.get("down_bias", 0.0)
        x = x + (norm(y, w, "feed_forward_post_norm") if arch.sandwich_norm else y)
        x = norm(x, w, "feed_forward_norm") if arch.post_norm else x
    return norm(x, s, "final_norm") if arch.final_norm else x, weights


def problem(config):
    inputs = text(B=2, L=9)
    inputs["positions"] = inputs["positions"] + np.array([[0], [2]], np.int32)
    inputs["types"] = (inputs["tokens"] % 2).astype(np.int32)
    return params(config), inputs


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_output_matches_the_float64_reference(config, causal):
    p, inputs = problem(config)
    got = run(p, inputs, config, mask=Mask(causal=causal))["final"]
    wide = jax.tree.map(np.float64, p)
    want, _ = textbook(wide, inputs, config, causal)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_gradients_match_the_float64_reference(config):
    """Along one random direction of every leaf, by central differences in float64."""
    p, inputs = problem(config)
    readout_BLD = np.random.default_rng(1).normal(size=(2, 9, config.d_model))

    def value(p):
        return jnp.sum(forward(p, inputs, config, mask=Mask(causal=True))["final"] * readout_BLD)

    gradient = jax.jit(jax.grad(value))(p)
    wide, rng, step = jax.tree.map(np.float64, p), np.random.default_rng(2), 1e-5
    idle = {"hidden_piece", "token_head", "pooler", "pooler_bias"}
    for part, leaves in wide.items():
        for name in leaves.keys() - idle:
            along = rng.normal(size=leaves[name].shape)

            def moved(by, part=part, name=name, along=along):
                there = wide | {part: wide[part] | {name: wide[part][name] + by * along}}
                return np.sum(textbook(there, inputs, config, True)[0] * readout_BLD)

            want = (moved(step) - moved(-step)) / (2 * step)
            got = np.sum(np.float64(gradient[part][name]) * along)
            scale = np.linalg.norm(gradient[part][name]) * np.linalg.norm(along)
            assert scale > 0 or name == "key_bias", name
            assert got == pytest.approx(want, rel=1e-3, abs=2e-4 * scale + 1e-3), name


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
class TestEveryArch:
    def test_scanned_layers_match_unrolled_ones(self, config):
        p, inputs = problem(config)
        scanned = dataclasses.replace(config, scan_layers=True)
        left, right = (run(p, inputs, c, mask=Mask(causal=True)) for c in (config, scanned))
        np.testing.assert_allclose(left["final"], right["final"], rtol=2e-4, atol=2e-5)

    @pytest.mark.slow
    def test_parameters_may_be_bfloat16(self, config):
        p, inputs = problem(config)
        halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), p)
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), halves)
        left, right = (run(each, inputs, config, mask=Mask()) for each in (halves, rounded))
        assert left["final"].dtype == jnp.float32
        np.testing.assert_allclose(left["final"], right["final"], rtol=1e-5, atol=1e-5)
        halved = dataclasses.replace(config, dtype="bfloat16")
        low = run(halves, inputs, halved, mask=Mask())["final"]
        assert low.dtype == jnp.bfloat16
        error = np.asarray(low, np.float32) - right["final"]
        assert 0 < np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(right["final"] ** 2))

    @pytest.mark.slow
    def test_fresh_model_predicts_near_chance(self, config):
        fresh = init(jax.random.key(0), config)
        final_BLD = run(fresh, problem(config)[1], config, mask=Mask(causal=True))["final"]
        logits = np.asarray(embeddings.token_logits(fresh["streams"], final_BLD, config))
        assert np.ptp(logits) < 1.5
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fresh))

    def test_attention_weights_match_the_reference(self, config):
        p, inputs = problem(config)
        look = jax.jit(attention_weights, static_argnames="config")
        got = look(p, inputs, config, mask=Mask(causal=True))
        _, want = textbook(jax.tree.map(np.float64, p), inputs, config, True)
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)

    def test_config_round_trips_through_json(self, config):
        plain = json.loads(json.dumps(dataclasses.asdict(config)))
        assert ModelConfig.from_dict(plain) == config
        assert hash(ModelConfig.from_dict(plain)) == hash(config)


def test_a_config_saved_under_old_field_names_is_read():
    saved = {
        **{"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 48, "vocab": 19},
        **{"continuous": [], "axes": 1, "mixtures": 4, "rope_base": 1000.0, "scan": False},
        **{"head_dim": 12, "context": 0, "remat": "none", "norm_eps": 1e-6},
        "arch": {
            **{"gain": True, "shift": False, "biases": "attention", "gated": True, "tied": False},
            **{"positions": "rotary", "token_types": 0, "embedding_norm": False},
            **{"qk_norm": "gain", "activation": "silu"},
            "rope_scaling": {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 64},
        },
    }
    assert ModelConfig.from_dict(saved) == QWEN3


def test_a_config_saved_without_newer_fields_is_read():
    values = dataclasses.asdict(OWN)
    for name in ("arch", "max_seq_len", "head_dim_override", "remat_policy"):
        del values[name]
    assert ModelConfig.from_dict(values) == OWN


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": 1}, "model config: unknown fields colour"),
        ({"d_model": "32"}, "d_model must be a whole number, not '32'"),
        ({"norm_eps": float("nan")}, "norm_eps must be a finite number"),
        ({"scan_layers": 1}, "scan_layers must be true or false"),
    ],
)
def test_json_that_is_no_config_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        ModelConfig.from_dict(dataclasses.asdict(OWN) | changes)


def test_the_default_arch_has_only_its_own_parameters():
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), OWN))
    assert set(shapes["layers"]) == {"query", "key", "value", "attention_out", "up", "down"}
    assert set(shapes["streams"]) == {"hidden_piece", "token_embedding", "token_head"}


def test_tied_head_is_the_embedding():
    p, h_TD = params(GPT2)["streams"], np.ones((3, GPT2.d_model), np.float32)
    assert "token_head" not in p
    want = h_TD @ p["token_embedding"].T
    np.testing.assert_allclose(embeddings.token_logits(p, h_TD, GPT2), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_logits_are_soft_capped(transposed):
    config = dataclasses.replace(
        GEMMA2, arch=dataclasses.replace(GEMMA2.arch, logit_softcap=0.5, tie_embeddings=False)
    )
    p, h_TD = params(config)["streams"], np.ones((3, config.d_model), np.float32)
    raw = np.float64(h_TD) @ np.float64(p["token_head"])
    if transposed:
        p = p | {"token_head": transpose_kernel(jnp.asarray(p["token_head"]))}
    got = embeddings.token_logits(p, h_TD, config)
    np.testing.assert_allclose(got, 0.5 * np.tanh(raw / 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "num_layers", "first_norm", "want"),
    [
        (("full",), 4, True, [(0, 4, 1)]),
        (("sliding",), 4, True, [(0, 4, 1)]),
        (("sliding", "full"), 5, True, [(0, 2, 2), (4, 1, 1)]),
        (("sliding", "sliding", "full"), 6, True, [(0, 2, 3)]),
        (("full", "full", "sliding"), 3, True, [(0, 2, 1), (2, 1, 1)]),
        (("full",), 3, False, [(0, 1, 1), (1, 2, 1)]),
        (("full", "sliding", "sliding"), 8, False, [(0, 1, 1), (1, 2, 3), (7, 1, 1)]),
        (("full",), 0, True, [(0, 0, 1)]),
    ],
)
def test_scans_run_periods_of_the_pattern(pattern, num_layers, first_norm, want):
    arch = ArchConfig(
        norm_scale=True,
        layer_pattern=pattern,
        sliding_window=3 * ("sliding" in pattern),
        first_attention_norm=first_norm,
    )
    config = ModelConfig(**SIZES | {"num_layers": num_layers}, arch=arch)
    assert scan_groups(config) == want
    assert [start for start, *_ in want] + [num_layers] == [0] + [
        start + steps * period for start, steps, period in want
    ]


@pytest.mark.parametrize("policy", ["dots", "attention", "full"])
@pytest.mark.slow
def test_remat_of_a_pattern_changes_no_gradient(policy):
    p, inputs = problem(MODERNBERT)

    def gradient(config):
        def loss(p):
            return jnp.sum(forward(p, inputs, config, mask=Mask())["final"] ** 2)

        return jax.jit(jax.grad(loss))(p)

    want = gradient(MODERNBERT)
    got = gradient(dataclasses.replace(MODERNBERT, remat_policy=policy))
    for name, leaf in want["layers"].items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(got["layers"][name], leaf, rtol=2e-4, atol=2e-5 * scale)
    assert not np.any(got["layers"]["attention_norm"][0])


def test_yarn_scales_slow_channel_pairs_and_leaves_fast_ones():
    """Peng et al. 2023, sec. 3.2, pair by pair; the bounds are not rounded to whole pairs."""
    scaling = RopeScaling(
        4.0, original_max_seq_len=64, rope_type="yarn", beta_fast=8.0, truncate=False
    )
    frequencies = 100.0 ** (-np.arange(8) / 8)
    turns = 64 * frequencies / (2 * np.pi)
    got = scaling(jnp.asarray(frequencies, jnp.float32), 100.0) / frequencies
    np.testing.assert_allclose(got[turns > 8], 1.0, rtol=1e-5)
    np.testing.assert_allclose(got[turns < 1], 0.25, rtol=1e-5)
    between = got[(turns > 1) & (turns < 8)]
    assert len(between) > 2 and np.all(np.diff(between) < 0) and np.ptp(np.diff(between)) < 1e-5


def test_newer_fields_are_saved_only_where_they_are_used():
    """The hashes of older configs, and the identity of resumed runs, stay what they were."""
    plain = to_plain(dataclasses.replace(LLAMA, max_seq_len=3))
    assert set(plain["arch"]) == {
        *("norm", "norm_scale", "norm_bias", "post_norm", "embedding_norm", "final_norm"),
        *("qk_norm", "use_bias", "activation", "gated_mlp", "position_encoding", "rope_scaling"),
        *("tie_embeddings", "num_token_types", "pooler"),
    }
    assert set(plain["arch"]["rope_scaling"]) == {
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"),
    }
    for config in (GEMMA3, MODERNBERT):
        assert ModelConfig.from_dict(to_plain(config)) == config


def test_pooled_output_is_a_tanh_layer_over_the_first_token():
    p, final_BLD = params(BERT)["streams"], np.random.default_rng(0).normal(size=(2, 3, 32))
    want = np.tanh(final_BLD[:, 0] @ p["pooler"] + p["pooler_bias"])
    np.testing.assert_allclose(embeddings.pooled_output(p, jnp.float32(final_BLD)), want, rtol=1e-4)


def test_input_longer_than_max_seq_len_is_refused():
    inputs = text(L=13)
    with pytest.raises(UserError, match="13 tokens exceeds the model's max_seq_len of 12"):
        forward(params(GPT2), inputs, GPT2, mask=Mask(causal=True))
    assert run(params(OWN), inputs, OWN, mask=Mask())["final"].shape[1] == 13


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ArchConfig(norm="group"), "norm='group' is unknown; accepted are rms, layer"),
        (lambda: ArchConfig(activation="swish"), "activation='swish'.*silu"),
        (lambda: ArchConfig(qk_norm="layer"), "qk_norm='layer'.*none, plain, gain"),
        (lambda: ArchConfig(use_bias="some"), "use_bias='some'.*none, qkv, attention, all"),
        (
            lambda: ArchConfig(position_encoding="alibi"),
            "position_encoding='alibi'.*rotary, learned",
        ),
        (lambda: ArchConfig(norm_bias=True), "norm_bias=True requires norm_scale=True"),
        (lambda: ArchConfig(num_token_types=-1), "num_token_types=-1"),
        (
            lambda: ArchConfig(position_encoding="learned", rope_scaling=ROPE_SCALING),
            "rope_scaling requires .*rotary",
        ),
        (lambda: RopeScaling(8.0, 4.0, 4.0, 64), "high_freq_factor=4.0 above low"),
        (lambda: RopeScaling(8.0, rope_type="longrope"), "'longrope'.*llama3, linear, yarn"),
        (lambda: RopeScaling(8.0, rope_type="yarn", beta_fast=1.0), "beta_fast=1.0"),
        (lambda: ArchConfig(layer_pattern=("local",)), "layer_pattern=.*full, sliding"),
        (lambda: ArchConfig(layer_pattern=("sliding",)), "sliding_window=0 must be at least 1"),
        (lambda: ArchConfig(sliding_window=-1), "sliding_window=-1 must be at least 0"),
        (lambda: ArchConfig(local_rope_theta=-4.0), "local_rope_theta=-4.0 must be at least 0"),
        (
            lambda: dataclasses.replace(GPT2.arch, local_rope_theta=4.0),
            "local_rope_theta=4.0 .* 0 where position_encoding is 'learned'",
        ),
        (lambda: ArchConfig(logit_softcap=-1.0), "logit_softcap=-1.0 must be at least 0"),
        (lambda: ArchConfig(sandwich_norm=True, post_norm=True), "sandwich_norm=True requires"),
        (lambda: ArchConfig(first_attention_norm=False), "requires norm_scale=True"),
        (
            lambda: ModelConfig(**SIZES, arch=GPT2.arch),
            "require text or a raster of patches, and a max",
        ),
        (lambda: dataclasses.replace(GPT2, position_axes=2), "position_axes=2"),
        (lambda: ModelConfig(**SIZES, head_dim_override=7), "head_dim=7"),
        (lambda: ModelConfig(**SIZES, max_seq_len=-1), "max_seq_len=-1"),
    ],
)
def test_invalid_arch_is_refused(make, named):
    with pytest.raises(UserError, match=named) as caught:
        make()
    assert "\n" not in str(caught.value)
