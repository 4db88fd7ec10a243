"""The training loop: trains one or several trials, logs, validates and saves.

`train` runs one trial; `fm.training.sweep` runs many, one after another or as one program. Step n
is dispatched before the metrics of step n - 1 are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fm.errors import UserError
from fm.files import atomic_write
from fm.model.config import ModelConfig
from fm.parallel import distributed
from fm.parallel.mesh import current_mesh, default_device
from fm.parallel.sharding import on_devices
from fm.progress_lines import Phase, duration, phase, say
from fm.training import failures, optimizer, train_step
from fm.training.checkpoint import CheckpointStore
from fm.training.config import TrainConfig, TrainResult
from fm.training.executor import SingleExecutor, TrialExecutor
from fm.training.failures import NotFiniteError, latest_checkpoint_message
from fm.training.metric_units import MetricUnit
from fm.training.metric_writer import MetricRecord
from fm.training.multitask import AnyObjective
from fm.training.objectives import Batch
from fm.training.optimizer import OptimizerConfig
from fm.training.parameter_overview import (
    PARAMETERS_FILE,
    parameter_overview,
    parameter_summary,
)
from fm.training.prefetch import AHEAD, Prefetcher
from fm.training.profiling import StepProfiler
from fm.training.progress import (
    MetricValues,
    ProgressCounters,
    ProgressTracker,
    StepCost,
    announce_resume,
    is_due,
    is_finite,
    program_flops,
    step_cost,
)
from fm.training.run_description import describe_run
from fm.training.signals import Interrupted, catch_termination_signals
from fm.training.train_state import gather_to_host
from fm.training.train_step import Metrics
from fm.training.trial import BatchIterator, ParamsOrInit, Trial


def train(
    params: ParamsOrInit,
    batches: BatchIterator,
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    train_config: TrainConfig,
    *,
    out_dir: pathlib.Path | None,
    metric_unit: MetricUnit,
    token_weights: jax.Array | None = None,
    validation: Sequence[Batch] | None = None,
    run_name: str = "train",
    gemm_flops_per_second: float | None = None,
    peak_flops: float | None = None,
    identity: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Trains a model and returns its result; resumes an unfinished run, reloads a finished one.

    A run that was killed and is called again ends bitwise as if it had not been interrupted.

    Args:
      params: see `Trial`, as for all arguments not named here.
      model_config: of the model.
      objective: what to predict; a `MultitaskObjective` takes batches of its groups.
      gemm_flops_per_second: measured rate of matrix products, for `gemm_utilization` in the log.
      peak_flops: FLOP/s of all devices by their specification, for `mfu` and `hfu` in the log.
      mesh: devices to train on, see `fm.parallel.mesh`; the current mesh unless given, else the
        default device. A resumed run may use another. With several processes each calls this with
        the same arguments and reads its own rows of the batches; a signal to one stops all.

    Raises:
      UserError: `out_dir` holds a run with another config; the data end early or stall (all steps
        so far are saved then, except with several processes); memory runs out (saved too, if
        before a step begins); the loss or gradient is not finite (the last good checkpoint stays,
        and the batch is saved); a checkpoint cannot be written; the mesh does not divide the
        model, or the rows of a batch among several processes.
      OSError: the log cannot be written.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    trial = Trial(
        params=params,
        batches=batches,
        optimizer_config=optimizer_config,
        train_config=train_config,
        metric_unit=metric_unit,
        out_dir=out_dir,
        token_weights=token_weights,
        validation=validation or (),
        run_name=run_name,
        identity=identity,
    )
    return train_trial(
        trial,
        model_config,
        objective,
        gemm_flops_per_second=gemm_flops_per_second,
        peak_flops=peak_flops,
        mesh=mesh,
    )


def train_trial(
    trial: Trial,
    model_config: ModelConfig,
    objective: AnyObjective,
    *,
    gemm_flops_per_second: float | None = None,
    peak_flops: float | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Trains one `Trial`, or resumes or reloads its run, and returns its result."""
    mesh = mesh or current_mesh()
    if trial.train_config.max_seconds is not None and jax.process_count() > 1:
        raise UserError(
            f"{trial.run_name}: a limit of time takes one process, not {jax.process_count()} whose "
            "clocks differ; leave it out"
        )
    if mesh is not None:
        rows = trial.batches.shard(*distributed.local_shard_index_and_count(mesh))
        trial = dataclasses.replace(trial, batches=rows)
    elif jax.process_count() > 1:
        raise UserError(
            f"{trial.run_name}: {jax.process_count()} processes need a mesh over all devices"
        )
    executor = SingleExecutor([trial], model_config, objective, mesh)
    with contextlib.ExitStack() as stack:
        rates = gemm_flops_per_second, peak_flops
        trainer = Trainer(executor, trial.out_dir, trial.run_name, *rates, stack)
        trainer.run()
    (result,) = trainer.results()
    assert result is not None
    return result


@dataclasses.dataclass(frozen=True)
class _PendingStep:
    """A dispatched step whose metrics have not been read.

    Attributes:
      metrics: of all trials.
      batches: of this process, by trial.
      costs: by trial, None for one that took no step.
      signalled: number of devices whose process received a signal, with several processes.
    """

    metrics: Metrics
    batches: Sequence[Batch | None]
    costs: Sequence[StepCost | None]
    signalled: jax.Array | None


class Trainer:
    """Trains several trials in one loop, with logging, validation, checkpoints and resumption.

    Attributes:
      executor: steps the trials.
      state: after the last step dispatched; a step consumes it.
      step: number of that step.
      trackers: progress by trial, after the last step whose metrics were read.
      prefetchers: by trial, where its batches come from.
      stop_reasons: by trial, why it stopped because its loss was not finite, or None.
      config: what a resumed run must share.
    """

    _phase: Phase

    def __init__(
        self,
        executor: TrialExecutor,
        out_dir: pathlib.Path | None,
        run_name: str,
        gemm_flops_per_second: float | None,
        peak_flops: float | None,
        stack: contextlib.ExitStack,
    ):
        """Restores the trials from the checkpoints in `out_dir`, if there are any.

        Contexts entered on `stack` hold back signals, report memory that runs out or a lost
        process, and close the checkpoints and logs.
        """
        self._began, self._began_cpu = time.perf_counter(), time.process_time()
        self.executor, self._run_name = executor, run_name
        self._phases = stack.enter_context(contextlib.ExitStack())
        self._begin_phase(f"{run_name}: initializing")
        self._out_dir = None if out_dir is None else pathlib.Path(out_dir)
        self.state, self.config = executor.init()
        self.step, saved = 0, {}
        if executor.mesh is not None:
            stack.enter_context(jax.set_mesh(executor.mesh))
        self._store: CheckpointStore | None = None
        if self._out_dir is not None:
            keep_period = executor.trials[0].train_config.keep_period
            store = CheckpointStore(self._out_dir / "checkpoints", keep_period=keep_period)
            self._store = stack.enter_context(store)
            with distributed.exit_if_peer_lost(run_name):
                restored = store.restore(self.state, self.config)
            if restored is not None:
                self.state, saved = restored.state, restored.progress
                self.step = saved["step"]
        self.trackers: list[ProgressTracker] = []
        self.prefetchers: list[Prefetcher] = []
        for r, trial in enumerate(executor.trials):
            progress = ProgressCounters(**saved["trials"][r]) if saved else ProgressCounters()
            if saved:
                trial.batches.set_state(progress.data_state)
            tracker = ProgressTracker(
                trial.train_config,
                trial.metric_unit,
                progress=progress,
                gemm_flops_per_second=gemm_flops_per_second,
                out_dir=trial.out_dir if distributed.is_lead_process() else None,
                peak_flops=peak_flops,
            )
            stack.callback(tracker.close)
            self.trackers.append(tracker)
            self.prefetchers.append(self._prefetcher(trial))
            stack.callback(self.prefetchers[r].close)
        if executor.trials[0].train_config.is_open_ended:
            assert len(executor.trials) == 1, "open-ended trials run one by one"
            executor.rates_at = self._open_ended_rates
        self.stop_reasons: list[str | None] = saved.get("stop_reasons") or [None] * len(
            self.trackers
        )
        configs = [trial.train_config for trial in executor.trials]
        self._steps = max(config.steps for config in configs)
        self._checkpoint_every = min(config.checkpoint_every for config in configs)
        self._first_step = self.step
        self._earlier_seconds = [
            (tracker.progress.seconds, tracker.progress.cpu_seconds) for tracker in self.trackers
        ]
        self._pending: _PendingStep | None = None
        self._counts_program_flops = peak_flops is not None
        profile_steps = configs[0].profile_steps if len(configs) == 1 else None
        self._profiler = StepProfiler(profile_steps, self._out_dir, run_name, self.step)
        stack.callback(self._profiler.stop)
        # Of the first step, until it is done; and whether a validation has been compiled.
        self._compile_seconds: float | None = None
        self._validated = False
        self._agreed_signal: str | None = None  # of several processes
        if self.step:
            finished = not any(self.running())
            announce_resume(run_name, self.step, self._steps, finished=finished)
        self._received_signal = stack.enter_context(catch_termination_signals())
        self._phases.close()
        if any(self.running()):
            self._begin_phase(f"{run_name}: compiling")
        stack.enter_context(distributed.exit_if_peer_lost(run_name))
        stack.enter_context(
            failures.report_out_of_memory(run_name, lambda: latest_checkpoint_message(self._store))
        )

    def run(self) -> None:
        """Takes the remaining steps.

        Raises:
          UserError: see `train`.
          Interrupted: after a signal, once saved.
        """
        while any(self.running()):
            if self._profiler.begins_at(self.step + 1):
                self._flush_pending()
                with self._pauses():
                    self._profiler.start()
            with self._profiler.step(self.step + 1):
                pending = self._dispatch()
            self.step += 1
            self._flush_pending()
            self._pending = pending
            if self._profiler.ends_after(self.step):
                self._flush_pending()
                with self._pauses():
                    self._profiler.stop()
            signal, ends = self._signal(), not any(self.running())
            validating, saves = self._to_validate(), is_due(self.step, self._checkpoint_every)
            if not (validating or saves or ends or signal or self._end_is_decided()):
                continue
            self._flush_pending()
            with self._pauses():
                for r in validating:
                    self._validate(r)
                for tracker, (seconds, _) in zip(self.trackers, self._seconds(), strict=True):
                    tracker.decide_end(seconds)
                ends = not any(self.running())
                if saves or ends or signal:
                    self._save(self._data_states())
            if signal and not ends:
                raise Interrupted(
                    failures.interrupted_message(
                        self._run_name, signal, self.step, self._steps, self._out_dir
                    )
                )

    @contextlib.contextmanager
    def _pauses(self) -> Iterator[None]:
        """Excludes the block from the logged throughput of every trial."""
        with contextlib.ExitStack() as pauses:
            for tracker in self.trackers:
                pauses.enter_context(tracker.paused())
            yield

    def running(self) -> list[bool]:
        """Returns for each trial whether it takes another step."""
        return [
            reason is None and self.step < tracker.total_steps and not tracker.finished
            for tracker, reason in zip(self.trackers, self.stop_reasons, strict=True)
        ]

    def results(self) -> list[TrainResult | None]:
        """Returns the `TrainResult` of each trial, None for one that stopped."""
        took_steps = self.step > self._first_step
        seconds = self._seconds() if took_steps else self._earlier_seconds
        results = []
        for r, tracker in enumerate(self.trackers):
            params = self.executor.select(self.state.params, r)
            if self.executor.mesh is not None:
                params = jax.tree.map(gather_to_host, params)
            stopped = self.stop_reasons[r] is not None
            results.append(None if stopped else tracker.result(params, *seconds[r]))
        return results

    def progress(self) -> list[dict[str, Any]]:
        """Returns each trial's progress as JSON, with its log flushed to disk."""
        return self._snapshots(self._data_states())

    def _begin_phase(self, title: str, total: int | None = None, done: int = 0) -> None:
        """Ends the phase that was shown, if any, and shows another."""
        self._phases.close()
        shown = distributed.is_lead_process()
        self._phase = self._phases.enter_context(
            phase(title, total, "steps", done=done, quiet=True, shown=shown)
        )

    def _describe(self, batches: Sequence[Batch | None], placed: Batch) -> None:
        """Says what is trained: the first line of a run."""
        if not distributed.is_lead_process():
            return
        executor, alone = self.executor, len(self.trackers) == 1
        first = placed if alone else next(batch for batch in batches if batch is not None)
        first_params = executor.select(self.state.params, 0)
        described = describe_run(
            first_params,
            first,
            executor.model_config,
            executor.objective,
            steps=self._steps,
            mesh=executor.mesh,
            trials=len(self.trackers),
        )
        for r, trial in enumerate(executor.trials):
            if trial.out_dir is not None:
                path = pathlib.Path(trial.out_dir) / PARAMETERS_FILE
                params = executor.select(self.state.params, r) if r else first_params
                atomic_write(path, parameter_overview(params))
        if self._out_dir is not None:
            where = pathlib.Path(executor.trials[0].out_dir or self._out_dir) / PARAMETERS_FILE
            say(f"{self._run_name}: {parameter_summary(first_params)}, listed in {where}")
        say(f"{self._run_name}: {described}; compiling …")

    def _begin_steps(self) -> None:
        """Says how long compiling took and counts steps from here, the first of which is done."""
        assert self._compile_seconds is not None
        if distributed.is_lead_process():
            say(f"{self._run_name}: compiled in {duration(self._compile_seconds)}")
        self._compile_seconds = None
        self._begin_phase(self._run_name, self._steps, self._first_step + 1)

    def _dispatch(self) -> _PendingStep:
        """Dispatches the next step of the running trials."""
        executor, n = self.executor, self.step
        data_states, running = self._data_states(), self.running()
        with failures.save_on_failure(
            self._run_name, n + 1, lambda: self._save_on_failure(data_states)
        ):
            taken = [
                self._next_batch(r) if runs else (None, None) for r, runs in enumerate(running)
            ]
            batches = [batch for batch, _ in taken]
            placed = taken[0][1]
            if placed is None:
                placed = executor.place(batches)
            if n == self._first_step:
                self._describe(batches, placed)
            began = time.perf_counter()
            if self._counts_program_flops:
                self._count_program_flops(placed, running)
            self.state, metrics = executor.step(self.state, n, placed, running)
        seconds, signalled = time.perf_counter() - began, None
        if n == self._first_step:
            self._compile_seconds = seconds
            for tracker in self.trackers:
                tracker.record_compile_time(seconds / len(self.trackers))
        counted = batches
        if jax.process_count() > 1 and executor.mesh is not None:
            counted = [placed]  # the rows of all processes
            signalled = distributed.count_signalled_devices(
                self._received_signal() is not None, executor.mesh
            )
        costs = [
            None if batch is None else step_cost(batch, executor.model_config, executor.objective)
            for batch in counted
        ]
        return _PendingStep(metrics, batches, costs, signalled)

    def _count_program_flops(self, batch: Batch, running: Sequence[bool]) -> None:
        """Sets each tracker's FLOPs of a step by the optimized program, once in a run."""
        self._counts_program_flops = False
        executor = self.executor
        compiled = executor.compile_step(self.state, self.step, batch, running)
        devices = 1 if executor.mesh is None else executor.mesh.devices.size
        # Of one device's part of the program.
        flops = devices * program_flops(compiled)
        for tracker in self.trackers:
            tracker.program_flops = flops / len(self.trackers)

    def _prefetcher(self, trial: Trial) -> Prefetcher:
        """Returns where a trial's batches come from.

        They are read ahead for an accelerator, and from disk. From memory on a CPU it gains
        nothing: the next batch is made while the step before it runs. A sweep of several trials
        learns which of them go on only after a step.
        """
        executor = self.executor
        device = default_device() if executor.mesh is None else executor.mesh.devices.flat[0]
        from_disk = getattr(trial.batches, "from_disk", False)
        if len(executor.trials) > 1 or (device.platform == "cpu" and not from_disk):
            return Prefetcher(trial.batches)

        def place(batch: Batch) -> Batch:
            # The default device is a setting of a thread. Not `device_put(batch, device)`, which
            # would commit the batch, and with it the state, to the device.
            with jax.default_device(device):
                placed = executor.place([batch])
                return placed if device.platform == "cpu" else jax.device_put(placed)

        return Prefetcher(trial.batches, ahead=AHEAD, place=place)

    def _next_batch(self, r: int) -> tuple[Batch, Batch | None]:
        """Returns the next batch of a trial, and the same on the devices if it is there already.

        Raises:
          UserError: the data end, or no batch arrives in time.
        """
        trial = self.executor.trials[r]
        limit, prefix = trial.train_config.batch_timeout_seconds, ""
        if len(self.executor.trials) > 1:
            prefix = f"{trial.run_name}: "
        stalled = f"{prefix}the data stalls, no batch in {limit:g} s after {self.step} of them"
        began = time.perf_counter()
        try:
            taken = self.prefetchers[r].take(limit, stalled)
        except StopIteration:
            raise UserError(
                f"{prefix}the data ends after {self.step} batches; "
                f"steps={trial.train_config.steps} needs more epochs"
            ) from None
        for tracker in self.trackers:  # the loop of all of them waits
            tracker.record_wait(time.perf_counter() - began)
        return taken

    def _flush_pending(self) -> None:
        """Reads the metrics of the pending step, if there is one, which waits for its end."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        if pending.signalled is not None and int(pending.signalled):
            self._agreed_signal = self._received_signal() or "a signal to another process"
        metrics = jax.device_get(pending.metrics)
        records = []
        for r, cost in enumerate(pending.costs):
            # A trial that stopped may have been sent one more step before that was known.
            if cost is None or self.stop_reasons[r] is not None:
                continue
            values = {name: float(self.executor.select(each, r)) for name, each in metrics.items()}
            tracker = self.trackers[r]
            if is_finite(values):
                records.append((r, tracker.add_step(values, cost)))
            else:
                self._stop(r, tracker.progress.step + 1, values, pending.batches[r])
        if self._compile_seconds is not None:
            self._begin_steps()
        else:
            self._phase.update()
        self._show(records)

    def _signal(self) -> str | None:
        """Returns the signal to stop at; with several processes, one that all have seen."""
        return self._agreed_signal if jax.process_count() > 1 else self._received_signal()

    def _to_validate(self) -> list[int]:
        """Returns the trials whose validation is due after this step."""
        due = []
        for r, trial in enumerate(self.executor.trials):
            config = trial.train_config
            last = self.step == self.trackers[r].total_steps
            # The pending step is not counted yet: one that is finished was so before it.
            active = self.stop_reasons[r] is None and not self.trackers[r].finished
            if trial.validation and active and (last or is_due(self.step, config.validate_every)):
                due.append(r)
        return due

    def _end_is_decided(self) -> bool:
        """Returns whether a trial's time is looked at after this step, or its last steps begin."""
        configs = [trial.train_config for trial in self.executor.trials]
        return any(
            (config.max_seconds is not None and is_due(self.step, config.log_every))
            or (config.is_open_ended and self.step == config.last_cooldown_start)
            for config in configs
        )

    def _open_ended_rates(self, n: int) -> np.ndarray:
        """Returns the learning rates of the step after `n` steps of the one open-ended trial."""
        (trial,), (tracker,) = self.executor.trials, self.trackers
        return optimizer.open_ended_learning_rates(
            trial.optimizer_config,
            n,
            warmup_steps=trial.train_config.warmup_steps or 1,
            cooldown_from=tracker.progress.cooldown_from,
            total_steps=tracker.total_steps,
        )

    def _validate(self, r: int) -> None:
        """Validates a trial; all steps so far must have been flushed."""
        trial, tracker = self.executor.trials[r], self.trackers[r]
        if self.stop_reasons[r] is not None:
            return
        compiles, self._validated = not self._validated, True
        with self._phase.clock_stopped() if compiles else contextlib.nullcontext():
            values = validate(
                self.executor.select(self.state.params, r),
                trial.validation,
                self.executor.model_config,
                self.executor.objective,
                trial.token_weights,
                self.executor.mesh,
            )
        if is_finite(values):
            self._show([(r, tracker.add_validation(values))])
        else:
            self._stop(r, self.step, values)

    def _stop(self, r: int, step: int, values: MetricValues, batch: Batch | None = None) -> None:
        """Stops a trial that is not finite: raises if it is alone, else notes the reason."""
        trial, alone = self.executor.trials[r], len(self.trackers) == 1
        saved = latest_checkpoint_message(self._store) if alone else "the other trials go on"
        if batch is not None and trial.out_dir is not None and distributed.is_lead_process():
            saved += f", {failures.save_bad_batch(batch, pathlib.Path(trial.out_dir), step)}"
        message = failures.not_finite_message(
            trial.run_name, step, values, trial.optimizer_config, saved
        )
        if alone:
            raise NotFiniteError(message)
        self.stop_reasons[r] = message

    def _show(self, records: Sequence[tuple[int, MetricRecord | None]]) -> None:
        """Shows the lowest and highest of the records' losses beside the progress."""
        units = [trial.metric_unit.name for trial in self.executor.trials]
        losses = [record[units[r]] for r, record in records if record is not None]
        if losses and len(units) == 1:
            self._phase.note(f"{losses[0]:.3f} {units[0]}")
        elif losses:
            self._phase.note(f"{min(losses):.3f} to {max(losses):.3f}")

    def _save(self, data_states: Sequence[dict[str, Any]]) -> None:
        """Saves the steps done, all of which must have been flushed, with positions in the data."""
        if self._store is None:
            return
        progress = {
            "step": self.step,
            "trials": self._snapshots(data_states),
            "stop_reasons": list(self.stop_reasons),
        }
        self._store.save(self.step, self.state, progress, self.config)

    def _save_on_failure(self, data_states: Sequence[dict[str, Any]]) -> str:
        """Saves the steps before one that failed; returns a sentence about what was saved."""
        if self._store is None:
            return "nothing was saved"
        leaves = jax.tree.leaves(self.state)
        consumed = any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)
        # With several processes the others are waiting for this one inside the step.
        if jax.process_count() > 1 or self.step == 0 or consumed:
            return latest_checkpoint_message(self._store)
        self._flush_pending()
        if self._store.latest_step() != self.step:
            self._save(data_states)
        self._store.wait()
        return f"step {self.step} is saved, and the same command resumes from there"

    def _snapshots(self, data_states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            tracker.snapshot(*seconds, data_state)
            for tracker, seconds, data_state in zip(
                self.trackers, self._seconds(), data_states, strict=True
            )
        ]

    def _data_states(self) -> list[dict[str, Any]]:
        return [prefetcher.get_state() for prefetcher in self.prefetchers]

    def _seconds(self) -> list[tuple[float, float]]:
        """Returns wall and CPU time of each trial over all resumptions, shared out evenly."""
        elapsed = (time.perf_counter() - self._began) / len(self.trackers)
        cpu = (time.process_time() - self._began_cpu) / len(self.trackers)
        return [(wall + elapsed, own_cpu + cpu) for wall, own_cpu in self._earlier_seconds]


def validate(
    params: dict,
    batches: Sequence[Batch],
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Returns the mean over held-out batches of `loss` and of each objective's nats.

    The same tokens are masked every time.

    Raises:
      ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("validation needs one batch or more")
    evaluate = train_step.make_eval_step(model_config, objective)
    metrics = [
        evaluate(params, on_devices(batch, mesh), on_devices(np.uint32(n), mesh), token_weights)
        for n, batch in enumerate(batches)
    ]
    metrics = jax.device_get(metrics)
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}
