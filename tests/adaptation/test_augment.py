import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation.augment import AUGMENTATIONS, augment
from fm.adaptation.finetune import FinetuneConfig, FinetuningRun
from fm.data.media import PatchLayout, layout_of
from fm.errors import UserError
from tests.adaptation.helpers_models import PICTURES, params

LAYOUTS = {
    "affine_erase": layout_of("image", (8, 8, 1), None, 2),
    "spec_augment": PatchLayout("audio", (1600,), (40, 2), 8000.0),
    "shift_erase": layout_of("video", (4, 8, 8, 1), 8.0),
}


def patches_of(name, count=6):
    """Random patches of an augmentation's modality."""
    layout, draws = LAYOUTS[name], np.random.default_rng(0)
    if layout.modality == "audio":
        return draws.random((count, 6, layout.patch_dim), np.float32), layout
    pixels = draws.integers(0, 256, (count, *layout.shape)).astype(np.uint8)
    return layout.to_patches(pixels), layout


def changed(name, patches, layout, seed=0):
    batch = {layout.modality: jnp.asarray(patches), "segments": jnp.ones(patches.shape[:2])}
    return np.asarray(augment(jax.random.key(seed), batch, name, layout)[layout.modality])


def test_every_augmentation_is_tried_here():
    assert LAYOUTS.keys() == AUGMENTATIONS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_seed_same_patches_of_the_same_kind(name):
    patches, layout = patches_of(name)
    first = changed(name, patches, layout)
    assert first.shape == patches.shape and first.dtype == patches.dtype
    assert np.array_equal(first, changed(name, patches, layout))
    assert not np.array_equal(first, changed(name, patches, layout, seed=1))
    assert all(not np.array_equal(new, old) for new, old in zip(first, patches, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_example_without_contrast_stays_as_it_is(name):
    patches, layout = patches_of(name)
    flat = np.full_like(patches, 7)
    np.testing.assert_allclose(changed(name, flat, layout), flat, rtol=1e-6)


def test_a_dot_moves_by_a_patch_at_most():
    layout = layout_of("image", (16, 16, 1), None, 2)
    image = np.zeros((200, 16, 16, 1), np.uint8)
    image[:, 8, 8] = 255
    moved = changed("affine_erase", layout.to_patches(image), layout)
    images = layout.from_patches(moved / 255)[..., 0].astype(float)
    rows, columns = (np.tensordot(images, grid) for grid in np.indices((16, 16)))
    bright = images.max(axis=(1, 2)) > 100
    shifts = np.stack([rows, columns])[:, bright] / images.sum(axis=(1, 2))[bright] - 8
    assert bright.sum() > 20 and np.abs(shifts).max() < 3 and np.abs(shifts).max() > 1


def test_a_mask_covers_a_quarter_of_time_and_of_bins_at_most():
    patches, layout = patches_of("spec_augment", count=100)
    frames = changed("spec_augment", patches, layout).reshape(100, 12, 40)
    masked_frames = (frames.std(axis=2) < 1e-6).sum(axis=1)
    masked_bins = (frames.std(axis=1) < 1e-6).sum(axis=1)
    assert masked_frames.max() == 3 and masked_frames.min() == 0
    assert 5 < masked_bins.max() <= 10


def test_a_run_needs_the_layout():
    config = FinetuneConfig(augment="affine_erase")
    with pytest.raises(UserError, match="augment='affine_erase': the model's patch layout"):
        FinetuningRun(
            params(PICTURES), {}, np.zeros(2), PICTURES, config, num_classes=2, seed=0, pad_to=2
        )
