"""Lottery tickets for GANs: iterative magnitude pruning with rewinding, round by round.

The GAN that it is given stays as it is. A run can be killed at any moment and called again: with a folder it
goes on at the round and step where it was, to the same weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.random import step_seed
from ganprune.core.tensors import CheckpointError
from ganprune.lottery.run_folder import RunFolder, Trainer, TrainingCallback
from ganprune.lottery.tickets import Ticket, check_dense, check_networks, copy_gan, copy_state
from ganprune.masks.mask import Mask
from ganprune.networks.gan import GAN
from ganprune.scores.registry import get_score, score
from ganprune.training.config import TrainConfig
from ganprune.training.loop import BatchSource
from ganprune.training.state import TrainState

REWINDINGS = ("init", "late", "learning-rate")

ScoreOfState = Callable[[TrainState, str], Mapping[str, Tensor]]
"""(trained state, network's name) → scores, for scores that need a loss or inputs."""


@dataclass(frozen=True, eq=False)
class Round:
    """One round of :func:`find_tickets`.

    Attributes:
        number: 0 for the dense training.
        ticket: what was trained in this round.
        state: as training left it; the caller may do with it as it likes.
        row: plain values: round, sparsity, kept, start_step, step, the last losses of the history, sparsity per
            network, and "measured", the rows of all callbacks up to the end of this round.
    """

    number: int
    ticket: Ticket
    state: TrainState
    row: dict[str, Any]


def find_tickets(
    gan: GAN,
    split: BatchSource,
    config: TrainConfig,
    rounds: int,
    *,
    keep: float = 0.8,
    rewind: str = "init",
    rewind_step: int | None = None,
    networks: str | Sequence[str] = ("generator",),
    score: str | ScoreOfState = "magnitude",
    allocation: str = "global",
    protect: Iterable[str] | Mapping[str, Iterable[str]] = (),
    callbacks: Iterable[TrainingCallback] = (),
    folder: str | Path | None = None,
    checkpoint_every: int = 500,
    show_progress: bool = True,
) -> Iterator[Round]:
    """Iterative magnitude pruning (IMP) with rewinding (Frankle & Carbin 2019), round by round.

    Round 0 trains the dense GAN. Every later round prunes what the round before trained, so that the sparsity is
    1 − keep^round (to the nearest weight; masks are nested), rewinds, and trains again to ``config.steps`` with
    the masks kept. What is rewound is the whole state: generator, discriminator, batch-norm statistics, EMA, both
    optimisers, what callbacks keep in ``state.extras``, and the step. As batches depend on the seed and the step
    alone, the rewound run sees the same data.

    With ``folder`` the run is kept there: ``ticket-03`` and ``trained-03`` of each round, each one safetensors file
    that is replaced as a whole. A run that was killed at any moment goes on there when it is called again with the
    same arguments (``rounds``, ``callbacks`` and ``checkpoint_every`` may differ), and yields the finished rounds
    first. On the CPU it ends with the weights of an uninterrupted one, if callbacks change nothing in the state, or
    only as a function of it. While the iterator is being advanced, nobody else can use the folder.

    Args:
        gan: the dense GAN that training starts from; left as it is. Without ``folder`` any modules will do; with
            it they need a registered spec.
        split: the real samples; the same ones on resuming.
        config: of the training in each round.
        rounds: number of prunings, at least 1; there are rounds + 1 trainings.
        keep: share of the remaining weights that a round keeps, in (0, 1).
        rewind: "init": to the weights before step 0. "late": to the state after ``rewind_step`` steps of round 0
            (Frankle et al. 2020; for GANs Kalibhat et al. 2021). "learning-rate": weights, statistics, EMA and
            moments stay as trained, and the step alone goes back, so that the learning-rate schedule and the
            data are replayed (Renda et al. 2020); this needs a schedule that decays.
        rewind_step: the step k to rewind to, in [0, config.steps); for "late" at least 1 and required, for
            "learning-rate" 0 unless given.
        networks: "generator", "discriminator", or both; each is pruned to the same sparsity.
        score: a name for ``score`` that needs neither loss nor inputs, or a function of the trained state and the
            network's name that gives the scores (of the weights of its EMA, by gradients, …).
        allocation: as for ``allocate``, but no N:M pattern.
        protect: layers to leave alone; with two networks, a mapping from network to layers.
        callbacks: for each training, as for ``train``. Their rows are in the row of the round, and rewound with the
            state.
        folder: where the run is kept; None for nowhere.
        checkpoint_every: steps between two writes of the round's file while it is being trained.
        show_progress: a progress bar per round on standard error.

    Returns:
        An iterator over :class:`Round`, which trains as it is advanced. The arguments are checked at once.

    Raises:
        TypeError: if a number or name is expected and something else is given.
        ValueError: if an argument is out of range, the GAN has masks already, or the folder holds another run.
        MaskError: if a network has been pruned, but the GAN has no mask for it.
        OutputInUseError: if another run uses the folder; raised when the iterator is advanced.
        CheckpointError: if there is a folder, and a network has no spec or a file in it is damaged.
    """
    chosen = check_networks(networks)
    rounds = check_integer("rounds", rounds, 1)
    checkpoint_every = check_integer("checkpoint_every", checkpoint_every, 1)
    check_dense(gan)
    method = IterativePruning(
        keep=check_number("keep", keep, "(0, 1)"),
        rewind=rewind,
        rewind_step=_check_rewind(rewind, rewind_step, config),
        score=_check_score(score),
        allocation=check_choice("allocation", allocation, [a for a in ALLOCATION_NAMES if a not in PATTERNS]),
    )
    protected = _protect_by_network(protect, chosen)
    dense = {name: Mask.dense(gan.networks()[name], protected[name]) for name in chosen}
    plan = {"config": dataclasses.asdict(config), **method.settings()}
    run_folder = RunFolder(folder, {**plan, "networks": chosen, "protect": protected}, gan)
    trainer = Trainer(run_folder, split, list(callbacks), checkpoint_every, show_progress)
    return _iterate(method, trainer, TrainState(copy_gan(gan), config), dense, rounds)


def _iterate(
    method: IterativePruning, trainer: Trainer, origin: TrainState, dense: dict[str, Mask], rounds: int
) -> Iterator[Round]:
    """The rounds: each stage is taken from the folder if it is there, and else made and kept."""
    folder = trainer.folder
    with folder.opened():
        ticket = folder.ticket("ticket-00", lambda: _first_ticket(method, trainer, origin, dense))
        for number in range(rounds + 1):
            state = trainer.train(f"trained-{number:02}", ticket.start)
            finished = Round(number, ticket, state, _row(number, ticket, state))
            if number < rounds:  # before the caller gets the state, and may change it
                follow = partial(method.next_ticket, number + 1, ticket, state)
                ticket = folder.ticket(f"ticket-{number + 1:02}", follow)
            yield finished


def _first_ticket(
    method: IterativePruning, trainer: Trainer, origin: TrainState, dense: dict[str, Mask]
) -> Ticket:
    """The dense ticket of round 0: what its training reaches at the step that later rounds rewind to."""
    step = method.rewind_step if method.rewind == "late" else 0
    state = trainer.train("trained-00", lambda: origin, until=step)
    if state.step != step:
        raise CheckpointError(
            f"round 0 stands at step {state.step}, and later rounds rewind to step {step}: a callback has ended it, or "
            f"the folder {trainer.folder.path} has lost ticket-00.safetensors; start anew"
        )
    return Ticket(dense, copy_state(state), metadata={"round": 0, **method.settings()})


def _row(number: int, ticket: Ticket, state: TrainState) -> dict[str, Any]:
    row = {"round": number, "sparsity": ticket.sparsity, "kept": ticket.kept, "start_step": ticket.step}
    row |= {f"{name}_sparsity": mask.sparsity for name, mask in ticket.masks.items()}
    measured = [dict(row) for rows in state.rows.values() for row in rows]
    return {**row, **state.history[-1], "measured": measured}


@dataclass(frozen=True)
class IterativePruning:
    """How one round's ticket follows from the last; the arguments of :func:`find_tickets`, checked."""

    keep: float
    rewind: str
    rewind_step: int
    score: str | ScoreOfState
    allocation: str

    def settings(self) -> dict[str, Any]:
        """The fields as plain values."""
        score = self.score if isinstance(self.score, str) else "of its own"
        return dataclasses.asdict(dataclasses.replace(self, score=score))

    def next_ticket(self, number: int, ticket: Ticket, state: TrainState) -> Ticket:
        """The ticket of a round, from the ticket of the round before and what it was trained to."""
        sparsity = min(1 - self.keep**number, math.nextafter(1.0, 0.0))
        masks = {}
        for network, mask in ticket.masks.items():
            scores = self.scores(state, network, mask)
            dims = getattr(scores, "output_dims", None)
            among = {key: scores[key] for key in mask}
            masks[network] = allocate(among, sparsity, self.allocation, within=mask, output_dims=dims)
        rewound = ticket.rewound
        if self.rewind == "learning-rate":
            rewound = copy_state(state)
            rewound.step, rewound.history, rewound.pending, rewound.rows = self.rewind_step, [], [], {}
        return Ticket(masks, rewound, metadata={"round": number, **self.settings()})

    def scores(self, state: TrainState, network: str, mask: Mask) -> Mapping[str, Tensor]:
        """A score for each weight of a trained network.

        Raises:
            ValueError: if a function that gives scores leaves out a layer of the mask.
        """
        if isinstance(self.score, str):
            seed = step_seed(state.config.seed, state.step, f"lottery {network} {mask.kept}")
            return score(state.gan.networks()[network], self.score, seed=seed)
        scores = self.score(state, network)
        missing = [key for key in mask if key not in scores]
        if missing:
            raise ValueError(
                f"score must give every prunable weight a number; it left out {', '.join(missing)}"
            )
        return scores


def _check_rewind(rewind: str, rewind_step: int | None, config: TrainConfig) -> int:
    check_choice("rewind", rewind, REWINDINGS)
    least, most = {"init": (0, 0), "late": (1, config.steps - 1), "learning-rate": (0, config.steps - 1)}[
        rewind
    ]
    step = rewind_step if rewind_step is not None or rewind == "late" else 0
    if not isinstance(step, int) or isinstance(step, bool) or not least <= step <= most:
        raise ValueError(
            f"rewind_step must be in [{least}, {most}] for rewind={rewind!r}, got {rewind_step!r}"
        )
    if rewind == "learning-rate" and config.decay_from == 1.0:
        raise ValueError(
            "config.decay_from must be below 1 for rewind='learning-rate', which replays a decaying learning "
            "rate; it is 1.0: the learning rate never decays"
        )
    return step


def _check_score(score: str | ScoreOfState) -> str | ScoreOfState:
    if isinstance(score, str):
        needs = sorted({"loss_fn", "inputs"} & get_score(score).needs)
        if needs:
            raise ValueError(
                f"score {score!r} needs {', '.join(needs)}, which change as training goes on; "
                "pass a function of (state, network) that gives the scores"
            )
    elif not callable(score):
        raise TypeError(f"score must be a name or a function of (state, network), got {score!r}")
    return score


def _protect_by_network(
    protect: Iterable[str] | Mapping[str, Iterable[str]], networks: Sequence[str]
) -> dict[str, list[str]]:
    if isinstance(protect, Mapping):
        unknown = [name for name in protect if name not in networks]
        if unknown:
            raise ValueError(f"protect must be keyed by {', '.join(networks)}, got {', '.join(unknown)}")
        given = {name: protect.get(name, ()) for name in networks}
    else:
        names = [protect] if isinstance(protect, str) else list(protect)
        given = dict.fromkeys(networks, names)
    return {name: [one] if isinstance(one, str) else list(one) for name, one in given.items()}
