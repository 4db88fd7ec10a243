import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation import batching as module
from fm.adaptation.batching import map_bucketed
from fm.errors import UserError
from tests.transfer.problems import text

LENGTHS = (3, 40, 17, 1, 16, 33, 17, 5)


def texts(lengths=LENGTHS):
    draws = np.random.default_rng(0)
    return [draws.integers(1, 12, n).astype(np.int32) for n in lengths]


def total(weight, batch):
    return weight * jnp.sum(batch["tokens"] * (batch["positions"] + 1), axis=1)


def plain(ids):
    return np.array([3 * np.sum(each * np.arange(1, len(each) + 1)) for each in ids])


@pytest.mark.parametrize("tokens", [16, 64, 4096])
def test_every_text_in_its_own_place(tokens):
    ids = texts()
    assert np.array_equal(map_bucketed(total, 3, ids, batch_tokens=tokens), plain(ids))


def test_little_padding_and_few_shapes(monkeypatch):
    seen, called = [], module._run_batch

    def spy(operands, batch, read):
        seen.append(batch["segments"])
        return called(operands, batch, read)

    monkeypatch.setattr(module, "_run_batch", spy)
    ids = texts(list(range(1, 81)) * 2)
    map_bucketed(total, 1, ids, batch_tokens=160)
    assert {each.shape[1] for each in seen} <= {16, 32, 48, 64, 80}
    assert len({each.shape for each in seen}) <= 5
    read = sum(each.size for each in seen)
    assert read < 1.35 * sum(map(len, ids))


def test_nothing_is_padded_beyond_the_context():
    def width(_, batch):
        return jnp.full(len(batch["tokens"]), batch["tokens"].shape[1])

    assert map_bucketed(width, 0, texts((18, 3)), max_seq_len=20, batch_tokens=20).tolist() == [
        20,
        16,
    ]


def test_rows_are_padded_as_others_are():
    ids = texts((4, 2))
    made, wanted = module.pad_sequences(ids, 6), text([each.tolist() for each in ids], 6)
    assert made.keys() == wanted.keys()
    assert all(np.array_equal(made[key], wanted[key]) for key in made)


@pytest.mark.parametrize("ids", [[], texts((2, 0))], ids=["no text", "an empty one"])
def test_nothing_to_read_is_refused(ids):
    with pytest.raises(UserError, match="without a single token"):
        map_bucketed(total, 1, ids)
