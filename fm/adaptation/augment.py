"""Random changes of training examples that keep their class, made inside the compiled step.

An augmentation is a pure function of a random key and a batch of patches. To add one, put an
`Augmentation` into `AUGMENTATIONS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fm.data.media import PatchLayout
from fm.data.patches import clips_to_tubelets, patchify, tubelets_to_clips, unpatchify

# Largest rotation of an image, change of its size, and share of an axis that is masked.
MAX_DEGREES, MAX_SCALING, MAX_MASKED = 15.0, 0.1, 0.25
# Of images and clips: share of the examples in which a rectangle is erased, and its longest side.
ERASED_EXAMPLES, MAX_ERASED_SIDE = 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation of one modality.

    Attributes:
      modality: whose patches it changes.
      description: one line for help and reports.
      apply: (key, patches [B, L, P], layout) -> patches of the same shape and dtype.
    """

    modality: str
    description: str
    apply: Callable[[jax.Array, jax.Array, PatchLayout], jax.Array]


def augment(
    rng: jax.Array, batch: dict[str, jax.Array], name: str, layout: PatchLayout
) -> dict[str, jax.Array]:
    """Returns the batch with its patches changed by the augmentation `name`, jittable."""
    augmentation = AUGMENTATIONS[name]
    patches = batch[augmentation.modality]
    return batch | {augmentation.modality: augmentation.apply(rng, patches, layout)}


def augment_images(rng: jax.Array, patches: jax.Array, layout: PatchLayout) -> jax.Array:
    """Returns images rotated, scaled and shifted by up to a patch, with rectangles erased.

    Erasing is that of Zhong et al. (2020). Pixels from beyond the edge repeat the edge.
    """
    (side,), (height, width, _) = layout.patch_shape, layout.shape
    geometry, erasing = jax.random.split(rng)
    images: Any = unpatchify(_any(patches), side, height, width)
    images = _affine(geometry, images.astype(jnp.float32), max_shift=side)
    images = _as(_erase(erasing, images, axes=(1, 2)), patches)
    return _any(patchify(_any(images), side))


def augment_clips(rng: jax.Array, patches: jax.Array, layout: PatchLayout) -> jax.Array:
    """Returns clips shifted in time and space by up to a tubelet, with rectangles erased."""
    moving, erasing = jax.random.split(rng)
    clips: Any = tubelets_to_clips(_any(patches), layout.patch_shape, layout.shape)
    clips = _shift(moving, clips.astype(jnp.float32), layout.patch_shape)
    clips = _as(_erase(erasing, clips, axes=(2, 3)), patches)
    return _any(clips_to_tubelets(_any(clips), layout.patch_shape))


def augment_spectrograms(rng: jax.Array, patches: jax.Array, layout: PatchLayout) -> jax.Array:
    """Returns log-mel patches shifted in time by up to two, a span of time and one of bins masked.

    The masks are those of SpecAugment (Park et al. 2019), filled with the sound's mean.
    """
    bins, frames_per_patch = layout.patch_shape
    moving, in_time, in_bins = jax.random.split(rng, 3)
    sounds_BTF = patches.reshape(len(patches), -1, bins)
    sounds_BTF = _shift(moving, sounds_BTF, (2 * frames_per_patch, 0))
    sounds_BTF = _mask_span(in_time, sounds_BTF, axis=1)
    return _mask_span(in_bins, sounds_BTF, axis=2).reshape(patches.shape)


AUGMENTATIONS: dict[str, Augmentation] = {
    "affine_erase": Augmentation(
        "image", "small rotations, scalings and shifts, random erasing", augment_images
    ),
    "spec_augment": Augmentation(
        "audio", "shifts in time, masks of time and frequency", augment_spectrograms
    ),
    "shift_erase": Augmentation("video", "shifts in time and space, random erasing", augment_clips),
}


def _any(array: Any) -> Any:
    """The rearrangements of `fm.data.patches` take JAX arrays as well as NumPy's."""
    return array


def _as(changed: jax.Array, patches: jax.Array) -> jax.Array:
    if patches.dtype == jnp.uint8:
        changed = jnp.clip(jnp.rint(changed), 0, 255)
    return changed.astype(patches.dtype)


def _affine(rng: jax.Array, images_BHWC: jax.Array, max_shift: int) -> jax.Array:
    B, H, W, _ = images_BHWC.shape
    draws_B4 = jax.random.uniform(rng, (B, 4), minval=-1.0)
    angle_B = jnp.radians(MAX_DEGREES) * draws_B4[:, 0]
    scale_B = 1 + MAX_SCALING * draws_B4[:, 1]
    centers = jnp.array([(H - 1) / 2, (W - 1) / 2])
    grid_HW2 = jnp.stack(jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij"), -1) - centers

    def one(image_HWC, angle, scale, shift_2):
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        source_HW2 = grid_HW2 @ turn / scale + centers + max_shift * shift_2

        def channel(image_HW):
            return map_coordinates(image_HW, list(jnp.moveaxis(source_HW2, -1, 0)), 1, "nearest")

        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image_HWC)

    return jax.vmap(one)(images_BHWC, angle_B, scale_B, draws_B4[:, 2:])


def _shift(rng: jax.Array, x: jax.Array, most: tuple[int, ...]) -> jax.Array:
    """Shifts axes 1, 2, ... of each example by up to `most` places; the edge is repeated."""
    for axis, limit in enumerate(most, start=1):
        size = x.shape[axis]
        key = jax.random.fold_in(rng, axis)
        by_B1 = jax.random.randint(key, (len(x), 1), -limit, limit + 1)
        source_BA = jnp.clip(jnp.arange(size) + by_B1, 0, size - 1)
        x = jax.vmap(lambda each, idx, axis=axis: jnp.take(each, idx, axis=axis - 1))(x, source_BA)
    return x


def _span(rng: jax.Array, B: int, size: int, longest: float) -> jax.Array:
    """Returns bool [B, size], true in a random span of up to `longest` of the axis."""
    length_key, start_key = jax.random.split(rng)
    length_B1 = jax.random.randint(length_key, (B, 1), 0, math.floor(longest * size) + 1)
    start_B1 = jax.random.uniform(start_key, (B, 1)) * (size - length_B1 + 1)
    place = jnp.arange(size)
    return (place >= jnp.floor(start_B1)) & (place < jnp.floor(start_B1) + length_B1)


def _mask_span(rng: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    masked_BA = _span(rng, len(x), x.shape[axis], MAX_MASKED)
    return jnp.where(_along(masked_BA, axis, x.ndim), _means(x), x)


def _erase(rng: jax.Array, x: jax.Array, axes: tuple[int, int]) -> jax.Array:
    erased = jax.random.bernoulli(rng, ERASED_EXAMPLES, (len(x), *[1] * (x.ndim - 1)))
    for axis in axes:
        span = _span(jax.random.fold_in(rng, axis), len(x), x.shape[axis], MAX_ERASED_SIDE)
        erased &= _along(span, axis, x.ndim)
    return jnp.where(erased, _means(x), x)


def _along(mask_BA: jax.Array, axis: int, ndim: int) -> jax.Array:
    shape = [1] * ndim
    shape[0], shape[axis] = mask_BA.shape
    return mask_BA.reshape(shape)


def _means(x: jax.Array) -> jax.Array:
    return x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
