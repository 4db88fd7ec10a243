import re

import pytest


def test_the_plan_of_a_billion_parameters(call):
    done = call("plan", "--size=1b", "--chips=256", "--chip=h100", "--mesh=data:32,fsdp:8")
    assert done.code == 0 and done.err == ""
    assert "1b: 1,235,816,448 parameters on 256 h100, --mesh=data:32,fsdp:8,tensor:1" in done.out
    for part in ("parameters", "gradients", "optimizer", "activations", "tokens/s", "data sheet"):
        assert part in done.out
    assert re.search(r"optimizer +1\.24\n", done.out)  # 8 bytes a parameter over fsdp:8
    assert max(len(line) for line in done.out.splitlines()[:-1]) <= 100


def test_small_sizes_are_planned_as_pretrain_makes_them(call):
    done = call("plan", "--size=nano", "--chips=1")
    assert done.code == 0 and done.out.startswith("nano: 573,184 parameters on 1 h100"), done.out
    help_text = " ".join(call("plan", "--help").out.split())
    assert "nano (49 k), micro (98 k)" in help_text and "8b (7.0 B)" in help_text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--size=8b", "--chips=1"], ["8b does not fit 1 h100", "GB on each", "use more chips"]),
        (
            ["--size=7b"],
            ["--size=7b: takes one of nano, micro, tiny, small, base"],
        ),
        (["--chip=b300"], ["--chip=b300: takes one of h100, a100, v5e, v5p, v4, cpu"]),
        (["--mesh=data:3"], ["takes 3 chips, not 8"]),
        (["--mesh=rows:8"], ["--mesh=rows:8", "data, fsdp, tensor"]),
        (["--mesh="], ["--mesh=", "data, fsdp, tensor"]),
        (["--mfu=1.5"], ["--mfu=1.5", "[0.001, 1.0]"]),
        (["--chips=0"], ["--chips=0"]),
        (
            ["--size=124m", "--seq_len=2048"],
            ["input of 2048 tokens exceeds", "max_seq_len of 1024"],
        ),
        (["--batch_size=7", "--mesh=data:8"], ["batch_size=7 does not divide"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else None,
)
def test_what_cannot_be_is_refused(call, arguments, parts):
    done = call("plan", *arguments)
    assert done.code == 2
    assert all(part in done.error for part in parts), done.error
