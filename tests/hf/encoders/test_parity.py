"""Encoders of images and sounds against `transformers`, in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.hf.encoders import load_encoder, pooled_output
from fm.model.transformer import forward
from tests.hf.encoders.helpers_encoders import (
    IMAGES,
    PROCESSORS,
    SOUNDS,
    noises,
    pictures,
    write_folder,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
PICTURES = SIZES | {"image_size": 24, "patch_size": 4}
AST = {
    **{"num_mel_bins": 16, "max_length": 24, "patch_size": 8},
    **{"frequency_stride": 4, "time_stride": 6},
}
WHISPER = {
    **{"vocab_size": 40, "num_mel_bins": 8, "d_model": 32, "max_source_positions": 50},
    **{"encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 56},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
MODELS = {
    "vit": ("ViTModel", PICTURES | {"intermediate_size": 56}),
    "vit without a pooler or biases": (
        "ViTModel",
        PICTURES | {"intermediate_size": 56, "qkv_bias": False, "hidden_act": "gelu_new"},
    ),
    "vit, a classifier": ("ViTForImageClassification", PICTURES | {"intermediate_size": 56}),
    "dinov2": ("Dinov2Model", PICTURES | {"mlp_ratio": 2}),
    "dinov2, oblong patches": (
        "Dinov2Model",
        PICTURES | {"patch_size": [3, 4], "image_size": [18, 24]},
    ),
    "dinov2, gated": ("Dinov2ForImageClassification", PICTURES | {"use_swiglu_ffn": True}),
    "dinov2 with registers": (
        "Dinov2WithRegistersModel",
        PICTURES | {"num_register_tokens": 3, "mlp_ratio": 2},
    ),
    "ast": ("ASTModel", SIZES | AST | {"intermediate_size": 56}),
    "ast, a classifier": ("ASTForAudioClassification", SIZES | AST | {"intermediate_size": 56}),
    "whisper": ("WhisperModel", WHISPER),
    "whisper, generating": ("WhisperForConditionalGeneration", WHISPER),
}
OPTIONS = {"vit without a pooler or biases": {"add_pooling_layer": False}}


def model_of(name):
    architecture, settings = MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, architecture)
    model = built(built.config_class(**settings), **OPTIONS.get(name, {})).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            center = float(key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1")))
            tensor.copy_(center + 0.2 * torch.randn_like(tensor))
    return model


def saved(model, folder, processor=None):
    model.save_pretrained(folder)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    values = PROCESSORS[family] | (processor or {})
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def theirs(model, inputs, **options):
    """The encoder's outputs of `transformers`."""
    for name in ("vit", "dinov2", "audio_spectrogram_transformer", "model"):
        model = getattr(model, name, model)
    if hasattr(model, "decoder"):
        model = model.encoder
    with torch.no_grad():
        return model(torch.tensor(inputs), output_hidden_states=True, **options)


def ours(encoder, inputs):
    mask = Mask()
    return jax.jit(lambda params, batch: forward(params, batch, encoder.config, mask=mask))(
        encoder.params, {name: jnp.asarray(value) for name, value in inputs.items()}
    )


def compare(model, encoder, inputs, pixel_values, **options):
    """Asserts that all hidden states are equal, and pooled outputs where there are any."""
    found = ours(encoder, inputs)
    expected = theirs(model, pixel_values, **options)
    np.testing.assert_allclose(found["final"], expected.last_hidden_state, atol=1e-4)
    states = np.stack([state.numpy() for state in expected.hidden_states])
    own = np.asarray(found["layers"]).copy()
    assert len(states) == len(own)
    if "Whisper" in type(model).__name__:  # normalizes the last one
        own[-1] = found["final"]
    np.testing.assert_allclose(own, states, atol=1e-4)
    pooled = getattr(expected, "pooler_output", None)
    if pooled is not None:
        own = pooled_output(encoder.params, inputs, found["final"], encoder.config)
        np.testing.assert_allclose(own, pooled, atol=1e-4)
    return pooled is not None


def pixel_values(encoder, inputs):
    """Preprocessed images as `transformers` takes them."""
    stem = encoder.config.stem
    pixels = inputs["image"] * np.float32(stem.rescale) - np.float32(stem.mean)
    return np.moveaxis(pixels / np.float32(stem.std), -1, 1).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("vit", "dino"))])
@pytest.mark.parametrize("side", [12, 24])
def test_images(name, side, tmp_path):
    height = width = side
    if name == "dinov2, oblong patches":
        if side == 12:
            pytest.skip("`transformers` resizes positions of square grids only")
        height = 18
    model = model_of(name)
    size = {"height": height, "width": width}
    folder = saved(model, tmp_path / "model", {"size": size, "crop_size": size})
    images = pictures(3)
    encoder = load_encoder(folder, images.shape[1:])
    inputs = encoder.inputs(images)
    options = {"interpolate_pos_encoding": True} if name.startswith("vit") and side == 12 else {}
    pools = compare(model, encoder, inputs, pixel_values(encoder, inputs), **options)
    assert pools == (name in ("vit", "dinov2 with registers") or name.startswith("dinov2"))


@pytest.mark.parametrize("name", ["ast", "ast, a classifier", "whisper", "whisper, generating"])
def test_sounds(name, tmp_path):
    model = model_of(name)
    sounds = noises(3, 2500)
    encoder = load_encoder(saved(model, tmp_path / "model"), sounds.shape[1:], 16_000)
    inputs = encoder.inputs(sounds)
    values = inputs["audio"].swapaxes(1, 2) if "whisper" in name else inputs["audio"]
    assert compare(model, encoder, inputs, values) == name.startswith("ast")
    unused = {"ast, a classifier": "classifier", "whisper": "decoder"}.get(name)
    assert unused is None or any(each.startswith(unused) for each in encoder.unused_tensors)


@pytest.mark.parametrize("family", [*IMAGES, *SOUNDS])
def test_published_names_of_tensors(family, tmp_path):
    """Files of the hub keep the names that their models had when they were published."""
    folder = write_folder(tmp_path / family, family)
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    lacking = {name for name in info["missing_keys"] if not name.startswith(("decoder", "pooler"))}
    assert not lacking and not info["mismatched_keys"]
    examples = pictures(2) if family in IMAGES else noises(2)
    encoder = load_encoder(folder, examples.shape[1:], 16_000)
    inputs = encoder.inputs(examples)
    if family in IMAGES:
        values = pixel_values(encoder, inputs)
    else:
        values = inputs["audio"].swapaxes(1, 2) if family == "whisper" else inputs["audio"]
    options = {"interpolate_pos_encoding": True} if family == "vit" else {}
    model.pooler = None
    compare(model.eval(), encoder, inputs, values, **options)
