"""What a user keeps of a network, counted by hand."""

from fm.study.multitask_sizes import count_parameters, shared_model_size_row

from fm.model.config import ModelConfig

V, P, D = 50, 12, 16
MODEL = ModelConfig(
    num_layers=1,
    d_model=D,
    num_heads=1,
    num_kv_heads=1,
    mlp_dim=32,
    vocab_size=V,
    patch_dims=(("image", P),),
)


def test_streams_of_other_formats_are_left_out():
    text, image = (count_parameters(MODEL, (name,), writes=False) for name in ("text", "image"))
    assert text - image == V * D - P * D
    both = count_parameters(MODEL, ("text", "image"), writes=False)
    assert both - text == P * D


def test_who_writes_keeps_what_predicts_text_alone():
    reads, writes = (count_parameters(MODEL, ("text",), writes=each) for each in (False, True))
    assert writes - reads == D * V
    # Beside the blocks, whose attention and feed-forward these are, only small things.
    blocks = 4 * D * D + 2 * D * 32
    assert 0 <= reads - V * D - blocks <= 10 * D


def test_one_for_all_reads_every_format_and_writes():
    assert shared_model_size_row(MODEL)["network"] == count_parameters(
        MODEL, ("text", "image"), writes=True
    )
