"""`transformers` as a peer of generation: the same weights must give the same tokens."""

import numpy as np
import pytest

from fm.benchmark import generation
from fm.benchmark.core import BenchConfig
from fm.model.flops import forward_flops

QUICK = BenchConfig(scale="quick")


def test_the_size_is_that_of_smollm2_135m():
    kernels = 576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536
    per_token = 2 * (30 * kernels + 576 * 49152)
    # Attention's own products come on top: scores and values, of all keys of the length.
    got = forward_flops(generation.SMOLLM2, 1, num_predictions=1)
    assert 0 <= got - per_token <= 30 * 4 * 9 * 64


def test_we_and_transformers_write_the_same():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (case,) = generation.cases(QUICK)
    ours = case.candidates["generate"]().call()
    theirs = case.peers["transformers"]["generate"]().call().numpy()
    assert theirs.shape == (2, 9) and len({tuple(row) for row in theirs.tolist()}) == 2
    np.testing.assert_array_equal(np.stack(ours), theirs[:, 5:])


def test_generation_is_among_the_default_cases():
    names = [case.key for case in generation.cases(BenchConfig())]
    for dtype in ("float32", "bfloat16"):
        for part in ("B1 L16 + 64", "B8 L16 + 64", "B1 L512 + 1"):
            assert f"decode generate, SmolLM2-135M {part} {dtype}" in names
