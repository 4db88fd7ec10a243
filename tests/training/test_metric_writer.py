"""Records on disk, what a resumed run keeps of them, and their units and averages."""

import errno
import gc
import json
import math
from pathlib import Path

import pytest

from fm.errors import UserError
from fm.training import BitsPerByte, BitsPerDimension, TrainConfig, metric_writer
from fm.training.metric_units import primary_loss
from fm.training.progress import ProgressCounters, ProgressTracker, StepCost


def record(step, kind="train", **metrics):
    return {"kind": kind, "step": step, "tokens": 10 * step, "bits_per_byte": 1 / step, **metrics}


def written(folder, steps):
    writer = metric_writer.MetricWriter(folder, 0)
    for step in steps:
        writer.write(record(step, gemm_utilization=None))
    writer.close()
    return folder / "metrics.jsonl"


def test_lines_are_json_and_come_back(tmp_path):
    path = written(tmp_path, [1, 2, 3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert metric_writer.read_records(path)[1] == record(2, gemm_utilization=None)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_resumes_without_records_after_the_checkpoint(tmp_path):
    path = written(tmp_path, [1, 2, 3, 4])
    writer = metric_writer.MetricWriter(tmp_path, 2)
    assert [each["step"] for each in writer.records] == [1, 2]
    writer.write(record(3, note=1.0))
    writer.close()
    assert [each["step"] for each in metric_writer.read_records(path)] == [1, 2, 3]
    assert metric_writer.read_records(path)[2]["note"] == 1.0


def test_a_line_cut_short_is_dropped(tmp_path):
    path = written(tmp_path, [1, 2])
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    metric_writer.MetricWriter(tmp_path, 5).close()
    assert [each["step"] for each in metric_writer.read_records(path)] == [1, 2]
    assert path.read_text().endswith("}\n")


def test_a_full_disk_is_an_error_that_names_the_log(tmp_path):
    writer = metric_writer.MetricWriter(tmp_path, 0)
    writer.write(record(1))
    writer._file.close()
    writer._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(OSError) as caught:
        writer.write(record(2))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_a_full_disk_under_the_events_is_an_error_too(tmp_path, monkeypatch):
    late = []
    monkeypatch.setattr("sys.unraisablehook", late.append)
    writer = metric_writer.MetricWriter(tmp_path, 0)
    writer._tensorboard._file.close()
    writer._tensorboard._file = Path("/dev/full").open("wb")  # noqa: SIM115
    # More than any queue or buffer holds: a writer with a thread of its own would wait for ever.
    with pytest.raises(OSError) as caught:
        for step in range(1000):
            writer.write(record(step + 1))
    assert caught.value.errno == errno.ENOSPC
    assert "events" in caught.value.filename
    with pytest.raises(OSError):
        writer.close()
    # Nothing is left that would complain once more, with a traceback, when it is collected.
    del writer, caught
    gc.collect()
    assert not late


def test_a_log_that_was_removed_is_missed(tmp_path):
    writer = metric_writer.MetricWriter(tmp_path, 0)
    writer.write(record(1))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="was removed while the run wrote to it"):
        writer.flush()
    writer.close()


def test_events_are_what_tensorboard_reads(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = metric_writer.MetricWriter(tmp_path, 2)
    writer.write(record(3, gemm_utilization=None))
    writer.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content, events = path.read_bytes(), []
    while content:
        # Length, its checksum, the event, its checksum.
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert [each.step for each in events] == [0, 3, 3]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == events[1].session_log.START
    (value,) = events[2].summary.value
    assert (value.tag, value.simple_value) == ("train/bits_per_byte", pytest.approx(1 / 3))


def test_curve():
    records = [record(1), record(2, "validation"), record(4)]
    assert metric_writer.learning_curve(records, "bits_per_byte") == {
        "tokens": [10, 40],
        "value": [1.0, 0.25],
        "validation_tokens": [20],
        "validation": [0.5],
    }


def test_units():
    assert BitsPerByte(4.0).from_nats(math.log(2) * 8) == pytest.approx(2.0)
    # A density of one over 0..1 says nothing about 256 levels.
    assert BitsPerDimension().from_nats(0.0) == pytest.approx(8.0)
    assert primary_loss(
        {"loss": 9.0, "causal_lm_nats": math.log(2)}, BitsPerByte(1.0)
    ) == pytest.approx(1.0)
    assert primary_loss(
        {"loss": math.log(2), "bag_of_words_nats": 9.0}, BitsPerByte(1.0)
    ) == pytest.approx(1.0)
    with pytest.raises(UserError, match="bytes_per_token=0"):
        BitsPerByte(0)


def tracker(progress, rate=None, log_every=2):
    config = TrainConfig(steps=10, log_every=log_every)
    return ProgressTracker(
        config, BitsPerByte(1.0), progress=progress, gemm_flops_per_second=rate, out_dir=None
    )


def metrics(loss):
    return {"loss": loss, "learning_rate": 0.1}


def test_a_record_is_the_mean_of_its_steps(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    counted = tracker(ProgressCounters(), rate=1000.0)
    assert counted.add_step(metrics(1.0), StepCost(50, 200.0)) is None
    with counted.paused():
        clock[0] += 60
    clock[0] += 4
    got = counted.add_step(metrics(3.0), StepCost(50, 200.0))
    assert got["loss"] == 2.0 and got["learning_rate"] == 0.1 and got["tokens"] == 100
    assert got["tokens_per_second"] == 25 and got["gemm_utilization"] == pytest.approx(0.1)
    assert counted.progress.metric_sums == {}


def test_the_step_that_was_compiled_has_no_throughput(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    counted = tracker(ProgressCounters(), rate=1000.0, log_every=1)
    counted.record_compile_time(7.0)
    clock[0] += 1
    first = counted.add_step(metrics(1.0), StepCost(50, 200.0))
    assert first["loss"] == 1.0 and counted.progress.compile_seconds == 7.0
    assert (first["tokens_per_second"], first["gemm_utilization"]) == (None, None)
    clock[0] += 2
    second = counted.add_step(metrics(1.0), StepCost(50, 200.0))
    assert second["tokens_per_second"] == 25 and second["gemm_utilization"] == pytest.approx(0.1)


def test_a_resumed_run_continues_its_sums():
    first = tracker(ProgressCounters())
    first.add_step(metrics(1.0), StepCost(1, 1.0))
    second = tracker(ProgressCounters(**json.loads(json.dumps(first.snapshot(0.0, 0.0, {})))))
    got = second.add_step(metrics(3.0), StepCost(1, 1.0))
    assert got["loss"] == 2.0 and got["gemm_utilization"] is None
