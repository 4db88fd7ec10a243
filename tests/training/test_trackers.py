"""Trackers get a run's records through a fake library; none is imported unless asked for."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments import cli
from fm.errors import UserError
from fm.training import metric_writer
from fm.training.trackers import TRACKERS, TrackerSpec, register_tracker, tracking


class FakeLibrary(types.ModuleType):
    """Stands for wandb and trackio: keeps what it is told."""

    def __init__(self, name, error=None):
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        self.runs, self.error = [], error

    def init(self, **options):
        print("look here")
        run = FakeRun(options, self)
        self.runs.append(run)
        return run


class FakeRun:
    def __init__(self, options, library):
        self.options, self.library = options, library
        self.logged, self.finished, self.defined = [], False, []

    def define_metric(self, name, **options):
        self.defined.append((name, options))

    def log(self, metrics, step=None):
        if self.library.error:
            raise RuntimeError(self.library.error)
        self.logged.append((dict(metrics), step))

    def finish(self):
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
    fake = FakeLibrary(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def record(step, kind="train", **metrics):
    return {"kind": kind, "step": step, "tokens": 10 * step, "loss": 1.0 / step, **metrics}


def write(folder, *steps, resume=0):
    writer = metric_writer.MetricWriter(folder, resume)
    for step in steps:
        writer.write(record(step, gemm_utilization=None))
    writer.close()


def test_a_tracker_gets_the_records_that_are_on_disk(library, tmp_path, capsys):
    with tracking(library.__name__):
        write(tmp_path, 1, 2)
    (run,) = library.runs
    assert run.finished and run.options["project"] == "fm"
    assert run.options["name"].endswith(tmp_path.name) and run.options["resume"] == "allow"
    found = [(metrics["train/loss"], metrics["train/tokens"]) for metrics, _ in run.logged]
    assert found == [(1.0, 10), (0.5, 20)]
    steps = [metrics.get("step", step) for metrics, step in run.logged]
    assert steps == [1, 2] and "train/gemm_utilization" not in run.logged[0][0]
    out, err = capsys.readouterr()
    assert out == "" and "look here" in err
    assert len(metric_writer.read_records(tmp_path / "metrics.jsonl")) == 2
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_resumed_run_is_the_same_one_and_a_finished_one_none(library, tmp_path):
    with tracking(library.__name__):
        write(tmp_path, 1, 2)
        write(tmp_path, resume=2)
        assert len(library.runs) == 1
        write(tmp_path, 3, resume=2)
    first, second = library.runs
    assert first.options == second.options


def test_without_a_tracker_nothing_is_imported(library, tmp_path):
    for name in (None, "tensorboard"):
        with tracking(name):
            write(tmp_path / str(name), 1)
    write(tmp_path / "outside", 1)
    assert library.runs == []
    code = (
        "import sys, fm.training.trackers, fm.training.metric_writer; "
        "sys.exit(bool({'wandb', 'trackio'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_tracker_that_fails_is_left_alone(library, tmp_path, capsys):
    library.error = "the disk\nis full"
    with tracking(library.__name__):
        write(tmp_path, 1, 2, 3)
    err = capsys.readouterr().err
    assert err.count(f"--tracker={library.__name__} failed and gets no more: the disk is full") == 1
    assert len(metric_writer.read_records(tmp_path / "metrics.jsonl")) == 3


def test_a_tracker_that_does_not_start_is_an_error(library, tmp_path, monkeypatch):
    def fail(**_):
        raise RuntimeError("no API key")

    monkeypatch.setattr(library, "init", fail)
    with (
        tracking(library.__name__),
        pytest.raises(UserError, match=r"cannot be started \(no API key\)"),
    ):
        write(tmp_path, 1)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_library_is_one_line_with_the_command(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError) as error, tracking(name):
        raise AssertionError("the block ran")
    text = str(error.value)
    assert text.startswith(f"--tracker={name}: needs {name}, which is not installed; python -m pip")
    assert f'install "{TRACKERS[name].requirement}"' in text and "\n" not in text


def test_the_flag_names_what_it_accepts(capsys):
    code = cli.call("x", "", cli.define_tracker, lambda _: None, ["--tracker=mlflow"])
    assert code == 2
    assert "takes one of tensorboard, trackio, wandb" in capsys.readouterr().err


def test_a_tracker_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("fm.training.trackers.TRACKERS", dict(TRACKERS))
    fake = FakeLibrary("own")
    register_tracker(TrackerSpec("own", "here", open=lambda name, folder: fake.init(name=name)))
    with tracking("own"):
        write(tmp_path, 1)
    assert fake.runs[0].logged[0][1] == 1
    with pytest.raises(UserError, match="--tracker=other: must be one of tensorboard"):
        tracking("other").__enter__()
