"""What a run of the benchmark is asked for, as the kinds of case see it."""

from __future__ import annotations

import dataclasses

from fm.benchmark.timing import Pace

SCALES = ("quick", "default", "full")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes and pace of a run.

    Attributes:
      scale: "quick" has tiny shapes and is for tests; "default" is the published set; "full"
        adds to it what takes long.
      platform: of JAX: "cpu", "gpu" or "tpu".
      repeats: rounds per case, or None for the scale's; a slow case gets fewer.
      attention: names of attention implementations measured beside the one `choose` picks.
      seed: of all data.
    """

    scale: str = "default"
    platform: str = "cpu"
    repeats: int | None = None
    attention: tuple[str, ...] = ()
    seed: int = 0

    @property
    def quick(self) -> bool:
        """Whether shapes are tiny."""
        return self.scale == "quick"

    @property
    def accelerator(self) -> bool:
        """Whether the work runs elsewhere than on the host."""
        return self.platform != "cpu"

    @property
    def pace(self) -> Pace:
        """How long and how often to measure."""
        rounds = {"quick": 3, "default": 7, "full": 11}[self.scale]
        return Pace(
            repeats=self.repeats or rounds,
            turn_seconds=0.002 if self.quick else 0.1,
            ahead=self.accelerator,
            most_seconds=90.0,
        )

    @property
    def gemm_size(self) -> int:
        """Side of the square matrix products that stand for the peak rate."""
        return 256 if self.quick else 8192 if self.accelerator else 2048
