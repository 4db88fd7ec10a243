import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from fm.data import decontamination
from fm.data.datasets import Split, without
from fm.data.dedup import image as image_overlap
from fm.data.load import load
from fm.errors import UserError

RNG = np.random.default_rng(0)
WORDS = [f"word{number}" for number in range(5000)]


def prose(count):
    return " ".join(RNG.choice(WORDS, count))


def split(contents):
    """A split held in memory."""
    read = {
        list: lambda rows: [contents[row] for row in rows],
        np.ndarray: lambda rows: contents[rows],
    }[type(contents)]
    ids = tuple(map(str, range(len(contents))))
    return Split(None, ids, np.arange(len(contents)), read)


def search_texts(pretrain, test):
    return decontamination.find_duplicates(split(pretrain), split(test), "text")


def test_planted_copies_of_text_are_found():
    pretrain, test = [prose(200) for _ in range(50)], [prose(100) for _ in range(20)]
    pretrain[7] = prose(50) + " " + test[3].upper().replace(" ", ", ", 5) + "! " + prose(50)
    pretrain[30] = " ".join(test[4].split()[40:53])
    pretrain[31] = " ".join(test[5].split()[40:52])  # Twelve words are too few.
    found = search_texts(pretrain, test)
    assert found.duplicate_idx.tolist() == [7, 30]
    assert (found.num_checked, found.num_found) == (20, 2)
    assert "13 words" in found.method


def test_runs_over_two_texts_do_not_count():
    words = prose(26).split()
    halves = [" ".join(words[:7]), " ".join(words[7:])]
    assert search_texts(halves, [" ".join(words[:13])]).num_found == 0


def test_short_texts_match_as_a_whole():
    found = search_texts(["Great film!", "great films", "", "!"], ["great  FILM", "", "?"])
    assert found.duplicate_idx.tolist() == [0] and found.num_found == 1


def test_phrases_of_the_genre_do_not_count():
    phrase = prose(13)
    pretrain = [f"{prose(20)} {phrase} {prose(20)}" for _ in range(11)]
    test = [f"{prose(20)} {phrase} {prose(20)}"]
    assert search_texts(pretrain, test).num_found == 0
    assert search_texts(pretrain[:10], test).duplicate_idx.tolist() == list(range(10))


def compressed(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "JPEG", quality=90)
    return np.asarray(Image.open(buffer))[..., None]


CHANGES = {
    "copy": lambda image: image,
    "compressed": compressed,
    "brighter": lambda image: np.minimum(image, 245) + 10,
    "noisy": lambda image: np.clip(image + RNG.normal(0, 2, image.shape), 0, 255),
    "colour": lambda image: np.repeat(image, 3, axis=-1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_of_digits_are_found(change):
    dataset = load("digits")
    train, test = (part.inputs(range(300)) for part in (dataset.train, dataset.test))
    changed = np.stack([CHANGES[change](image) for image in test[:40]]).astype(np.uint8)
    if changed.shape[-1] == 3:
        train = np.repeat(train, 3, axis=-1)
    found = decontamination.find_duplicates(
        split(np.concatenate([train, changed])), split(test), "image"
    )
    assert set(found.duplicate_idx) <= set(range(300, 340)), "a distinct digit was taken for a copy"
    assert len(found.duplicate_idx) >= 38 and found.num_found >= 38 and found.num_checked == 300


def test_distinct_digits_are_not_flagged():
    dataset = load("digits")
    found = decontamination.find_duplicates(dataset.train, dataset.test, "image")
    assert (found.num_checked, found.num_found, len(found.duplicate_idx)) == (394, 0, 0)


@pytest.mark.parametrize("change", [*CHANGES, "later", "backwards"])
def test_planted_copies_of_clips_are_found(change):
    train, test = (
        part.clips(range(100)) for part in (load("moving_digits").train, load("moving_digits").test)
    )
    planted = test[:20]
    if change == "later":
        # What the test clip shows from its third frame on, and then something else.
        changed = np.concatenate([planted[:, 2:], train[:20, :2]], axis=1)
    elif change == "backwards":
        changed = planted[:, ::-1]
    else:
        frames = [[CHANGES[change](frame) for frame in clip] for clip in planted]
        changed = np.array(frames).astype(np.uint8)
    if changed.shape[-1] == 3:
        train = np.repeat(train, 3, axis=-1)
    found = decontamination.find_duplicates(
        split(np.concatenate([train, changed])), split(test), "video"
    )
    assert set(found.duplicate_idx) <= set(range(100, 120)), "a distinct clip was taken for a copy"
    assert len(found.duplicate_idx) == (0 if change == "backwards" else 20), found.duplicate_idx
    assert "overlap in time" in found.method and found.num_checked == 100


def test_sizes_may_differ():
    test = load("digits").test.inputs(range(30))
    larger = test.repeat(8, axis=1).repeat(8, axis=2)
    assert decontamination.find_duplicates(split(larger), split(test), "image").num_found >= 20


def test_hashes_are_those_of_imagehash():
    images = load("digits").test.inputs(range(20))
    own = image_overlap.perceptual_hashes(images)
    theirs = [imagehash.phash(Image.fromarray(image[..., 0])) for image in images]
    for a in range(20):
        for b in range(20):
            assert int(np.bitwise_count(own[a] ^ own[b])) == theirs[a] - theirs[b]


def test_unknown_modality():
    with pytest.raises(UserError, match="accepted: text, "):
        decontamination.find_duplicates(split(["a"]), split(["b"]), "smell")


def test_removed_rows_go():
    pretrain, test = [prose(30) for _ in range(5)], [prose(30)]
    pretrain[2] = test[0]
    whole = split(pretrain)
    found = decontamination.find_duplicates(whole, split(test), "text")
    rest = without(whole, found.duplicate_idx)
    assert (
        len(rest) == 4 and decontamination.find_duplicates(rest, split(test), "text").num_found == 0
    )
