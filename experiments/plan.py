"""Whether a training run fits a number of chips, and how long its steps take: before there are any.

    python -m experiments.plan --size=1b --chips=256 --chip=h100
    python -m experiments.plan --size=8b --chips=64 --chip=v5p --mesh=fsdp:64 --remat=full

Prints memory on each device, FLOPs, communication and time of a step, from shapes and sharding
rules alone; nothing is allocated, and a run that cannot fit is refused. The memory of activations
is an estimate, and the times follow from the share of the peak that --mfu says is reached.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from experiments import command
from fm.model.config import PUBLISHED_CONFIGS, REMAT_POLICIES
from fm.parallel import mesh as meshes
from fm.planning import chips
from fm.planning.plan import Plan, PlanRequest, default_batch_size, find_fitting_plan
from fm.training.optimizer import OptimizerConfig


def define(values: flags.FlagValues) -> None:
    """Model, chips, batch."""
    flags.DEFINE_enum("size", "1b", list(PUBLISHED_CONFIGS), "of the model", flag_values=values)
    flags.DEFINE_enum("chip", "h100", list(chips.CHIPS), "kind of device", flag_values=values)
    flags.DEFINE_string(
        "mesh", None, "such as data:32,fsdp:8; if not given the quickest that fits",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "remat", None, REMAT_POLICIES,
        "what layers keep for the backward pass; if not given the most that fits",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "optimizer", "adamw", ["adamw", "muon"], "whose memory is counted", flag_values=values
    )
    for name, default, most, text in (
        ("chips", 8, 100_000, "how many devices"),
        ("batch_size", None, 2**31, "sequences in a step; if not given 16,384 tokens a device"),
        ("length", None, 2**24, "tokens in a sequence; if not given 4096, or the model's most"),
        ("accumulate", 1, 2**16, "parts a batch is taken in, one after another"),
    ):
        flags.DEFINE_integer(
            name, default, text, flag_values=values, lower_bound=1, upper_bound=most
        )
    flags.DEFINE_float(
        "mfu", 0.4, "share of the chips' peak that is reached", flag_values=values,
        lower_bound=0.001, upper_bound=1.0,
    )  # fmt: skip


def main(values: flags.FlagValues) -> None:
    """Plans, and prints."""
    given = {name: values[name].value for name in values}
    chip = chips.get_chip(given["chip"])
    model = dataclasses.replace(
        PUBLISHED_CONFIGS[given["size"]], dtype=chip.dtype, scan_layers=True
    )
    length = given["length"] or min(4096, model.max_seq_len)
    batch_size = (
        given["batch_size"] or default_batch_size(given["chips"], length) * given["accumulate"]
    )
    asked = PlanRequest(
        name=given["size"],
        model_config=model,
        chip=chip,
        num_chips=given["chips"],
        batch_size=batch_size,
        seq_len=length,
        mfu=given["mfu"],
        optimizer_config=OptimizerConfig(given["optimizer"]),
        grad_accum_steps=given["accumulate"],
    )
    mesh = meshes.parse_mesh(given["mesh"]) if given["mesh"] is not None else None
    print(text(find_fitting_plan(asked, mesh, given["remat"])))


def text(plan: Plan) -> str:
    """The plan as a person reads it."""
    asked, chip = plan.request, plan.request.chip
    pieces = asked.batch_size * asked.seq_len
    usable = f"all, of {plan.bytes_usable / 1e9:.1f} usable"
    rate = f"{asked.mfu:.0%} of {chip.peak_flops / 1e12:.1f} TFLOP/s"
    lines = [
        f"{asked.name}: {plan.num_params:,} parameters on {asked.num_chips} {chip.name}, "
        f"--mesh={plan.mesh} --remat={asked.model_config.remat_policy}",
        f"a step: {asked.batch_size:,} sequences of {asked.seq_len:,} = {pieces:,} tokens, "
        f"{asked.model_config.dtype} products, {asked.optimizer_config.name}",
        "",
        "memory on each device                            GB",
        *(f"  {name:<42} {size / 1e9:8.2f}" for name, size in plan.memory_bytes.items()),
        f"  {usable:<42} {plan.bytes_needed / 1e9:8.2f}",
        "",
        "sent by each device, a step                      GB        s",
        *(
            f"  {each.axis + ': ' + each.description:<42} {each.bytes / 1e9:8.2f} {each.seconds:8.3f}"
            for each in plan.collectives
        ),
        *(["  nothing"] if not plan.collectives else []),
        "",
        f"FLOPs of a step {plan.flops:.3e}, on each device {plan.flops / asked.num_chips:.3e}",
        f"a step takes {plan.step_seconds:.3f} s: computing at {rate} {plan.compute_seconds:.3f} s, "
        f"sending {plan.communication_seconds:.3f} s"
        + (
            ", more than can hide"
            if plan.communication_seconds > plan.compute_seconds
            else ", behind it"
        ),
        f"{pieces / plan.step_seconds:,.0f} tokens/s; 20 tokens a parameter in "
        f"{20 * plan.num_params / pieces * plan.step_seconds / 3600:.1f} hours",
        "",
        f"{chip.name}: {chip.source}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    command.run("plan", __doc__, define, main)
