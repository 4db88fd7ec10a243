"""One model of four formats from corpora in memory: pretrained, restored, and what it makes."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from fm.data.datasets import Dataset
from fm.data.media import PatchLayout, layout_of
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.study import joint_pretraining, sampling
from fm.study.joint_pretraining import JointRecipe
from fm.study.pretraining import load_pretrained
from fm.training import OptimizerConfig, PretrainingObjective, metric_writer, params_digest
from tests.study.helpers_study import images, split, texts
from tests.training.helpers_models import params

pytestmark = pytest.mark.slow
BOTH = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)
RECIPE = JointRecipe(
    model=ModelConfig(
        num_layers=1, d_model=16, num_heads=1, num_kv_heads=1, mlp_dim=16, attention="reference"
    ),
    objectives=(
        ("text", PretrainingObjective(causal_lm=0.5, masked_lm=0.0, bag_of_words=0.5)),
        *((name, BOTH) for name in ("image", "audio", "video")),
    ),
    optimizer=OptimizerConfig("adamw", learning_rate=0.01),
    steps=2,
    batch_size=12,
    vocab_size=280,
    seq_len=16,
)
OTHER = PatchLayout("image", (9, 9, 1), (3,))
CLASSES = ("one", "two")


def data(modality, inputs, rate=None):
    labels = np.arange(len(inputs)) % 2
    shape = None if modality == "text" else list(inputs.shape[1:])
    whole = split(inputs, labels)
    info = {"fingerprint": modality, "shape": shape, "rate": rate}
    return Dataset(modality, modality, CLASSES, whole, whole, info)


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(0)
    sounds = (rng.normal(size=(12, 1024)) * 3000).astype(np.int16)
    clips = rng.integers(0, 256, (12, 4, 8, 8, 1)).astype(np.uint8)
    return [
        joint_pretraining.build_source(data("text", texts(24, 0)[0]), 2.0),
        joint_pretraining.build_source(data("image", images(24, 0)[0])),
        joint_pretraining.build_source(data("audio", sounds, 8000.0), captioned=True),
        joint_pretraining.build_source(data("video", clips, 8.0)),
    ]


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")
    reads = joint_pretraining.build_joint_processor(sources, RECIPE, out)
    return joint_pretraining.pretrain_joint(
        sources, RECIPE, reads, seed=0, out_dir=out, run_name="toy"
    ), out


def test_the_folder_is_one_model(trained, sources):
    result, out = trained
    found = load_pretrained(out)
    assert params_digest(found.params) == params_digest(result.params)
    assert found.processor.model.modalities == ("tokens", "image", "audio", "video")
    assert found.groups == ("text", "image", "audio", "audio_from_text", "video")
    assert found.objective_of("image") == BOTH and found.processor.tokenizer is not None
    assert found.processor.layouts == {
        each.modality: each.layout for each in sources if each.layout
    }
    (record, *_) = metric_writer.read_records(out / "metrics.jsonl")
    # Four in twelve rows are text, and rows are as long as their format makes them.
    assert record["image/num_tokens"] == 2 * 16 and record["audio/num_tokens"] == 2 * 4
    assert {"text/bits_per_byte", "video/bits_per_dimension", "grad_norm/audio"} <= record.keys()
    assert result.curve["video/validation"]


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_it_makes_examples_and_keeps_what_is_given(trained, sources, modality):
    found = load_pretrained(trained[1])
    (source,) = (each for each in sources if each.modality == modality)
    given = np.asarray(source.corpus.inputs([3]))[0]
    made = sampling.sample_examples(
        found, modality, count=2, seed=1, init_example=given, keep_fraction=0.5
    )
    assert made.shape == (2, *given.shape) and made.dtype == given.dtype
    assert np.any(made[0] != made[1])
    if modality != "audio":
        half = given.shape[0] // 2
        np.testing.assert_array_equal(made[0][:half], given[:half])
        assert np.any(made[0][half:] != given[half:])
    assert source.layout.to_picture(made[0]).ndim == 3
    assert sampling.encode_example(made[0], source.layout)[0][:4] in (b"\x89PNG", b"RIFF", b"GIF8")


def test_it_makes_what_words_say(trained):
    found = load_pretrained(trained[1])
    # Two steps teach no words; parameters drawn at random heed them.
    found = dataclasses.replace(found, params=params(found.processor.model))
    one, two = (
        sampling.sample_examples(found, "audio", count=1, seed=1, caption=word) for word in CLASSES
    )
    assert one.shape == (1, 1024) and np.any(one != two)
    with pytest.raises(UserError, match="not pretrained on captioned image"):
        sampling.sample_examples(found, "image", count=1, seed=1, caption="one")


def test_a_picture_is_read_back_as_it_was_made():
    picture = images(1, 3)[0][0]
    layout = layout_of("image", picture.shape, None)
    assert layout == PatchLayout("image", (8, 8, 1), (2,))
    shown = Image.open(io.BytesIO(sampling.encode_example(picture, layout)[0]))
    np.testing.assert_array_equal(np.asarray(shown), picture[..., 0])
    unit = (layout.to_patches(picture[None]) + np.float32(0.5)) / 256
    np.testing.assert_array_equal(layout.from_patches(unit)[0], picture)
    assert PatchLayout.from_dict(layout.to_dict()) == layout


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found[1:], "captions are text"),
        (lambda found: [*found, dataclasses.replace(found[1], layout=OTHER)], "one shape and rate"),
    ],
)
def test_sources_that_cannot_be_joined(sources, tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        joint_pretraining.build_joint_processor(change(sources), RECIPE, tmp_path)
