"""What a user keeps of a network, counted by hand."""

from fm.model.config import ModelConfig
from fm.study.unify.sizes import parameters, whole

V, P, D = 50, 12, 16
MODEL = ModelConfig(
    depth=1, width=D, heads=1, kv_heads=1, hidden=32, vocab=V, continuous=(("image", P),)
)


def test_streams_of_other_formats_are_left_out():
    text, image = (parameters(MODEL, (name,), writes=False) for name in ("text", "image"))
    assert text - image == V * D - P * D
    both = parameters(MODEL, ("text", "image"), writes=False)
    assert both - text == P * D


def test_who_writes_keeps_what_predicts_text_alone():
    reads, writes = (parameters(MODEL, ("text",), writes=each) for each in (False, True))
    assert writes - reads == D * V
    # Beside the blocks, whose attention and feed-forward these are, only small things.
    blocks = 4 * D * D + 2 * D * 32
    assert 0 <= reads - V * D - blocks <= 10 * D


def test_one_for_all_reads_every_format_and_writes():
    assert whole(MODEL)["network"] == parameters(MODEL, ("text", "image"), writes=True)
