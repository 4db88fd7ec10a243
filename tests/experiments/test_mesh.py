"""Experiments on a mesh and in several processes."""

import json
import socket

import numpy as np
import pytest
from PIL import Image

from tests.experiments import helpers_processes as processes


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--mesh=data:0"], ["--mesh=data:0: takes a whole number above 0", "data:2,fsdp:4"]),
        (["--mesh=rows:2"], ["--mesh=rows:2", "data, fsdp, tensor"]),
        (["--mesh=data:64"], ["--mesh=data:64", "takes 64 devices, not the"]),
        (["--num_processes=2"], ["--num_processes", "--coordinator_address=HOST:PORT"]),
        (
            ["--coordinator_address=here:1"],
            ["--coordinator_address=here:1: takes HOST:PORT, with --num_processes=N"],
        ),
        (
            ["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"],
            ["--process_id from 0 to N-1"],
        ),
        (
            ["--coordinator_address=here", "--num_processes=2", "--process_id=0"],
            ["takes HOST:PORT"],
        ),
        (["--num_processes=0"], ["--num_processes=0: takes a positive integer"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_flags(call, tmp_path, flags, parts):
    done = call("pretrain", "--dataset=digits", *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2 and all(part in done.error for part in parts), done.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("compare", "ablate", "multitask", "text_quality", "pretrain", "adapt", "generate"),
        *("attention_maps", "plan", "search"),
    ],
)
def test_experiments_that_run_a_model_have_the_flag(call, name):
    assert "--mesh=" in call(name, "--help").out


@pytest.mark.slow
def test_a_mesh_of_one_device_is_as_none(call, tmp_path, tiny):
    flags = "pretrain", "--dataset=digits", "--steps=2"
    summaries = []
    for name, more in (("none", []), ("one", ["--mesh=data:1"])):
        done = call(*flags, *more, f"--out={tmp_path / name}")
        assert done.code == 0, done.err
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    for name in ("tokens", "value", "validation"):
        none, one = (each["metrics"][name] for each in summaries)
        np.testing.assert_allclose(one, none, rtol=1e-5)


@pytest.mark.slow
def test_a_study_goes_on_from_a_mesh(call, tmp_path, tiny):
    flags = (
        "--tasks=digits",
        "--arms=scratch,in_domain",
        "--label_budgets=20",
        "--seeds=2",
        "--mesh=data:1",
    )
    for name, more in (("one", []), ("seeds", ["--seeds=4", "--pretrain_seeds=4"])):
        done = call("compare", *flags, *more, f"--out={tmp_path / name}")
        assert done.code == 0, done.err
        assert (tmp_path / name / "report.html").exists()


def _start(out, devices, *flags):
    flags = (
        "--dataset=digits", "--size=nano", "--steps=4", "--batch_size=8", f"--out={out}", *flags
    )  # fmt: skip
    return processes.start(devices, "pretrain", *flags)


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{server.getsockname()[1]}"
    one = [_start(tmp_path / "one", 2, "--mesh=fsdp:2")]
    two = [
        _start(
            tmp_path / "two",
            1,
            f"--coordinator_address={at}",
            "--num_processes=2",
            f"--process_id={n}",
        )
        for n in range(2)
    ]
    outputs = [each.communicate(timeout=900) for each in (*one, *two)]
    assert [each.returncode for each in (*one, *two)] == [0, 0, 0], outputs
    assert ["summary.json" in out for out, _ in outputs] == [True, True, False]
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")
    )
    assert (one["tokens"], one["flops"]) == (two["tokens"], two["flops"])
    for name in ("value", "validation"):
        np.testing.assert_allclose(two["metrics"][name], one["metrics"][name], rtol=1e-4)


@pytest.mark.slow
def test_a_model_is_read_on_a_mesh(call, tmp_path, tiny):
    run = tmp_path / "run"
    flags = "--dataset=digits", "--steps=2", "--objective=causal_lm:1", f"--out={run}"
    assert call("pretrain", *flags).code == 0
    made = "--modality=image", f"--model={run}", "--samples=4"
    assert call("generate", *made, f"--out={tmp_path / 'one'}").code == 0
    look = f"--model={run}", "--dataset=digits", f"--out={tmp_path / 'maps'}"
    started = [
        processes.start(4, "generate", *made, "--mesh=fsdp:4", f"--out={tmp_path / 'four'}"),
        processes.start(4, "generate", *made[:2], "--mesh=data:4", f"--out={tmp_path / 'none'}"),
        processes.start(2, "attention_maps", *look, "--mesh=data:2"),
        processes.start(1, "attention_maps", *look, "--mesh=tensor:1"),
    ]
    outputs = [each.communicate(timeout=900) for each in started]
    assert [each.returncode for each in started] == [0, 2, 2, 0], outputs
    assert "--samples=1: must be a multiple of data x fsdp = 4 on this mesh" in outputs[1][1]
    assert "one input is shown: must be a multiple of data x fsdp = 2 on this mesh" in outputs[2][1]
    one, four = (sorted((tmp_path / name).glob("*.png")) for name in ("one", "four"))
    assert len(one) == 5  # four images and the sheet of all
    for a, b in zip(one, four, strict=True):
        pixels = [np.asarray(Image.open(each), int) for each in (a, b)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
