"""Whether a training run fits a number of chips, and how long a step takes: before there are any.

From shapes and rules alone: nothing is allocated, no device is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fm.errors import UserError
from fm.model import flops
from fm.model.config import REMAT_POLICIES, ModelConfig
from fm.parallel.mesh import MeshConfig
from fm.planning import communication, memory
from fm.planning.chips import USABLE_MEMORY_FRACTION, Chip
from fm.training.optimizer import OptimizerConfig

# Of a step, where no batch is given.
_PIECES = 16_384


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What is to be trained, and on what.

    Attributes:
      name: of the model, for messages.
      model_config: its config.
      chip: of every device.
      num_chips: how many.
      batch_size: sequences in a step, over all devices.
      seq_len: pieces in a sequence (L).
      mfu: share of the chips' peak that the mathematics of a step reaches (Chowdhery et al. 2022,
        appendix B).
      optimizer_config: optimiser.
      grad_accum_steps: parts a batch is taken in.
    """

    name: str
    model_config: ModelConfig
    chip: Chip
    num_chips: int
    batch_size: int
    seq_len: int
    mfu: float = 0.4
    optimizer_config: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig("adamw")
    )
    grad_accum_steps: int = 1

    def __post_init__(self):
        self.model_config.check_length(self.seq_len)
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu={self.mfu} is a share of the peak, above 0 and at most 1")
        if min(self.num_chips, self.batch_size, self.seq_len - 1, self.grad_accum_steps) < 1:
            raise UserError(
                f"num_chips={self.num_chips}, batch_size={self.batch_size} and "
                f"grad_accum_steps={self.grad_accum_steps} must be 1 or more, and seq_len={self.seq_len} 2"
            )
        if self.num_chips > self.chip.fast_network_size and not self.chip.network_bandwidth:
            raise UserError(
                f"num_chips={self.num_chips}: at most {self.chip.fast_network_size} {self.chip.name} are joined"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way of doing it.

    Attributes:
      request: see `Asked`; its model with a remat policy.
      mesh: sizes of the axes.
      num_params: numbers in the model.
      memory_bytes: bytes on each device, by what they are for, see `fm.planning.memory`.
      flops: of a step, over all devices, by `fm.model.flops`; what is computed twice counts once.
      collectives: see `fm.planning.communication`.
    """

    request: PlanRequest
    mesh: MeshConfig
    num_params: int
    memory_bytes: dict[str, float]
    flops: float
    collectives: list[communication.CollectiveCost]

    @property
    def bytes_needed(self) -> float:
        """Bytes on each device."""
        return sum(self.memory_bytes.values())

    @property
    def bytes_usable(self) -> float:
        """Bytes there are."""
        return USABLE_MEMORY_FRACTION * self.request.chip.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """Seconds of a step at the given share of the peak."""
        return self.flops / (
            self.request.num_chips * self.request.chip.peak_flops * self.request.mfu
        )

    @property
    def communication_seconds(self) -> float:
        """Seconds of a step's communication, one after another and alone."""
        return sum(each.seconds for each in self.collectives)

    @property
    def step_seconds(self) -> float:
        """Of a step: what is sent hides behind what is computed, or the other way round."""
        return max(self.compute_seconds, self.communication_seconds)


def default_batch_size(num_chips: int, seq_len: int) -> int:
    """Sequences of a step where none are given: 16,384 pieces a device, one sequence at least."""
    return num_chips * max(1, _PIECES // seq_len)


def plan_on_mesh(request: PlanRequest, mesh: MeshConfig) -> Plan:
    """What a run takes on one mesh, whether or not it fits.

    Raises:
      UserError: the mesh is of another number of chips, or model or batch do not divide over it.
    """
    if mesh.num_devices != request.num_chips:
        raise UserError(f"--mesh={mesh} takes {mesh.num_devices} chips, not {request.num_chips}")
    parts = mesh.batch_shards * request.grad_accum_steps
    if request.batch_size % parts:
        raise UserError(
            f"batch_size={request.batch_size} does not divide into {parts} parts: data x fsdp of "
            f"--mesh={mesh}, times accumulate={request.grad_accum_steps}"
        )
    model, rule = request.model_config, request.optimizer_config
    pieces = request.batch_size // parts * request.seq_len
    length, predictions = flops.sequence_cost("next", request.seq_len, mask_ratio=0.0)
    return Plan(
        request=request,
        mesh=mesh,
        num_params=memory.num_elements(memory.state_shapes(model, rule)["params"]),
        memory_bytes=memory.estimate_memory(model, rule, mesh, pieces),
        flops=request.batch_size * flops.train_flops(model, length, num_predictions=predictions),
        collectives=communication.estimate_communication(
            model, rule, mesh, request.chip, pieces, request.grad_accum_steps
        ),
    )


def find_fitting_plan(
    request: PlanRequest, mesh: MeshConfig | None = None, remat_policy: str | None = None
) -> Plan:
    """The plan that fits: of meshes the quickest, and of policies the first that keeps the most.

    Args:
      request: see `Asked`.
      mesh: all that there are for the chips if not given.
      remat_policy: all policies if not given, from "none" to "full".

    Raises:
      UserError: nothing fits (says what takes how much), or divides.
    """
    meshes = [mesh] if mesh else list(_meshes(request))
    closest: list[Plan] = []
    refusal = None
    for policy in (remat_policy,) if remat_policy else REMAT_POLICIES:
        model = dataclasses.replace(request.model_config, remat_policy=policy)
        found = []
        for each in meshes:
            try:
                found.append(plan_on_mesh(dataclasses.replace(request, model_config=model), each))
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
    return plan.bytes_needed


def _meshes(asked: PlanRequest) -> Iterator[MeshConfig]:
    """Every mesh of so many chips; `tensor` stays within the fast network."""
    for tensor in _divisors(asked.num_chips):
        if tensor <= min(asked.chip.fast_network_size, asked.model_config.num_heads):
            for fsdp in _divisors(asked.num_chips // tensor):
                yield MeshConfig(asked.num_chips // tensor // fsdp, fsdp, tensor)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _refused(plan: Plan) -> str:
    asked = plan.request
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory_bytes.items())
    return (
        f"{asked.name} does not fit {asked.num_chips} {asked.chip.name}: at best (--mesh={plan.mesh}, "
        f"--remat={asked.model_config.remat_policy}) {plan.bytes_needed / 1e9:.2f} GB on each ({parts}), of "
        f"{plan.bytes_usable / 1e9:.2f} usable; take more chips, or a smaller --batch_size or --length"
    )
