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


def test_the_development_part_is_by_content_and_within_its_limits():
    train, development = splitting.split_development(DIGESTS, None)
    assert len(development) == 400 and sorted([*train, *development]) == list(range(2000))
    _, small = splitting.split_development(DIGESTS, None, max_items=50)
    assert set(small) < set(development) and len(small) == 50
    order = np.random.default_rng(0).permutation(2000)
    _, moved = splitting.split_development([DIGESTS[i] for i in order], None)
    assert set(development) == {order[i] for i in moved}
    _, more = splitting.split_development(DIGESTS[:1000], None, max_items=100)
    _, grown = splitting.split_development(DIGESTS, None, max_items=100)
    assert len({i for i in grown if i < 1000} - set(more)) == 0
    _, held_out = splitting.split_by_hash(DIGESTS, None, 0.2)
    assert 0.1 < np.isin(development, held_out).mean() < 0.3  # another draw than the test split's


def test_the_development_part_leaves_labels_copies_and_the_unlabeled_in_training():
    twice = DIGESTS[:300] * 2
    train, development = splitting.split_development(twice, [0] * 600)
    assert len(development) == 120
    assert not {twice[i] for i in train} & {twice[i] for i in development}
    labels = [number // 2 for number in range(2000)]
    train, development = splitting.split_development(DIGESTS, labels)
    assert {labels[i] for i in train} == set(labels) and len(development) == 400
    unlabeled = [-1] * 1500 + [0] * 500
    _, development = splitting.split_development(DIGESTS, unlabeled)
    assert len(development) == 100 and min(development) >= 1500


def test_the_development_part_keeps_groups_whole():
    groups = [f"voice {number % 13}" for number in range(2000)]
    train, development = splitting.split_development(DIGESTS, None, groups)
    assert not {groups[i] for i in train} & {groups[i] for i in development}
    assert len(development) == 308  # two of 154
    assert not len(splitting.split_development(DIGESTS, None, ["a", "b"] * 1000)[1])
