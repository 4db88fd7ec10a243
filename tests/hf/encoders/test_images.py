"""Preprocessing of images against the processors of `transformers`."""

import json

import numpy as np
import pytest
from PIL import Image

from fm.errors import UserError
from fm.hf.encoders.images import ImagePreprocessing
from tests.hf.encoders.helpers_encoders import DINO_PROCESSOR, VIT_PROCESSOR, pictures

VIT_OLD = {"feature_extractor_type": "ViTFeatureExtractor", "size": 14, "image_mean": [0.5] * 3}
CASES = {
    "vit": VIT_PROCESSOR,
    "vit, old": VIT_OLD,
    "vit, nearest": VIT_PROCESSOR | {"resample": 0},
    "vit, lanczos": VIT_PROCESSOR | {"resample": 1, "image_std": [0.1, 0.2, 0.3]},
    "dinov2": DINO_PROCESSOR,
    "dinov2, no crop": DINO_PROCESSOR | {"do_center_crop": False},
    "dinov2, larger crop": DINO_PROCESSOR | {"crop_size": {"height": 25, "width": 15}},
    "no resize": DINO_PROCESSOR | {"do_resize": False, "crop_size": 13},
    "as it is": VIT_PROCESSOR | {"do_resize": False, "do_normalize": False, "do_rescale": False},
    "other scale": VIT_PROCESSOR | {"rescale_factor": 0.01},
}


def pixels(preprocessing, images):
    """Normalized values as the stem computes them, [N, height, width, channels]."""
    values = preprocessing(images)
    assert values.dtype == np.uint8
    assert values.shape[1:] == preprocessing.output_shape(*images.shape[1:3])
    return (values * preprocessing.rescale - preprocessing.mean) / preprocessing.std


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(20, 26, 3), (30, 18, 1), (12, 12, 3)])
def test_equals_transformers(name, shape):
    transformers = pytest.importorskip("transformers")
    pil = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    kind = "ViT" if "ViT" in json.dumps(CASES[name]) else "Bit"
    found = {"ViT": pil.ViTImageProcessorPil}
    if kind == "Bit":
        found["Bit"] = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil
    values = {key: value for key, value in CASES[name].items() if not key.endswith("_type")}
    processor = found[kind](**values)
    images = pictures(2, *shape)
    own = pixels(ImagePreprocessing.from_config(CASES[name], 3), images)
    rgb = [Image.fromarray(image.squeeze()).convert("RGB") for image in images]
    expected = np.stack([np.asarray(each) for each in processor(rgb)["pixel_values"]])
    np.testing.assert_allclose(np.moveaxis(own, -1, 1), expected, atol=2e-6 * np.abs(own).max())


def test_the_middle_is_cut_and_gray_becomes_rgb():
    processor = {"do_resize": False, "crop_size": {"height": 2, "width": 4}}
    preprocessing = ImagePreprocessing.from_config(DINO_PROCESSOR | processor, 3)
    image = np.arange(4 * 5, dtype=np.uint8).reshape(1, 4, 5, 1)
    found = preprocessing(image)
    assert found.shape == (1, 2, 4, 3)
    np.testing.assert_array_equal(found[0, ..., 1], image[0, 1:3, :4, 0])
    narrow = ImagePreprocessing.from_config(
        DINO_PROCESSOR | {"do_resize": False, "crop_size": 6}, 3
    )
    padded = narrow(image)[0, ..., 0]
    np.testing.assert_array_equal(padded[1:5, 1:], image[0, ..., 0])
    assert not padded[0].any() and not padded[:, 0].any()
    gray = ImagePreprocessing.from_config(VIT_PROCESSOR | {"do_resize": False}, 1)
    assert gray(pictures(1)).shape == (1, 20, 26, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "do_pad=True is not supported, only false is"),
        ({"crop_pct": 0.875}, "crop_pct=0.875 is not supported"),
        ({"resample": 9}, "resample=9 must be a filter of Pillow"),
        ({"size": {"longest_edge": 9}}, r"size=\{'longest_edge': 9\} is not supported; accepted"),
        ({"size": {"height": 0, "width": 4}}, "must be whole numbers of at least 1"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\] must be 3 numbers"),
        ({"image_std": [0, 1, 1]}, "image_std=.* must not be 0"),
        ({"do_resize": "yes"}, "do_resize='yes' must be true or false"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type='CLIPImage"),
    ],
)
def test_what_is_not_done_is_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        ImagePreprocessing.from_config(VIT_PROCESSOR | change, 3)
    assert str(error.value).startswith("preprocessor_config.json: ")
    assert "\n" not in str(error.value)


def test_keys_that_say_nothing_are_read_past():
    silent = {"crop_pct": None, "do_pad": False, "processor_class": "x", "do_convert_rgb": None}
    made = ImagePreprocessing.from_config(VIT_PROCESSOR | silent, 3)
    assert made == ImagePreprocessing.from_config(VIT_PROCESSOR, 3)
    nameless = {"size": VIT_PROCESSOR["size"]}
    assert made == ImagePreprocessing.from_config(nameless, 3, "ViTImageProcessor")
