"""Whether a training run fits a number of chips, and how long a step takes: before there are any.

From shapes and rules alone: nothing is allocated, no device is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fm.errors import UserError
from fm.model import flops
from fm.model.config import REMAT, ModelConfig
from fm.training import footprint, traffic
from fm.training.chips import USABLE, Chip
from fm.training.meshes import MeshConfig
from fm.training.optimizer import OptimizerConfig

# Of a step, where no batch is given.
_PIECES = 16_384


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be trained, and on what.

    Attributes:
      name: of the model, for messages.
      model: its config.
      chip: of every device.
      chips: how many.
      batch_size: sequences in a step, over all devices.
      length: pieces in a sequence (L).
      mfu: share of the chips' peak that the mathematics of a step reaches (Chowdhery et al. 2022,
        appendix B).
      rule: optimiser.
      accumulate: parts a batch is taken in.
    """

    name: str
    model: ModelConfig
    chip: Chip
    chips: int
    batch_size: int
    length: int
    mfu: float = 0.4
    rule: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig("adamw"))
    accumulate: int = 1

    def __post_init__(self):
        self.model.check_length(self.length)
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu={self.mfu} is a share of the peak, above 0 and at most 1")
        if min(self.chips, self.batch_size, self.length - 1, self.accumulate) < 1:
            raise UserError(
                f"chips={self.chips}, batch_size={self.batch_size} and "
                f"accumulate={self.accumulate} must be 1 or more, and length={self.length} 2"
            )
        if self.chips > self.chip.joined and not self.chip.network:
            raise UserError(
                f"chips={self.chips}: at most {self.chip.joined} {self.chip.name} are joined"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way of doing it.

    Attributes:
      asked: see `Asked`; its model with a remat policy.
      mesh: sizes of the axes.
      parameters: numbers in the model.
      memory: bytes on each device, by what they are for, see `fm.training.footprint`.
      flops: of a step, over all devices, by `fm.model.flops`; what is computed twice counts once.
      sent: see `fm.training.traffic`.
    """

    asked: Asked
    mesh: MeshConfig
    parameters: int
    memory: dict[str, float]
    flops: float
    sent: list[traffic.Sent]

    @property
    def needed(self) -> float:
        """Bytes on each device."""
        return sum(self.memory.values())

    @property
    def usable(self) -> float:
        """Bytes there are."""
        return USABLE * self.asked.chip.memory

    @property
    def computing(self) -> float:
        """Seconds of a step at the given share of the peak."""
        return self.flops / (self.asked.chips * self.asked.chip.flops * self.asked.mfu)

    @property
    def sending(self) -> float:
        """Seconds of a step's communication, one after another and alone."""
        return sum(each.seconds for each in self.sent)

    @property
    def seconds(self) -> float:
        """Of a step: what is sent hides behind what is computed, or the other way round."""
        return max(self.computing, self.sending)


def default_batch(chips: int, length: int) -> int:
    """Sequences of a step where none are given: 16,384 pieces a device, one sequence at least."""
    return chips * max(1, _PIECES // length)


def plan(asked: Asked, mesh: MeshConfig) -> Plan:
    """What a run takes on one mesh, whether or not it fits.

    Raises:
      UserError: the mesh is of another number of chips, or model or batch do not divide over it.
    """
    if mesh.size != asked.chips:
        raise UserError(f"--mesh={mesh} takes {mesh.size} chips, not {asked.chips}")
    parts = mesh.rows * asked.accumulate
    if asked.batch_size % parts:
        raise UserError(
            f"batch_size={asked.batch_size} does not divide into {parts} parts: data x fsdp of "
            f"--mesh={mesh}, times accumulate={asked.accumulate}"
        )
    model, rule = asked.model, asked.rule
    pieces = asked.batch_size // parts * asked.length
    length, predictions = flops.cost("next", asked.length, hide=0.0)
    return Plan(
        asked=asked,
        mesh=mesh,
        parameters=footprint.numbers(footprint.state_shapes(model, rule)["params"]),
        memory=footprint.memory(model, rule, mesh, pieces),
        flops=asked.batch_size * flops.train_flops(model, length, predictions=predictions),
        sent=traffic.sent(model, rule, mesh, asked.chip, pieces, asked.accumulate),
    )


def fitting(asked: Asked, mesh: MeshConfig | None = None, remat: str | None = None) -> Plan:
    """The plan that fits: of meshes the quickest, and of policies the first that keeps the most.

    Args:
      asked: see `Asked`.
      mesh: all that there are for the chips if not given.
      remat: all policies if not given, from "none" to "full".

    Raises:
      UserError: nothing fits (says what takes how much), or divides.
    """
    meshes = [mesh] if mesh else list(_meshes(asked))
    closest: list[Plan] = []
    refusal = None
    for policy in (remat,) if remat else REMAT:
        model = dataclasses.replace(asked.model, remat=policy)
        found = []
        for each in meshes:
            try:
                found.append(plan(dataclasses.replace(asked, model=model), each))
            except UserError as error:
                refusal = refusal or error
        fit = [each for each in found if each.needed <= each.usable]
        if fit:
            return min(fit, key=lambda each: (each.seconds, each.sending, each.needed))
        closest += found
    if not closest:
        assert refusal is not None
        raise refusal
    raise UserError(_refused(min(closest, key=_needed)))


def _needed(plan: Plan) -> float:
    return plan.needed


def _meshes(asked: Asked) -> Iterator[MeshConfig]:
    """Every mesh of so many chips; `tensor` stays within the fast network."""
    for tensor in _divisors(asked.chips):
        if tensor <= min(asked.chip.joined, asked.model.heads):
            for fsdp in _divisors(asked.chips // tensor):
                yield MeshConfig(asked.chips // tensor // fsdp, fsdp, tensor)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _refused(plan: Plan) -> str:
    asked = plan.asked
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory.items())
    return (
        f"{asked.name} does not fit {asked.chips} {asked.chip.name}: at best (--mesh={plan.mesh}, "
        f"--remat={asked.model.remat}) {plan.needed / 1e9:.2f} GB on each ({parts}), of "
        f"{plan.usable / 1e9:.2f} usable; take more chips, or a smaller --batch_size or --length"
    )
