"""What callbacks that prune after a schedule share: which steps, and to which sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ganprune.core.checks import check_choice, check_integer
from ganprune.dynamic.common import NETWORKS
from ganprune.dynamic.schedules import Schedule, get_schedule
from ganprune.masks.mask import Mask, check_sparsity
from ganprune.training.callbacks import PRUNE
from ganprune.training.state import TrainState


class ScheduledPruning:
    """A callback that prunes one network at the steps ``start``, ``start + every``, … and ``end`` of a schedule.

    Args:
        network: "generator" or "discriminator".
        sparsity: final, in [0, 1); None where the schedule says it.
        schedule: a name in ``SCHEDULES``, or a function from step to sparsity that never falls.
        start: first step of the schedule.
        end: last step of the schedule; None where the schedule says it.
        every: steps between two prunings; "piecewise" may prune at every step.
        protect: layers to leave alone.
        schedule_options: further options of the schedule.

    Attributes:
        rows: one per pruning: step, network, sparsity.

    Raises:
        ValueError: if an argument is out of range, the schedule falls, or does not end at ``sparsity``.
        TypeError: if an option of the schedule is missing or unknown.
    """

    order = PRUNE

    def __init__(
        self,
        network: str,
        sparsity: float | None,
        schedule: str | Schedule,
        start: int,
        end: int | None,
        every: int,
        protect: Iterable[str],
        schedule_options: Mapping[str, Any] | None,
    ) -> None:
        self.network = check_choice("network", network, NETWORKS)
        self.start, self.every = check_integer("start", start, 0), check_integer("every", every, 1)
        self.protect = tuple([protect] if isinstance(protect, str) else protect)
        self._plan(sparsity, schedule, end, dict(schedule_options or {}))
        self.rows: list[dict[str, Any]] = []

    def _plan(self, sparsity: float | None, schedule: Any, end: int | None, options: dict[str, Any]) -> None:
        final = None if sparsity is None else check_sparsity(sparsity)
        if final is None and (schedule in ("cubic", "one-shot", "geometric")):
            raise ValueError(f"sparsity must be given for the schedule {schedule!r}")
        if schedule == "cubic":
            options |= {"start": self.start, "end": end, "final": final}
            if end is None:
                raise ValueError("end must be given for the schedule 'cubic', got None")
        elif schedule == "one-shot":
            options |= {"start": self.start, "final": final}
            end = self.start if end is None else end
        elif schedule == "geometric":
            options = {"keep": 0.8, **options, "start": self.start, "every": self.every, "final": final}
            if end is None and final is not None and 0 < options["keep"] < 1:
                end = self.start + self.every * math.ceil(
                    math.log(1 - final) / math.log(options["keep"]) - 1e-9
                )
        elif schedule == "piecewise":
            self.every = 1  # it changes at its points alone
            end = max(options.get("points") or [0]) if end is None else end
        self._schedule = get_schedule(schedule, **options)
        if end is None:
            raise ValueError(f"end must be given for the schedule {schedule!r}, got None")
        self.end = check_integer("end", end, self.start)
        values = [self._schedule(step) for step in (*range(self.start, self.end, self.every), self.end)]
        if any(later < earlier for earlier, later in zip(values, values[1:], strict=False)):
            raise ValueError(f"schedule must not fall between start {self.start} and end {self.end}")
        if final is not None and values[-1] != final:
            raise ValueError(
                f"schedule must reach the sparsity {final!r} at end {self.end}, it gives {values[-1]!r}; "
                "choose another end"
            )

    def sparsity_at(self, step: int) -> float:
        """The sparsity that belongs to a step: that of the last pruning at or before it; 0 before ``start``."""
        if step < self.start:
            return 0.0
        passed = self.start + (step - self.start) // self.every * self.every
        return self._schedule(self.end if step >= self.end else passed)

    def _record(self, state: TrainState, mask: Mask) -> None:
        self.rows.append({"step": state.step, "network": self.network, "sparsity": mask.sparsity})
