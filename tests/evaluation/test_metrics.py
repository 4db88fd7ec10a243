import math

import numpy as np
import pytest
import sacrebleu
from scipy import stats

from fm.evaluation.metrics import bits_per_byte, bits_per_dimension, chrf


def test_bits_per_byte_of_a_uniform_guess_is_eight():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    with pytest.raises(ValueError, match="positive"):
        bits_per_byte(1.0, 0)


def test_bits_per_dimension_of_uniform_densities():
    assert bits_per_dimension(0.0) == 8
    # A density of 2 on half the range: one bit less.
    assert bits_per_dimension(-math.log(2)) == pytest.approx(7)
    assert bits_per_dimension(0.0, bins=32) == 5


def test_bits_per_dimension_bounds_the_discrete_code_length():
    """A density narrower than its levels cannot beat the mass it puts on a level."""
    levels = np.arange(256)
    density = stats.norm(0.5, 0.1)
    mass = density.cdf((levels + 1) / 256) - density.cdf(levels / 256)
    mass /= mass.sum()
    values = np.random.default_rng(0).choice(256, size=20_000, p=mass)
    dequantized = (values + np.random.default_rng(1).random(values.size)) / 256
    bits = bits_per_dimension(float(-density.logpdf(dequantized).mean()))
    exact = float(-np.log2(mass[values]).mean())
    assert exact - 1e-3 < bits < exact + 0.01


def test_chrf_is_that_of_sacrebleu():
    references = ["Return the mean.", "Sort a list.", "Open the file."]
    generated = ["Return the mean.", "Sort the lists.", ""]
    scores = chrf(generated, references)
    pairs = zip(generated, references, strict=True)
    expected = [sacrebleu.sentence_chrf(text, [wanted]).score / 100 for text, wanted in pairs]
    np.testing.assert_allclose(scores, expected)
    assert scores[0] == 1.0 and 0 < scores[1] < 1 and scores[2] == 0.0
