"""Folders of tiny random encoders, with the tensor names of the published files."""

import json

import numpy as np
from safetensors.numpy import save_file

# Sizes: layers, width, heads, MLP.
N, D, H, F = 2, 16, 2, 32
IMAGE_SIZE, PATCH = 12, 4
SIZES = {
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": H,
    "image_size": 2 * IMAGE_SIZE,
    "patch_size": PATCH,
}
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
DINO_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": IMAGE_SIZE + 4},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
AST_PROCESSOR = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "num_mel_bins": 16,
    "max_length": 24,
}
WHISPER_PROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 8,
    "chunk_length": 1,
}
CONFIGS = {
    "vit": SIZES | {"intermediate_size": F, "layer_norm_eps": 1e-6},
    "dinov2": SIZES | {"mlp_ratio": 2, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": SIZES | {"mlp_ratio": 2, "num_register_tokens": 3},
    "audio-spectrogram-transformer": {
        **{"hidden_size": D, "num_hidden_layers": N, "num_attention_heads": H},
        **{"intermediate_size": F, "num_mel_bins": 16, "max_length": 24, "patch_size": 8},
        **{"frequency_stride": 4, "time_stride": 6},
    },
    "whisper": {
        **{"d_model": D, "encoder_layers": N, "encoder_attention_heads": H, "num_mel_bins": 8},
        **{"encoder_ffn_dim": F, "max_source_positions": 50, "decoder_layers": 1},
        **{"decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 5, "pad_token_id": 0},
    },
}
PROCESSORS = {
    "vit": VIT_PROCESSOR,
    "dinov2": DINO_PROCESSOR,
    "dinov2_with_registers": DINO_PROCESSOR,
    "audio-spectrogram-transformer": AST_PROCESSOR,
    "whisper": WHISPER_PROCESSOR,
}
IMAGES = ("vit", "dinov2", "dinov2_with_registers")
SOUNDS = ("audio-spectrogram-transformer", "whisper")


def tensors_of(family, seed=0):
    """Random tensors of a family, by the names of its published files."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def add(name, *shape, center=0.0):
        tensors[name] = (center + 0.3 * rng.normal(size=shape)).astype(np.float32)

    def linear(name, inputs, outputs, *, bias=True):
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    def norm(name):
        add(f"{name}.weight", D, center=1.0)
        add(f"{name}.bias", D)

    if family == "whisper":
        for name, channels in (("conv1", 8), ("conv2", D)):
            add(f"model.encoder.{name}.weight", D, channels, 3)
            add(f"model.encoder.{name}.bias", D)
        add("model.encoder.embed_positions.weight", 50, D)
        norm("model.encoder.layer_norm")
        for n in range(N):
            at = f"model.encoder.layers.{n}"
            for name in "qkv":
                linear(f"{at}.self_attn.{name}_proj", D, D, bias=name != "k")
            linear(f"{at}.self_attn.out_proj", D, D)
            norm(f"{at}.self_attn_layer_norm")
            norm(f"{at}.final_layer_norm")
            linear(f"{at}.fc1", D, F)
            linear(f"{at}.fc2", F, D)
        add("model.decoder.layer_norm.weight", D)
        return tensors
    is_dino, is_sound = family.startswith("dinov2"), family not in IMAGES
    add("embeddings.cls_token", 1, 1, D)
    if is_sound:
        add("embeddings.distillation_token", 1, 1, D)
        add("embeddings.patch_embeddings.projection.weight", D, 1, 8, 8)
        positions = 2 + 3 * 3
    else:
        add("embeddings.patch_embeddings.projection.weight", D, 3, PATCH, PATCH)
        positions = 1 + (2 * IMAGE_SIZE // PATCH) ** 2
    add("embeddings.patch_embeddings.projection.bias", D)
    add("embeddings.position_embeddings", 1, positions, D)
    if is_dino:
        add("embeddings.mask_token", 1, D)
    if family == "dinov2_with_registers":
        add("embeddings.register_tokens", 1, 3, D)
    for n in range(N):
        at = f"encoder.layer.{n}"
        for name in ("query", "key", "value"):
            linear(f"{at}.attention.attention.{name}", D, D)
        linear(f"{at}.attention.output.dense", D, D)
        norm(f"{at}.norm1" if is_dino else f"{at}.layernorm_before")
        norm(f"{at}.norm2" if is_dino else f"{at}.layernorm_after")
        linear(f"{at}.mlp.fc1" if is_dino else f"{at}.intermediate.dense", D, F)
        linear(f"{at}.mlp.fc2" if is_dino else f"{at}.output.dense", F, D)
        if is_dino:
            add(f"{at}.layer_scale1.lambda1", D)
            add(f"{at}.layer_scale2.lambda1", D)
    norm("layernorm")
    return tensors


def write_folder(folder, family, *, seed=0, tensors=None, config=None, processor=None):
    """Writes a folder of a family; `config` and `processor` change keys of its JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    values = CONFIGS[family] | {"model_type": family} | (config or {})
    (folder / "config.json").write_text(json.dumps(values))
    preprocessing = PROCESSORS[family] | (processor or {})
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    save_file(tensors or tensors_of(family, seed), folder / "model.safetensors")
    return folder


def pictures(count, height=20, width=26, channels=3, seed=0):
    """Random smooth images, uint8 [count, height, width, channels]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 2, width // 2, channels), np.uint8)
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


def noises(count, samples=4000, seed=0):
    """Random sounds of growing loudness, int16 [count, samples]."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, samples)) * np.linspace(1, 6000, samples)).astype(np.int16)
