"""Estimates whether a training run fits a number of chips, and how long a step takes.

    fm plan --size=1b --chips=256 --chip=h100
    fm plan --size=8b --chips=64 --chip=v5p --mesh=fsdp:64 --remat_policy=full

Prints memory per device, FLOPs, communication and time of a step. All figures follow from shapes
and sharding rules: nothing is allocated, and no accelerator is needed. A run that cannot fit is
refused. The memory of activations is an estimate; times assume the utilization given by --mfu.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from experiments import cli
from fm.model.config import REMAT_POLICIES, ModelConfig
from fm.model.sizes import (
    PUBLISHED_CONFIGS,
    SIZE_ALIASES,
    SIZES,
    canonical_size,
    config_for_size,
    describe_sizes,
)
from fm.parallel.mesh import parse_mesh
from fm.planning import chips
from fm.planning.plan import Plan, PlanRequest, default_batch_size, find_fitting_plan
from fm.training.optimizer import OptimizerConfig

# Of the tokenizers that fm pretrain trains.
_VOCAB_SIZE = 4096


def define(values: flags.FlagValues) -> None:
    """Defines the flags of model, chips and batch."""
    flags.DEFINE_enum(
        "size",
        "1b",
        [*SIZES, *SIZE_ALIASES],
        f"model size, here with the parameters of its layers: {describe_sizes()}; those from 124m "
        "are GPT-2's and Llama 3's with their vocabularies, smaller ones Llama-shaped with a "
        f"vocabulary of {_VOCAB_SIZE:,}",
        flag_values=values,
    )
    flags.DEFINE_enum("chip", "h100", list(chips.CHIPS), "kind of device", flag_values=values)
    flags.DEFINE_string(
        "mesh",
        None,
        "such as data:32,fsdp:8; default: the fastest mesh that fits",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "remat_policy",
        None,
        REMAT_POLICIES,
        "what a layer keeps for its backward pass; default: the most that fits",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "optimizer", "adamw", ["adamw", "muon"], "optimizer whose state is counted",
        flag_values=values,
    )  # fmt: skip
    for name, default, most, text in (
        ("chips", 8, 100_000, "number of devices"),
        ("batch_size", None, 2**31, "sequences per step; default: 16,384 tokens per device"),
        ("seq_len", None, 2**24, "tokens per sequence; default: 4096, or the model's maximum"),
        ("grad_accum_steps", 1, 2**16, "microbatches per step"),
    ):
        flags.DEFINE_integer(
            name, default, text, flag_values=values, lower_bound=1, upper_bound=most
        )
    flags.DEFINE_float(
        "mfu", 0.4, "model FLOPs utilization assumed for times", flag_values=values,
        lower_bound=0.001, upper_bound=1.0,
    )  # fmt: skip


def main(values: flags.FlagValues) -> None:
    """Plans the run and prints the plan."""
    given = {name: values[name].value for name in values}
    chip = chips.get_chip(given["chip"])
    model_config = dataclasses.replace(
        planned_config(given["size"]), dtype=chip.dtype, scan_layers=True
    )
    seq_len = given["seq_len"] or min(4096, model_config.max_seq_len or 4096)
    accumulate = given["grad_accum_steps"]
    batch_size = given["batch_size"] or default_batch_size(given["chips"], seq_len) * accumulate
    request = PlanRequest(
        name=given["size"],
        model_config=model_config,
        chip=chip,
        num_chips=given["chips"],
        batch_size=batch_size,
        seq_len=seq_len,
        mfu=given["mfu"],
        optimizer_config=OptimizerConfig(given["optimizer"]),
        grad_accum_steps=accumulate,
    )
    mesh = parse_mesh(given["mesh"]) if given["mesh"] is not None else None
    print(format_plan(find_fitting_plan(request, mesh, given["remat_policy"])))


def planned_config(size: str) -> ModelConfig:
    """Returns the config of a size: a published model's, or that of a small one of one's own."""
    known = PUBLISHED_CONFIGS.get(canonical_size(size))
    return known or config_for_size(size, "llama", vocab_size=_VOCAB_SIZE)


def format_plan(plan: Plan) -> str:
    """Returns the plan as text for a terminal."""
    request, chip = plan.request, plan.request.chip
    tokens = request.batch_size * request.seq_len
    total = f"total, of {plan.bytes_usable / 1e9:.1f} usable"
    rate = f"{request.mfu:.0%} of {chip.peak_flops / 1e12:.1f} TFLOP/s"
    exposed = plan.communication_seconds > plan.compute_seconds
    overlap = "more than compute can hide" if exposed else "hidden behind compute"
    chinchilla_hours = 20 * plan.num_params / tokens * plan.step_seconds / 3600
    lines = [
        f"{request.name}: {plan.num_params:,} parameters on {request.num_chips} {chip.name}, "
        f"--mesh={plan.mesh} --remat_policy={request.model_config.remat_policy}",
        f"one step: {request.batch_size:,} sequences of {request.seq_len:,} = {tokens:,} tokens, "
        f"{request.model_config.dtype} products, {request.optimizer_config.name}",
        "",
        "memory per device                                GB",
        *(f"  {name:<42} {size / 1e9:8.2f}" for name, size in plan.memory_bytes.items()),
        f"  {total:<42} {plan.bytes_needed / 1e9:8.2f}",
        "",
        "sent by each device per step                     GB        s",
        *(
            f"  {cost.axis + ': ' + cost.description:<42} {cost.bytes / 1e9:8.2f} "
            f"{cost.seconds:8.3f}"
            for cost in plan.collectives
        ),
        *(["  nothing"] if not plan.collectives else []),
        "",
        f"FLOPs per step {plan.flops:.3e}, per device {plan.flops / request.num_chips:.3e}",
        f"time per step {plan.step_seconds:.3f} s: compute {plan.compute_seconds:.3f} s at {rate},",
        f"  communication {plan.communication_seconds:.3f} s, {overlap}",
        f"{tokens / plan.step_seconds:,.0f} tokens/s; 20 tokens per parameter in "
        f"{chinchilla_hours:.1f} hours",
        "",
        f"{chip.name}: {chip.source}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run("plan", __doc__, define, main, computes=False, resumes=False)
