"""PyTorch as a peer: it must do the same work, or the ratio means nothing."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fm.benchmark.core import BenchConfig  # noqa: E402
from fm.benchmark.peers import gpt, pytorch  # noqa: E402
from fm.benchmark.suites import SUITES, train_step  # noqa: E402
from fm.training import multitask  # noqa: E402
from tests.training.helpers_models import params  # noqa: E402

QUICK = BenchConfig(scale="quick")


@pytest.mark.parametrize("name", ["matmul", "attention", "decode", "cross_entropy"])
def test_candidate_and_pytorch_agree(name):
    for case in (case for case in SUITES[name].cases(QUICK) if "torch" in case.peers):
        ours = jax.tree.leaves(next(iter(case.candidates.values()))().call())
        theirs = jax.tree.leaves(next(iter(case.peers["torch"].values()))().call())
        theirs = [each.detach().float().numpy() for each in theirs]
        tolerance = 2e-5 if case.dtype == "float32" else 2e-2
        if name in ("attention", "decode"):
            theirs = [np.swapaxes(each, 1, 2) for each in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            scale = np.abs(other).max()
            mine = np.asarray(mine, np.float32)
            np.testing.assert_allclose(mine, other, atol=tolerance * scale, rtol=tolerance)


def problem(dtype="float32", kv_heads=2):
    each = train_step.step_shape(2, 32, 16, 3, 64, num_heads=2)
    model = dataclasses.replace(each.model, dtype=dtype, num_kv_heads=kv_heads)
    return dataclasses.replace(each, model=model), train_step.random_tokens(each, QUICK)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_loss_and_gradients_are_those_of_pytorch(kv_heads):
    each, tokens = problem(kv_heads=kv_heads)
    drawn = params(each.model)

    def ours(drawn):
        batch = train_step.whole_rows(tokens)
        return multitask.loss(drawn, batch, jax.random.key(0), each.model, train_step.CAUSAL_LM)[0]

    value, gradient = jax.value_and_grad(ours)(drawn)
    weights = gpt.to_tensors(drawn, each.model)
    rope = gpt.rotary_cos_sin(each.seq_len, each.model)
    found = gpt.loss(weights, torch.tensor(tokens).long(), rope, each.model)
    found.backward()
    np.testing.assert_allclose(found.item(), value, rtol=1e-5)
    for n, layer in enumerate(weights["layers"]):
        for name, w in layer.items():
            expected = np.asarray(gradient["layers"][name][n])
            np.testing.assert_allclose(w.grad, expected, rtol=1e-3, atol=1e-5 * expected.max())
    for name, w in weights["streams"].items():
        expected = np.asarray(gradient["streams"][name])
        np.testing.assert_allclose(w.grad, expected, rtol=1e-3, atol=1e-5 * expected.max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_train_step_learns(dtype):
    each, tokens = problem(dtype)
    optimizer_config = dataclasses.replace(train_step.ADAMW, learning_rate=0.01)
    candidate = gpt.train_step(
        params(each.model), tokens, each.model, optimizer_config, compiled=False
    )
    first, *_, last = [float(candidate.call().detach()) for _ in range(30)]
    assert last < first - 0.5
    assert candidate.chained


def test_pytorch_errors_become_not_implemented():
    def fails():
        raise RuntimeError("no C++ compiler\nmore")

    with pytest.raises(NotImplementedError, match=r"RuntimeError: no C\+\+ compiler$"):
        pytorch.candidate(fails)


@pytest.mark.slow
def test_torch_compile_runs_or_gives_its_reason():
    each, tokens = problem()
    try:
        candidate = gpt.train_step(
            params(each.model), tokens, each.model, train_step.ADAMW, compiled=True
        )
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    eager = gpt.train_step(params(each.model), tokens, each.model, train_step.ADAMW, compiled=False)
    np.testing.assert_allclose(candidate.call().item(), eager.call().item(), rtol=1e-4)
