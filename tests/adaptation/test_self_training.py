import numpy as np

from fm.adaptation.self_training import max_examples, pseudo_labels, repeats


def test_the_most_confident_of_each_class_equally_many():
    first = np.array([0.99, 0.6, 0.9, 0.8, 0.2, 0.4, 0.7, 0.95])
    chosen, classes = pseudo_labels(np.stack([first, 1 - first], axis=1), share=0.5)
    assert chosen.tolist() == [0, 4, 5, 7] and classes.tolist() == [0, 1, 1, 0]


def test_a_class_predicted_once_limits_all():
    probabilities = np.tile([0.9, 0.1, 0.0], (10, 1))
    probabilities[3] = [0.2, 0.8, 0.0]
    chosen, classes = pseudo_labels(probabilities)
    assert sorted(classes) == [0, 1] and 3 in chosen


def test_labels_are_a_third_at_least_and_all_fit():
    for labels, pseudo in ((20, 512), (400, 512), (7, 3), (512, 512)):
        times = repeats(labels, pseudo)
        assert 2 * times * labels >= pseudo
        assert times * labels + pseudo <= max_examples(labels)
