"""`pretrain --stream`: text is tokenized to disk, trained on, resumed, and run again."""

import json

import pytest

from tests.data.streaming.made_text import make_documents
from tests.experiments import helpers_processes as processes


def write(path):
    path.write_text("\n".join(make_documents(100_000)) + "\n")
    return path


def test_text_streams_and_a_saved_config_does_so_again(call, tmp_path, tiny):
    path = write(tmp_path / "a.txt")
    flags = "pretrain", f"--dataset={path}", "--steps=3", "--stream=always"
    done = call(*flags, f"--out={tmp_path / 'one'}")
    assert done.code == 0, done.err
    assert " documents, 0.7 MB: " in done.err and " held out for the validation loss" in done.err
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["config"]["stream"] == "always"
    again = call("pretrain", f"--config={tmp_path / 'one'}", f"--out={tmp_path / 'two'}")
    assert again.code == 0, again.err
    repeated = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert repeated["params_digest"] == summary["params_digest"]
    memory = call(*flags[:3], f"--out={tmp_path / 'three'}")
    assert memory.code == 0 and "stream" not in json.loads(
        (tmp_path / "three" / "config.json").read_text()
    )


def test_a_dry_run_reads_no_text(call, tmp_path, tiny):
    path = write(tmp_path / "a.txt")
    done = call("pretrain", f"--dataset={path}", "--stream=always", "--dry_run")
    assert done.code == 0 and "1 MB of text, streamed" in done.out, done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=digits,docstrings"], "--stream=always: is for one data set"),
        (["--dataset=digits"], "--stream=always: digits is no file, folder"),
    ],
)
def test_what_cannot_stream_is_refused(call, tmp_path, flags, message):
    done = call("pretrain", *flags, "--stream=always", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and message in done.error, done.error
    assert not (tmp_path / "out").exists()


def test_a_batch_too_small_for_the_objectives_is_refused_before_tokenizing(call, tmp_path):
    path, out = write(tmp_path / "a.txt"), tmp_path / "out"
    done = call(
        "pretrain", f"--dataset={path}", "--stream=always", "--batch_size=8", f"--out={out}"
    )
    assert done.code == 2 and "leave causal_lm no row" in done.error, done.error
    assert "tokenizing" not in done.err and not out.exists()


def digest(out):
    return json.loads((out / "summary.json").read_text())["params_digest"]


@pytest.mark.slow
def test_killed_while_training_and_resumed(tmp_path):
    write(tmp_path / "a.txt")
    flags = "--size=nano --steps=120 --batch_size=32 --checkpoint_every=20 --stream=always"

    def start(name):
        more = f"--dataset={tmp_path / 'a.txt'}", f"--out={tmp_path / name}"
        return processes.start(1, "pretrain", *flags.split(), *more)

    processes.kill_at_checkpoint(start("killed"), tmp_path / "killed", 40)
    for name in ("killed", "whole"):
        run = start(name)
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert ("resumed at step" in err) == (name == "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_eight_devices_train_as_one_and_resume(tmp_path):
    """FSDP over eight devices on streamed text; killed and resumed, it ends with the same bits."""
    write(tmp_path / "a.txt")
    flags = "--size=nano --steps=12 --batch_size=32 --checkpoint_every=4 --eval_every=3"

    def start(name, devices, *mesh):
        more = f"--dataset={tmp_path / 'a.txt'}", "--stream=always", f"--out={tmp_path / name}"
        return processes.start(devices, "pretrain", *flags.split(), *more, *mesh)

    def finish(name, process):
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert ("resumed at step" in err) == (name == "killed"), err
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records = map(json.loads, lines)
        return {(record["kind"], record["step"]): record["loss"] for record in records}

    one = finish("one", start("one", 1))
    assert len(one) == 12 + 4 and ("validation", 12) in one
    eight = finish("eight", start("eight", 8, "--mesh=fsdp:8"))
    assert eight.keys() == one.keys()
    for key, loss in one.items():
        assert eight[key] == pytest.approx(loss, rel=2e-5), key
    processes.kill_at_checkpoint(start("killed", 8, "--mesh=fsdp:8"), tmp_path / "killed", 4)
    resumed = finish("killed", start("killed", 8, "--mesh=fsdp:8"))
    assert resumed == eight
    assert digest(tmp_path / "killed") == digest(tmp_path / "eight")
