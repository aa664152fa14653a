"""Lottery tickets of a small GAN on the ring, with more controls than the digits can afford."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ganprune.allocation.choose import allocate
from ganprune.core.random import step_seed
from ganprune.experiments.base import Experiment, Seconds, trackers
from ganprune.experiments.ring_training import RingPoints, RingTraining, trained_row
from ganprune.lottery.controls import CONTROLS, reinitialise_ticket
from ganprune.lottery.iterative import Round, find_tickets
from ganprune.masks.weights import prunable_weights
from ganprune.networks.gan import GAN
from ganprune.scores.registry import Scores, score
from ganprune.training.loop import train
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class RingTickets(Experiment):
    """Rounds of training, pruning and rewinding on the ring; every arm is trained as long as the dense network.

    Attributes:
        start: the untrained pair and its training.
        rounds: of pruning.
        keep: share of the remaining weights that a round keeps; 0.631 reaches 90% in five rounds.
        controlled: rounds whose tickets are compared with all controls; claims speak of the first.
    """

    name: ClassVar[str] = "ring tickets"

    start: RingTraining = field(default_factory=RingTraining)
    rounds: int = 7
    keep: float = 0.631
    controlled: tuple[int, ...] = (5, 7)

    @property
    def steps(self) -> int:
        """Generator updates of one seed, controls included."""
        return self.start.steps * (1 + self.rounds + len(RING_CONTROLS) * len(self.controlled))

    @property
    def label(self) -> str:
        """The arm in a few words."""
        rate = self.start.training.learning_rate
        return f"{self.rounds} rounds that keep {self.keep:.1%}, {self.start.steps:,} steps each at rate {rate:g}"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """A row for each round and arm: "ticket" (round 0 is dense), and those of :data:`RING_CONTROLS`."""
        config = dataclasses.replace(self.start.training, seed=seed)
        pair = self.start.initial(seed)
        callbacks = [Seconds(), *trackers(self, seed, self.start.steps, "ticket")]
        found = find_tickets(
            pair,
            RingPoints(),
            config,
            self.rounds,
            keep=self.keep,
            callbacks=callbacks,
            show_progress=False,
        )
        once: Scores | None = None
        for one in found:
            if once is None:  # the dense network, trained
                once = score(one.state.gan.generator, "magnitude")
            yield _row(one.state, one.number, "ticket")
            for arm, make in RING_CONTROLS.items() if one.number in self.controlled else ():
                state = make(self, one, once, step_seed(seed, one.number, arm))
                callbacks = [Seconds(), *trackers(self, seed, self.start.steps, arm)]
                train(state, RingPoints(), callbacks, show_progress=False)
                yield _row(state, one.number, arm)


def _row(state: TrainState, number: int, arm: str) -> dict[str, Any]:
    weights = prunable_weights(state.gan.generator).values()
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    return {**trained_row(state), "round": number, "arm": arm, "kept": kept}


def _moved(arm: str) -> _Control:
    """A control of any lottery."""
    return lambda study, one, once, seed: CONTROLS[arm](one.ticket, seed).start()


def _fresh_generator(study: RingTickets, one: Round, once: Scores, seed: int) -> TrainState:
    """The same mask on fresh weights of the generator alone, against the ticket's discriminator."""
    return reinitialise_ticket(one.ticket, seed, "generator").start()


def _one_shot(study: RingTickets, one: Round, once: Scores, seed: int) -> TrainState:
    """As many weights, chosen at once by the dense network's magnitudes after training."""
    mask = allocate(once, one.ticket.sparsity, "global")
    return dataclasses.replace(one.ticket, masks={"generator": mask}, arm="one-shot").start()


def _on_other_batches(study: RingTickets, one: Round, once: Scores, seed: int) -> TrainState:
    """The ticket itself, on other points and latents."""
    return one.ticket.start(dataclasses.replace(one.ticket.rewound.config, seed=seed))


def _small_and_dense(study: RingTickets, one: Round, once: Scores, seed: int) -> TrainState:
    """A dense generator with as many weights, as nearly as two equally wide layers can have, and the same opponent."""
    width = round(math.sqrt(one.ticket.kept + 4) - 2)  # width² + 4 width weights
    small = dataclasses.replace(study.start, hidden=(width, width)).initial(seed)
    ticket = one.ticket.rewound
    return TrainState(GAN(small.generator, copy.deepcopy(ticket.gan.discriminator)), ticket.config)


_Control = Callable[[RingTickets, Round, Scores, int], TrainState]
RING_CONTROLS: dict[str, _Control] = {
    "reinitialised": _moved("reinitialised"),
    "fresh generator": _fresh_generator,
    "shuffled": _moved("shuffled"),
    "random": _moved("random"),
    "one-shot": _one_shot,
    "small and dense": _small_and_dense,
    "other batches": _on_other_batches,
}
"""The controls by their names: from the study, a round, the dense network's scores and a seed, a state to train."""
