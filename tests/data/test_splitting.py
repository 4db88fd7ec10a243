import numpy as np

from fm.data import splitting

DIGESTS = [splitting.text_digest(f"text {number}") for number in range(2000)]


def test_the_split_depends_on_content_not_on_order():
    train, test = splitting.split_by_hash(DIGESTS, None, 0.2)
    assert len(train) + len(test) == 2000 and 330 < len(test) < 470
    order = np.random.default_rng(0).permutation(2000)
    _, moved = splitting.split_by_hash([DIGESTS[i] for i in order], None, 0.2)
    assert {DIGESTS[i] for i in test} == {DIGESTS[order[i]] for i in moved}


def test_copies_stay_on_one_side():
    train, test = splitting.split_by_hash(DIGESTS + DIGESTS, None, 0.2)
    both = DIGESTS + DIGESTS
    assert not {both[i] for i in train} & {both[i] for i in test}


def test_every_label_lands_on_both_sides():
    labels = [number // 2 for number in range(2000)]
    train, test = splitting.split_by_hash(DIGESTS, labels, 0.2)
    for side in (train, test):
        assert {labels[i] for i in side} == set(labels)


def test_images_of_other_shape_have_other_digests():
    pixels = np.arange(64, dtype=np.uint8)
    assert splitting.array_digest(pixels.reshape(8, 8, 1)) != splitting.array_digest(
        pixels.reshape(4, 16, 1)
    )


def test_keys_are_unique():
    keys = [key for key, _ in splitting.with_unique_keys([("a", 0), ("b", 1), ("a", 2)])]
    assert len(set(keys)) == 3
