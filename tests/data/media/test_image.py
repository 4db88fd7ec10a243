import io

import numpy as np
import pytest
from PIL import Image

from fm.data.load import load
from fm.data.media import MediaSpec, image
from fm.data.media.image import IMAGE, ImageMeasure
from fm.errors import UserError

SIDE = 16
CODEC = IMAGE.codec
assert CODEC is not None


def shape_of(number, side=SIDE):
    """Opacity of a bar that stands (even numbers) or lies, thicker with every number."""
    alpha = np.zeros((side, side), np.uint8)
    alpha[:, 2 : 4 + number] = 255
    return alpha if number % 2 == 0 else alpha.T.copy()


def gray_alpha(ink, alpha):
    return np.stack([np.full_like(alpha, ink), alpha], axis=-1)


def rgba(ink, alpha):
    return Image.fromarray(gray_alpha(ink, alpha)).convert("RGBA")


def garbage(ink, alpha):
    pixels = np.asarray(rgba(ink, alpha)).copy()
    noise = np.random.default_rng(int(alpha.sum())).integers(0, 256, (*alpha.shape, 3))
    pixels[..., :3] = np.where(alpha[..., None] > 0, pixels[..., :3], noise)
    return Image.fromarray(pixels)


def palette(ink, alpha):
    picture = Image.fromarray((alpha > 0).astype(np.uint8)).convert("P")
    picture.putpalette([ink] * 6)
    picture.info["transparency"] = 0
    return picture


def named_color(ink, alpha):
    """A gray value, or a color, that stands for nothing."""
    picture = Image.fromarray(np.where(alpha > 0, ink, ink ^ 1).astype(np.uint8))
    picture.info["transparency"] = ink ^ 1
    return picture


def named_rgb(ink, alpha):
    picture = named_color(ink, alpha).convert("RGB")
    picture.info["transparency"] = (ink ^ 1,) * 3
    return picture


def wide(ink, alpha):
    values = np.where(alpha > 0, 257 * ink, 257 * ink ^ 1).astype(np.uint16)
    picture = Image.fromarray(values)
    picture.info["transparency"] = 257 * ink ^ 1
    return picture


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    if "transparency" in picture.info:
        options["transparency"] = picture.info["transparency"]
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


FORMATS = {
    "RGBA": (rgba, "PNG", {}),
    "garbage below": (garbage, "PNG", {}),
    "LA": (lambda ink, alpha: Image.fromarray(gray_alpha(ink, alpha)), "PNG", {}),
    "palette": (palette, "PNG", {}),
    "gray and a transparent value": (named_color, "PNG", {}),
    "RGB and a transparent color": (named_rgb, "PNG", {}),
    "16 bits and a transparent value": (wide, "PNG", {}),
    "GIF": (palette, "GIF", {}),
    "WebP": (garbage, "WEBP", {"lossless": True, "exact": True}),
    "TIFF": (rgba, "TIFF", {}),
}


def opened(name, ink, numbers=range(6)):
    make, kind, options = FORMATS[name]
    return [
        image.open_image(encoded(make(ink, shape_of(number)), kind, **options))
        for number in numbers
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("ink", "background"), [(0, 255), (255, 0), (200, 255)])
def test_a_shape_in_the_opacity_alone_is_kept(name, ink, background):
    pictures = opened(name, ink)
    measures = [CODEC.measure(picture) for picture in pictures]
    spec = CODEC.common_spec(measures)
    assert spec.background == background
    lines = CODEC.describe_changes(measures, spec)
    color = image.BACKGROUNDS[background]
    assert f"6 of 6 images are transparent in places and put on {color}" in lines
    for number, picture in enumerate(pictures):
        expected = np.where(shape_of(number) > 0, ink, background)
        found = CODEC.to_array(picture, spec)
        np.testing.assert_allclose(found.mean(-1), expected, atol=1)
        alone = CODEC.to_array(picture, MediaSpec(spec.shape))
        np.testing.assert_array_equal(alone, found)


def test_one_background_shows_black_and_white_shapes():
    pictures = [*opened("RGBA", 0), *opened("LA", 255)]
    spec = CODEC.common_spec([CODEC.measure(picture) for picture in pictures])
    assert spec.background == 128
    assert {len(np.unique(CODEC.to_array(picture, spec))) for picture in pictures} == {2}


@pytest.mark.parametrize("name", ["RGBA", "LA"])
def test_opaque_images_stay_as_they_are(name):
    make, kind, options = FORMATS[name]
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    picture = image.open_image(encoded(make(7, alpha), kind, **options))
    measure = CODEC.measure(picture)
    spec = CODEC.common_spec([measure])
    assert measure.contrasts is None and not CODEC.describe_changes([measure], spec)
    np.testing.assert_array_equal(CODEC.to_array(picture, spec), 7)


@pytest.mark.parametrize(
    ("largest", "dtype", "whole"),
    [
        (1.0, np.float32, 1),
        (200, np.int32, 255),
        (900, np.uint16, 1023),
        (4000, ">u2", 4095),
        (60_000, np.uint16, 65_535),
        (1e6, np.float32, 1e6),
    ],
)
def test_more_than_8_bits_are_converted_by_one_rule(largest, dtype, whole):
    ramps = [
        np.linspace(0, share * largest, SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype)
        for share in (1, 0.5)
    ]
    pictures = [image.open_image(encoded(Image.fromarray(ramp), "TIFF")) for ramp in ramps]
    measures = [CODEC.measure(picture) for picture in pictures]
    spec = CODEC.common_spec(measures)
    assert spec.value_range == (0, whole) and spec.shape == (SIDE, SIDE, 1)
    (line,) = CODEC.describe_changes(measures, spec)
    assert line == f"2 of 2 images are converted to 8 bits: 0 becomes 0 and {whole:g} becomes 255"
    for ramp, picture in zip(ramps, pictures, strict=True):
        expected = ramp.astype(float) * 255 / whole
        np.testing.assert_allclose(CODEC.to_array(picture, spec)[..., 0], expected, atol=1)


def test_negative_values_are_not_cut():
    picture = Image.fromarray(np.linspace(-1000, 2000, 256, dtype=np.float32).reshape(16, 16))
    spec = CODEC.common_spec([CODEC.measure(picture)])
    assert spec.value_range == (-1000, 2000)
    found = CODEC.to_array(picture, spec).ravel()
    assert found[0] == 0 and found[-1] == 255 and len(np.unique(found)) > 190


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_colors_multiplied_by_their_opacity_are_divided_by_it(mode):
    alpha = np.full((8, 8), 128, np.uint8)
    picture = Image.fromarray(gray_alpha(200, alpha)).convert("LA" if mode == "La" else "RGBA")
    found = image.image_to_array(picture.convert(mode), (8, 8, 1), 0)
    np.testing.assert_allclose(found, 100, atol=1)


def test_values_that_are_not_finite_are_refused():
    picture = Image.fromarray(np.full((4, 4), np.nan, np.float32))
    with pytest.raises(OSError, match="not finite"):
        image.open_image(encoded(picture, "TIFF"))


@pytest.mark.parametrize(
    ("height", "width", "kept"),
    [
        *((17, 19, False), (31, 13, False), (1, 32, False), (29, 29, False), (2, 2, False)),
        *((3, 3, False), (13, 26, False), (33, 33, False)),
        *((4, 4, True), (8, 8, True), (28, 28, True), (2, 32, True), (22, 22, True)),
    ],
)
def test_images_of_one_size_are_resized_where_no_patch_fits(height, width, kept):
    measures = [ImageMeasure(height, width, True)] * 3
    spec = CODEC.common_spec(measures)
    assert spec.shape == ((height, width, 1) if kept else (32, 32, 1))
    lines = CODEC.describe_changes(measures, spec)
    resized = ["3 of 3 images are resized to 32x32 pixels (width x height)"]
    if max(height, width) > 32:
        resized[0] += ", 3 of them shrunk, typically from 33x33 (--image_size takes up to 256)"
    assert lines == ([] if kept else resized)
    (side,) = IMAGE.patching.patch_shape(spec.shape, None)
    assert 4 <= spec.shape[0] * spec.shape[1] / side**2 <= 64


@pytest.mark.parametrize(
    ("image_size", "sizes", "shape", "shrunk"),
    [
        (64, [(64, 48)] * 3, (64, 48), None),
        (64, [(62, 62)] * 3, (64, 64), None),  # only patches of 31x31 divide it
        (64, [(20, 30), (100, 80), (70, 60)], (64, 64), ([100, 80], 2)),
        (32, [(20, 30), (100, 80), (70, 60)], (32, 32), ([100, 80], 2)),
        (128, [(200, 10), (300, 300), (129, 64)], (128, 128), ([129, 64], 3)),
        (16, [(28, 28)] * 3, (16, 16), ([28, 28], 3)),
        (256, [(256, 256)] * 2, (256, 256), None),
    ],
)
def test_images_up_to_the_size_asked_for_are_kept(image_size, sizes, shape, shrunk):
    codec = CODEC.with_image_size(image_size)
    measures = [ImageMeasure(*size, True) for size in sizes]
    spec = codec.common_spec(measures)
    assert spec.shape == (*shape, 1)
    expected = shrunk and {"from": shrunk[0], "to": list(shape), "count": shrunk[1]}
    assert codec.shrunk(measures, spec) == expected
    told = "".join(codec.describe_changes(measures, spec))
    assert ("shrunk, typically from" in told) == (shrunk is not None)
    feature = codec.tfds_feature(spec)
    assert codec.declared_spec(feature, None) == MediaSpec(spec.shape)
    assert (CODEC.declared_spec(feature, None) is None) == (max(shape) > 32)
    (side,) = IMAGE.patching.patch_shape(spec.shape, None)
    assert 4 <= shape[0] * shape[1] / side**2 <= 256


def test_no_patch_fits():
    with pytest.raises(UserError, match="images of 29x29 cannot be cut into 4 to 64 patches"):
        IMAGE.patching.patch_shape((29, 29, 1), None)


def test_transparent_files_are_told_of(tmp_path, capsys):
    for number in range(6):
        folder = tmp_path / ("lying" if number % 2 else "standing")
        folder.mkdir(exist_ok=True)
        rgba(0, shape_of(number, 40)).save(folder / f"{number}.png")
    data = load(str(tmp_path))
    assert len(set(data.train.ids) | set(data.test.ids)) == 6
    said = capsys.readouterr().err
    assert "6 of 6 images are transparent in places and put on white" in said
    assert "6 of 6 images are resized to 32x32 pixels" in said
