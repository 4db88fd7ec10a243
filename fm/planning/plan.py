"""Plans a training run: whether it fits on some chips, and the time of a step.

Uses shapes and sharding rules alone: nothing is allocated and no device is needed.
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

_DEFAULT_TOKENS_PER_DEVICE = 16_384


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """The model, chips, batch and optimizer of a training run to plan.

    Attributes:
      name: of the model, for messages.
      model_config: of the model.
      chip: of every device.
      num_chips: number of devices.
      batch_size: sequences in a step, over all devices.
      seq_len: tokens in a sequence (L).
      mfu: fraction of the chips' peak FLOP/s that a step reaches (Chowdhery et al. 2022,
        appendix B).
      optimizer_config: of the optimizer.
      grad_accum_steps: microbatches a batch is split into.
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
            raise UserError(f"mfu={self.mfu} must be above 0 and at most 1")
        if min(self.num_chips, self.batch_size, self.seq_len - 1, self.grad_accum_steps) < 1:
            raise UserError(
                f"chips={self.num_chips}, batch_size={self.batch_size} and "
                f"grad_accum_steps={self.grad_accum_steps} must be 1 or more, and "
                f"seq_len={self.seq_len} 2 or more"
            )
        if self.num_chips > self.chip.fast_network_size and not self.chip.network_bandwidth:
            raise UserError(
                f"chips={self.num_chips}: at most {self.chip.fast_network_size} "
                f"{self.chip.name} can be connected"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimated memory, FLOPs and step time of a training run on one mesh.

    Attributes:
      request: see `PlanRequest`; its model with a remat policy.
      mesh: sizes of the axes.
      num_params: number of parameters.
      memory_bytes: on each device by purpose, see `memory.estimate_memory`.
      flops: of a step over all devices, without rematerialization.
      collectives: see `communication.estimate_communication`.
    """

    request: PlanRequest
    mesh: MeshConfig
    num_params: int
    memory_bytes: dict[str, float]
    flops: float
    collectives: list[communication.CollectiveCost]

    @property
    def bytes_needed(self) -> float:
        """Bytes needed on each device."""
        return sum(self.memory_bytes.values())

    @property
    def bytes_usable(self) -> float:
        """Bytes usable on each device."""
        return USABLE_MEMORY_FRACTION * self.request.chip.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """Seconds of a step's computation at the given MFU."""
        request = self.request
        return self.flops / (request.num_chips * request.chip.peak_flops * request.mfu)

    @property
    def communication_seconds(self) -> float:
        """Seconds of a step's collectives, one after another."""
        return sum(collective.seconds for collective in self.collectives)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, if computation and communication overlap."""
        return max(self.compute_seconds, self.communication_seconds)


def default_batch_size(num_chips: int, seq_len: int) -> int:
    """Returns the sequences per step that give each device 16,384 tokens (at least 1 sequence)."""
    return num_chips * max(1, _DEFAULT_TOKENS_PER_DEVICE // seq_len)


def plan_on_mesh(request: PlanRequest, mesh: MeshConfig) -> Plan:
    """Returns the plan of a run on the given mesh, whether or not it fits in memory.

    Raises:
      UserError: the mesh has another number of chips, or does not divide the model or batch.
    """
    if mesh.num_devices != request.num_chips:
        raise UserError(f"--mesh={mesh} takes {mesh.num_devices} chips, not {request.num_chips}")
    parts = mesh.batch_shards * request.grad_accum_steps
    if request.batch_size % parts:
        raise UserError(
            f"batch_size={request.batch_size} does not divide into {parts} parts: data x fsdp of "
            f"--mesh={mesh}, times grad_accum_steps={request.grad_accum_steps}"
        )
    model_config, optimizer_config = request.model_config, request.optimizer_config
    tokens = request.batch_size // parts * request.seq_len
    length, num_predictions = flops.input_and_prediction_counts(
        "causal_lm", request.seq_len, mask_ratio=0.0
    )
    sequence_flops = flops.train_flops(model_config, length, num_predictions=num_predictions)
    return Plan(
        request=request,
        mesh=mesh,
        num_params=memory.num_elements(memory.state_shapes(model_config, optimizer_config).params),
        memory_bytes=memory.estimate_memory(model_config, optimizer_config, mesh, tokens),
        flops=request.batch_size * sequence_flops,
        collectives=communication.estimate_communication(
            model_config, optimizer_config, mesh, request.chip, tokens, request.grad_accum_steps
        ),
    )


def find_fitting_plan(
    request: PlanRequest, mesh: MeshConfig | None = None, remat_policy: str | None = None
) -> Plan:
    """Returns the fastest plan that fits in memory, with as little recomputation as possible.

    Args:
      request: see `PlanRequest`.
      mesh: all meshes of so many chips unless given.
      remat_policy: all, from "none" to "full", unless given.

    Raises:
      UserError: nothing fits (says what takes how much memory), or no mesh divides model or batch.
    """
    meshes = [mesh] if mesh else list(_meshes(request))
    too_large: list[Plan] = []
    refusal = None
    for policy in (remat_policy,) if remat_policy else REMAT_POLICIES:
        model_config = dataclasses.replace(request.model_config, remat_policy=policy)
        plans = []
        for each in meshes:
            try:
                plans.append(
                    plan_on_mesh(dataclasses.replace(request, model_config=model_config), each)
                )
            except UserError as error:
                refusal = refusal or error
        fitting = [plan for plan in plans if plan.bytes_needed <= plan.bytes_usable]
        if fitting:
            return min(
                fitting,
                key=lambda plan: (
                    plan.step_seconds,
                    plan.communication_seconds,
                    plan.bytes_needed,
                ),
            )
        too_large += plans
    if not too_large:
        assert refusal is not None
        raise refusal
    raise UserError(_too_large_message(min(too_large, key=lambda plan: plan.bytes_needed)))


def _meshes(request: PlanRequest) -> Iterator[MeshConfig]:
    """Yields every mesh of so many chips whose tensor axis stays within the fast network."""
    for tensor in _divisors(request.num_chips):
        if tensor <= min(request.chip.fast_network_size, request.model_config.num_heads):
            for fsdp in _divisors(request.num_chips // tensor):
                yield MeshConfig(request.num_chips // tensor // fsdp, fsdp, tensor)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _too_large_message(plan: Plan) -> str:
    request = plan.request
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory_bytes.items())
    return (
        f"{request.name} does not fit {request.num_chips} {request.chip.name}: at best "
        f"(--mesh={plan.mesh}, --remat_policy={request.model_config.remat_policy}) "
        f"{plan.bytes_needed / 1e9:.2f} GB on each ({parts}), of {plan.bytes_usable / 1e9:.2f} "
        "usable; use more chips, or a smaller --batch_size or --seq_len"
    )
