"""Lottery tickets with all their controls: iterative magnitude pruning of the generator, rewound to its start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ganprune.core.files import cache_dir
from ganprune.core.random import step_seed
from ganprune.data.splits import ImageData
from ganprune.experiments.base import Experiment, Seconds, course_data, figures, layers_of, trackers
from ganprune.experiments.training import SAVE_EVERY, FromScratch
from ganprune.lottery.controls import CONTROLS
from ganprune.lottery.iterative import find_tickets
from ganprune.lottery.tickets import Ticket
from ganprune.records.store import config_hash
from ganprune.training.callbacks import Checkpoint, every
from ganprune.training.loop import train
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class Tickets(Experiment):
    """Rounds of training, pruning and rewinding; each ticket is trained as long as the dense network.

    Attributes:
        start: the untrained pair and its training.
        rounds: of pruning.
        keep: share of the remaining weights that a round keeps; 0.631 reaches 90% in five rounds.
        controlled: rounds whose tickets are compared with all three controls.
        samples: generated images per measurement.
    """

    name: ClassVar[str] = "tickets"

    start: FromScratch
    rounds: int = 5
    keep: float = 0.631
    controlled: tuple[int, ...] = (4, 5)
    samples: int = 10_000

    @property
    def steps(self) -> int:
        """Generator updates of one seed, controls included."""
        return self.start.steps * (1 + self.rounds + len(CONTROLS) * len(self.controlled))

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"{self.rounds} rounds that keep {self.keep:.1%}, {self.start.steps:,} steps each"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows for each round and arm: "ticket" (round 0 is dense), "reinitialised", "shuffled", "random"."""
        data = course_data()
        folder = cache_dir() / f"{config_hash(self)}-{seed}"
        config = dataclasses.replace(self.start.training, seed=seed)
        found = find_tickets(
            self.start.initial(seed),
            data.train,
            config,
            self.rounds,
            keep=self.keep,
            callbacks=[Seconds(), *trackers(self, seed, self.start.steps, "ticket")],
            folder=folder,
        )
        for one in found:
            yield from self._rows(one.state, data, one.number, "ticket", one.ticket)
            for arm in CONTROLS if one.number in self.controlled else ():
                control = CONTROLS[arm](one.ticket, step_seed(seed, one.number, arm))
                path = folder / f"{arm}-{one.number:02}.safetensors"
                state = TrainState.resume(path, control.start, data.train.device)
                callbacks = [Seconds(), *trackers(self, seed, self.start.steps, arm)]
                train(state, data.train, [*callbacks, every(SAVE_EVERY, Checkpoint(path))])
                yield from self._rows(state, data, one.number, arm, control)

    def _rows(
        self, state: TrainState, data: ImageData, number: int, arm: str, ticket: Ticket
    ) -> Iterator[dict[str, Any]]:
        made: dict[str, Any] = {"stage": "trained", "round": number, "arm": arm, **layers_of(state.gan)}
        made |= {"sparsity": ticket.sparsity, "step": state.step}
        made |= state.rows[Seconds.name][0] if Seconds.name in state.rows else {}
        made |= {"precision_of_training": state.config.precision, **state.history[-1]}
        for row in figures(state.gan, data, self.samples, state.config.loss):
            yield {**made, **row}
