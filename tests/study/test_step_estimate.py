"""What a training step takes: measured once, or estimated where it is too large to try."""

import dataclasses

import numpy as np
import pytest

from fm.data.media import layout_of
from fm.study import step_estimate
from fm.study.joint_pretraining import Source
from fm.study.step_estimate import estimate_step, joint_step, recipe_step, text_batch
from fm.training import train_state
from tests.study.helpers_multitask import JOINT
from tests.study.helpers_study import images, recipe, split, texts

LAYOUT = layout_of("image", (8, 8, 1), None)


def test_a_step_is_measured_once_and_its_parameters_counted(monkeypatch):
    corpus, own = split(images(8, 0)[0], None), recipe("image", batch_size=6)
    found = recipe_step(own, "image", corpus)
    # Images of 8x8 in patches of 4x4.
    assert found.measured and found.tokens == 6 * 4 and found.seconds > 0
    assert found.memory_bytes > found.state_bytes >= 8 * found.num_params
    assert found.flops_per_second == found.flops / found.seconds
    monkeypatch.setattr(step_estimate, "_run_steps", None)
    assert recipe_step(own, "image", corpus) == found


def test_parameters_are_those_of_the_model():
    own = recipe("text")
    found = recipe_step(own, "text", split(texts(4, 0)[0], None))
    model = dataclasses.replace(own.model, vocab_size=own.vocab_size)
    params = train_state.transformer.init(train_state.jax.random.key(0), model)
    leaves = train_state.jax.tree.leaves(params)
    assert found.num_params == sum(leaf.size for leaf in leaves)
    assert found.tokens == own.batch_size * own.seq_len


@pytest.mark.parametrize("limit", ["_MAX_STEP_SECONDS", "_STATE_SHARE_OF_MEMORY"])
def test_a_step_too_large_to_try_is_estimated(monkeypatch, limit):
    monkeypatch.setattr(step_estimate, limit, 0.0)
    monkeypatch.setattr(step_estimate, "_run_steps", None)
    monkeypatch.setattr(step_estimate, "_estimated", {})
    monkeypatch.setattr(step_estimate, "gemm_flops_per_second", lambda dtype: 1e6)
    own = recipe("text")
    model = dataclasses.replace(own.model, vocab_size=own.vocab_size)
    batch = text_batch(own.batch_size, own.seq_len, own.vocab_size)
    found = estimate_step(model, own.objective, own.optimizer, batch)
    assert not found.measured and found.seconds == found.flops / 0.4e6
    assert found.memory_bytes == found.state_bytes + 4 * found.num_params
    assert np.isfinite(found.seconds)


@pytest.mark.slow
def test_of_several_sources_each_may_be_taken_at_the_rate_of_all():
    sources = [
        Source("halves", "image", split(images(8, 0)[0], None), layout=LAYOUT),
        Source("fruit", "text", split(texts(8, 0)[0], None)),
    ]
    both = joint_step(JOINT, sources)
    image = joint_step(JOINT, sources[:1], flops_per_second=both.flops_per_second)
    assert both.measured and image.num_params < both.num_params
    assert image.seconds == pytest.approx(both.seconds * image.flops / both.flops)
