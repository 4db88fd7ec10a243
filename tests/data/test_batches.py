import itertools
import json

import numpy as np
import pytest

from fm.data import batches, patches
from fm.data.media import layout_of
from fm.errors import UserError

RNG = np.random.default_rng(0)
LENGTH = 32


def documents(count, first):
    """Pieces whose tokens are all different, numbered from `first`."""
    lengths = RNG.integers(1, LENGTH + 1, count)
    starts = first + np.cumsum(lengths) - lengths
    return [np.arange(a, a + n, dtype=np.int32) for a, n in zip(starts, lengths, strict=True)]


ONE, TWO = documents(200, 1), documents(300, 1_000_000)
IMAGES = [RNG.integers(0, 256, (n, 4, 16), np.uint8) for n in (40, 70)]


def text(sources=(ONE, TWO), weights=(0.7, 0.3), batch_size=4, seed=0, **options):
    return batches.text_batches(
        sources, weights=weights, batch_size=batch_size, length=LENGTH, seed=seed, **options
    )


def images(seed=0, sources=IMAGES, **options):
    positions = patches.patch_positions(8, 8, 4)
    return batches.patch_batches(
        sources, positions, batch_size=8, seed=seed, modality="image", **options
    )


def same(left, right):
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and np.array_equal(left[key], right[key])
        for key in left
    )


@pytest.mark.parametrize("make", [text, images])
@pytest.mark.parametrize("taken", [0, 1, 37, 120])
def test_resume_is_exact(make, taken):
    first = make()
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = [next(first) for _ in range(50)]
    resumed = make()
    next(resumed)  # A used iterator must come round too.
    resumed.set_state(state)
    assert all(same(next(resumed), batch) for batch in expected)


@pytest.mark.parametrize("make", [text, images])
def test_seeds(make):
    assert all(same(a, b) for a, b in itertools.islice(zip(make(), make(), strict=True), 20))
    assert not same(next(make(seed=0)), next(make(seed=1)))


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_token_appears_once_per_epoch(epochs):
    found = list(text([ONE], None, epochs=epochs))
    tokens = np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in found])
    expected = np.concatenate(ONE * epochs)
    np.testing.assert_array_equal(np.sort(tokens), np.sort(expected))


def test_epochs_are_shuffled_differently():
    iterator = text([ONE], None, batch_size=1)
    rows = len(list(text([ONE], None, batch_size=1, epochs=1)))
    epochs = [[next(iterator)["tokens"][0, 0] for _ in range(rows)] for _ in range(2)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_segments_and_positions():
    known = {piece[0]: piece for piece in ONE + TWO}
    for batch in itertools.islice(text(), 30):
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            key: ((4, LENGTH), np.int32) for key in ("tokens", "segments", "positions")
        }
        keys = ("tokens", "segments", "positions")
        for tokens, segments, positions in zip(*map(batch.get, keys), strict=True):
            used = segments.max()
            assert set(segments) <= set(range(used + 1)) and used >= 1
            for segment in range(1, used + 1):
                piece = tokens[segments == segment]
                np.testing.assert_array_equal(piece, known[piece[0]])
                np.testing.assert_array_equal(positions[segments == segment], range(len(piece)))
            assert not tokens[segments == 0].any() and not positions[segments == 0].any()


@pytest.mark.parametrize(
    ("sources", "options", "single"),
    [
        ([ONE, TWO], {"share_rows": False}, True),
        ([[np.arange(LENGTH, dtype=np.int32)] * 20], {}, True),
        ([ONE], {}, False),
        ([[np.arange(LENGTH, dtype=np.int32)] * 20, ONE], {}, False),
    ],
)
def test_rows_that_hold_one_chunk_each_have_its_length(sources, options, single):
    for batch in itertools.islice(text(sources, None, **options), 10):
        assert ("length" in batch) == single
        if single:
            assert batch["length"].shape == (4,) and batch["length"].dtype == np.int32
            want = np.arange(LENGTH) < batch["length"][:, None]
            np.testing.assert_array_equal(batch["segments"], want)


def test_weights_are_shares_of_rows():
    rows = np.concatenate([batch["tokens"][:, 0] for batch in itertools.islice(text(), 250)])
    assert np.mean(rows < 1_000_000) == pytest.approx(0.7, abs=0.01)


def test_little_is_padded():
    found = list(text([documents(2000, 1)], None, epochs=1))
    assert np.mean([(batch["segments"] == 0).mean() for batch in found]) < 0.02


def test_images():
    iterator = images(sources=IMAGES[:1], epochs=1)
    found = list(iterator)
    seen = np.concatenate([batch["image"] for batch in found])
    assert sorted(map(bytes, seen)) == sorted(map(bytes, IMAGES[0]))
    first = found[0]
    assert first["image"].shape == (8, 4, 16) and first["image"].dtype == np.uint8
    assert first["segments"].shape == (8, 4) and (first["segments"] == 1).all()
    assert first["positions"].dtype == np.int32
    np.testing.assert_array_equal(first["positions"][3], [[0, 0], [0, 1], [1, 0], [1, 1]])


def test_patches_of_another_modality():
    patches = np.random.default_rng(0).random((6, 3, 5), np.float32)
    positions = np.arange(3)[:, None]
    given = {"batch_size": 6, "seed": 0, "modality": "audio", "epochs": 1}
    batch = next(batches.patch_batches([patches], positions, **given))
    assert batch["audio"].dtype == np.float32 and batch["positions"].shape == (6, 3, 1)
    assert sorted(map(bytes, batch["audio"])) == sorted(map(bytes, patches))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: text([ONE, []]), "is empty"),
        (lambda: text([]), "is empty"),
        (lambda: text(weights=[1]), "weights"),
        (lambda: text(weights=[1, 0]), "weights"),
        (lambda: text(epochs=2), "epochs"),
        (lambda: images(sources=[IMAGES[0], IMAGES[1][:, :2]]), "positions"),
        (lambda: images(sources=[IMAGES[0][:, :2]]), "positions"),
    ],
)
def test_errors(make, expected):
    with pytest.raises(UserError, match=expected):
        make()


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_patches_read_on_demand_equal_those_in_memory(modality):
    shapes = {"image": (16, 16, 3), "audio": (4000,), "video": (4, 16, 16, 1)}
    dtype, rate = (np.int16, 8000) if modality == "audio" else (np.uint8, 8)
    examples = RNG.integers(0, 200, (23, *shapes[modality])).astype(dtype)
    layout = layout_of(modality, shapes[modality], rate)
    read, idx = [], np.arange(23)[::-1]

    def inputs(indices):
        read.append(len(indices))
        return examples[indices]

    given = {"batch_size": 4, "seed": 3, "modality": modality}
    memory = layout.to_patches(examples[idx])
    lazy = batches.PatchesOnDemand(inputs, idx, layout)
    assert not read and lazy.shape == memory.shape
    expected = batches.patch_batches([memory], layout.positions(), **given)
    found = batches.patch_batches([lazy], layout.positions(), **given)
    assert found.from_disk and not expected.from_disk
    assert all(same(next(found), next(expected)) for _ in range(12)) and set(read) == {1}
