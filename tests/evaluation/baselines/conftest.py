import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def one_blas_thread():
    """As in a study: L-BFGS on short vectors spends its time waiting for threads."""
    with threadpool_limits(1, user_api="blas"):
        yield
