import numpy as np
import sacrebleu

from fm.evaluation.metrics import chrf, first_sentences, nearest_neighbor_targets


def test_chrf_is_that_of_sacrebleu():
    targets = ["Return the mean.", "Sort a list.", "Open the file."]
    written = ["Return the mean.", "Sort the lists.", ""]
    scores = chrf(written, targets)
    expected = [
        sacrebleu.sentence_chrf(w, [t]).score / 100 for w, t in zip(written, targets, strict=True)
    ]
    np.testing.assert_allclose(scores, expected)
    assert scores[0] == 1.0 and 0 < scores[1] < 1 and scores[2] == 0.0


def test_first_sentences():
    texts = ["One, e.g. this.  Two.", "No end\n\nNext", "What? Yes.", ""]
    assert first_sentences(texts) == ["One, e.g. this.", "No end", "What?", ""]


def test_nearest_targets():
    train = ["how to sort a long list", "open the file for reading", "the mean of an array"]
    found = nearest_neighbor_targets(
        train, ["s", "o", "m"], ["reading a file", "a mean value", "sort it"]
    )
    assert found == ["o", "m", "s"]
