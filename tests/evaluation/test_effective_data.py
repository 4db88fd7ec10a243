import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.effective_data import data_at_loss, fit_transfer_law, transferred_data

PARAMETERS = np.array([1e4, 1e5, 1e6])
DATA = np.geomspace(1e3, 1e7, 9)
K, A, B = 20.0, 0.3, 0.2


def scratch_loss(parameters, data):
    return 2.0 * data**-0.1 * (parameters / 1e4) ** -0.05


def planted():
    """Losses from scratch and of pretrained models [N, D] by the law."""
    n, d = np.meshgrid(PARAMETERS, DATA, indexing="ij")
    return scratch_loss(n, d), scratch_loss(n, d + K * d**A * n**B)


def test_a_loss_is_that_of_the_data_it_was_measured_with():
    losses = scratch_loss(1e4, DATA)
    for data, loss in zip(DATA, losses, strict=True):
        assert data_at_loss(DATA, losses, loss) == pytest.approx(data)
    # A power law is a line in the logarithms.
    assert data_at_loss(DATA, losses, scratch_loss(1e4, 3e5)) == pytest.approx(3e5)
    assert np.isnan(data_at_loss(DATA, losses, 0.99 * losses[-1]))
    assert np.isnan(data_at_loss(DATA, losses, 1.01 * losses[0]))


def test_of_equal_losses_the_least_data_counts():
    assert data_at_loss(
        np.array([1.0, 10.0, 100.0]), np.array([2.0, 1.0, 1.5]), 1.0
    ) == pytest.approx(10)


def test_the_planted_law_is_found():
    transferred = transferred_data(DATA, *planted())
    n, d = np.meshgrid(PARAMETERS, DATA, indexing="ij")
    known = ~np.isnan(transferred)
    assert known.sum() > 15
    np.testing.assert_allclose(transferred[known], (K * d**A * n**B)[known], rtol=1e-6)
    law = fit_transfer_law(PARAMETERS, DATA, transferred)
    assert (law.data_exponent, law.parameters_exponent) == pytest.approx((A, B), abs=1e-6)
    assert np.exp(law.log_k) == pytest.approx(K) and law.r2 == pytest.approx(1.0)


def test_where_pretraining_hurts_less_than_nothing_is_transferred():
    scratch = scratch_loss(1e4, DATA)[None]
    transferred = transferred_data(DATA, scratch, scratch * 1.05)
    assert np.isnan(transferred[0, 0]) and (transferred[0, 1:] < 0).all()
    with pytest.raises(UserError, match="0 points"):
        fit_transfer_law(PARAMETERS[:1], DATA, transferred)
