"""`pretrain --stream`: text is tokenized to disk, trained on, resumed, and run again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.data.streaming.made_text import make_documents

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.mark.slow
def test_killed_while_training_and_resumed(tmp_path):
    write(tmp_path / "a.txt")
    flags = "--size=nano --steps=120 --batch_size=32 --checkpoint_every=20 --stream=always"

    def start(name):
        command = [sys.executable, "-m", "experiments.pretrain", f"--dataset={tmp_path / 'a.txt'}"]
        env = os.environ | {"FM_CACHE": str(tmp_path / "cache")}
        command += [*flags.split(), f"--out={tmp_path / name}"]
        return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)

    killed = start("killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    while killed.poll() is None and not (checkpoints / "40").is_dir():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists()
    digests = []
    for name in ("killed", "whole"):
        run = start(name)
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert ("resumed at step" in err) == (name == "killed")
        digests.append(json.loads((tmp_path / name / "summary.json").read_text())["params_digest"])
    assert digests[0] == digests[1]
