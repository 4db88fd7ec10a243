import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from fm.evaluation.text_quality.novelty import TrainingNgrams

TRAIN = ["the cat sat on the mat and slept", "a dog ran over the hill"]


def split(*texts):
    return [text.split() for text in texts]


def test_novel_runs_by_hand():
    seen = TrainingNgrams(TRAIN, n=3)
    new, total = seen.count_novel(
        split("the cat sat still", "a dog ran over", "sat on", "an owl sat on it")
    )
    assert total.tolist() == [2, 2, 0, 3]
    assert new.tolist() == [1, 0, 0, 3]
    assert len(seen) == 14


def test_the_longest_copy_by_hand():
    longest = TrainingNgrams(TRAIN, n=3).longest_copies(
        split("then the cat sat on the hill", "dog ran over the mat and slept", "the cat", "x y z")
    )
    assert longest.tolist() == [5, 4, 0, 0]


def test_no_run_reaches_over_the_end_of_a_text():
    seen = TrainingNgrams(["one two three", "four five six"], n=2)
    assert seen.count_novel(split("three four"))[0].tolist() == [1]
    assert seen.longest_copies(split("two three four five")).tolist() == [2]


def test_a_whole_training_text_is_copied_to_its_last_word():
    seen = TrainingNgrams(TRAIN, n=4)
    assert seen.longest_copies([TRAIN[1].split(), TRAIN[0].split() * 2]).tolist() == [6, 8]


@settings(max_examples=60)
@given(
    some.lists(some.text("abc", max_size=12), min_size=1, max_size=4),
    some.text("abcd", max_size=10),
)
def test_against_brute_force(train, text):
    n, own = 2, list(text)
    seen = TrainingNgrams([" ".join(each) for each in train], n=n)
    every = {each[at : at + size] for each in train for size in range(1, 13) for at in range(12)}
    runs = [text[at : at + n] for at in range(len(text) - n + 1)]
    new, total = seen.count_novel([own])
    assert total[0] == len(runs)
    assert new[0] == sum(run not in every for run in runs)
    copies = [
        size
        for size in range(n, 11)
        for at in range(len(text) - size + 1)
        if text[at : at + size] in every
    ]
    assert seen.longest_copies([own])[0] == max(copies, default=0)


def test_ten_times_the_text_takes_no_more_than_its_words():
    seen = TrainingNgrams([" ".join(map(str, range(1000)))] * 10)
    held = sum(each.nbytes for each in vars(seen).values() if isinstance(each, np.ndarray))
    assert held <= 17 * len(seen) + 8 * 1010
