"""Lottery tickets for GANs: iterative magnitude pruning with rewinding, round by round.

The GAN that it is given stays as it is. A run can be killed at any moment and called again: with a folder it
goes on at the round and step where it was, to the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.random import step_seed
from ganprune.core.tensors import CheckpointError
from ganprune.dynamic.schedules import geometric
from ganprune.lottery.run_folder import Callback, Measured, RunFolder, Then, saving
from ganprune.lottery.tickets import Snapshot, Ticket, check_networks, copy_gan
from ganprune.masks.mask import Mask
from ganprune.networks.gan import GAN
from ganprune.scores.registry import get_score, score
from ganprune.training.config import TrainConfig
from ganprune.training.loop import BatchSource, train
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
            network, and "measured", the rows that callbacks added in this round.
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
    callbacks: Iterable[Callback] = (),
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

    With ``folder`` the run is kept there: ``ticket-03`` and ``trained-03`` of each round, and ``state``, the round
    and step where it is now, each one safetensors file that is replaced as a whole. A run that was killed at any
    moment goes on there when it is called again with the same arguments (``rounds``, ``callbacks`` and
    ``checkpoint_every`` may differ), and yields the finished rounds first. On the CPU it ends with the weights of
    an uninterrupted one, if callbacks change nothing in the state, or only as a function of it.

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
        callbacks: for each training, as for ``train``. The rows that they add to their attribute ``rows``, or
            that the function behind ``every`` adds, are in the row of the round; plain values if there is a folder.
        folder: where the run is kept; None for nowhere.
        checkpoint_every: steps between two writes of ``state``.
        show_progress: a progress bar per round on standard error.

    Returns:
        An iterator over :class:`Round`, which trains as it is advanced. The arguments are checked at once.

    Raises:
        TypeError: if a number or name is expected and something else is given.
        ValueError: if an argument is out of range, the GAN has masks already, or the folder holds another run.
        CheckpointError: if there is a folder, and a network has no spec or a file in it is damaged.
    """
    chosen = check_networks(networks)
    rounds = check_integer("rounds", rounds, 1)
    checkpoint_every = check_integer("checkpoint_every", checkpoint_every, 1)
    keep = check_number("keep", keep, "(0, 1)")
    if gan.masks:
        raise ValueError(f"gan must be dense, got one with masks of {', '.join(gan.masks)}")
    start = _check_rewind(rewind, rewind_step, config)
    _check_method(score, allocation)
    protected = _by_network(protect, chosen)
    dense = {name: Mask.dense(gan.networks()[name], protected[name]) for name in chosen}
    plan = {
        "config": dataclasses.asdict(config),
        "keep": keep,
        "rewind": rewind,
        "rewind_step": start,
        "networks": chosen,
        "score": score if isinstance(score, str) else "of its own",
        "allocation": allocation,
        "protect": protected,
    }
    kept = RunFolder(folder, plan, gan)
    arguments = (split, rounds, keep, rewind, start, score, allocation, list(callbacks), checkpoint_every)
    return _Search(*arguments, kept, show_progress).rounds_from(gan, config, dense)


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


def _check_method(score: str | ScoreOfState, allocation: str) -> None:
    if isinstance(score, str):
        needs = sorted({"loss_fn", "inputs"} & get_score(score).parameters.keys())
        if needs:
            raise ValueError(
                f"score {score!r} needs {', '.join(needs)}, which change as training goes on; "
                "pass a function of (state, network) that gives the scores"
            )
    elif not callable(score):
        raise TypeError(f"score must be a name or a function of (state, network), got {score!r}")
    allowed = [name for name in ALLOCATION_NAMES if name not in PATTERNS]
    check_choice("allocation", allocation, allowed)


def _by_network(
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


@dataclass
class _Search:
    """The run behind :func:`find_tickets`."""

    split: BatchSource
    rounds: int
    keep: float
    rewind: str
    rewind_step: int
    score: str | ScoreOfState
    allocation: str
    callbacks: list[Callback]
    checkpoint_every: int
    folder: RunFolder
    show_progress: bool

    def rounds_from(self, gan: GAN, config: TrainConfig, dense: dict[str, Mask]) -> Iterator[Round]:
        origin, ticket = Snapshot(copy_gan(gan), config), self.folder.ticket("ticket-00")
        return self._rounds(origin, ticket, dense)

    def _rounds(self, origin: Snapshot, ticket: Ticket | None, dense: dict[str, Mask]) -> Iterator[Round]:
        for number in range(self.rounds + 1):
            if number == 0:
                ticket, state, measured = self._first(origin, ticket, dense)
            else:
                assert ticket is not None
                state, measured = self._trained(number, ticket.start)
            following = self._next(number, ticket, state) if number < self.rounds else None
            yield Round(number, ticket, state, self._row(number, ticket, state, measured))
            ticket = following

    def _first(
        self, origin: Snapshot, ticket: Ticket | None, dense: dict[str, Mask]
    ) -> tuple[Ticket, TrainState, list[dict[str, Any]]]:
        """Round 0, which also makes the state that later rounds rewind to."""
        made = [ticket] if ticket is not None else []

        def rewindable(state: TrainState) -> None:
            if not made and state.step == (self.rewind_step if self.rewind == "late" else 0):
                made.append(Ticket(dense, Snapshot.of(state), metadata=self._metadata(0)))
                self.folder.keep_ticket("ticket-00", made[0])  # before any state that lies beyond

        def start() -> TrainState:  # a precision that was measured holds for all rounds, also after a kill
            state = origin.state(made[0].rewound.config if made else None)
            rewindable(state)
            return state

        state, measured = self._trained(0, start, [Then(rewindable)])
        if not made:
            raise CheckpointError(
                f"folder {self.folder.path} has lost ticket-00.safetensors, which holds what to rewind to; start anew"
            )
        return made[0], state, measured

    def _trained(
        self, number: int, start: Callable[[], TrainState], extra: Sequence[Callback] = ()
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        """The state after a round's training: as it was kept, or trained on from where it was, or from its start."""
        done = self.folder.state(f"trained-{number:02}")
        if done is not None:
            return done[0], _flat(done[1]["measured"])
        running = self.folder.state("state")
        if running is not None and running[1]["round"] == number:
            state, measured = running[0], Measured(self.callbacks, running[1]["measured"])
        else:
            state, measured = start(), Measured(self.callbacks, [])
        checkpoint = saving(self.folder, self.checkpoint_every, measured, {"round": number})
        train(state, self.split, [*self.callbacks, *extra, checkpoint], self.show_progress)
        self.folder.keep_state(f"trained-{number:02}", state, {"round": number, "measured": measured.rows()})
        return state, _flat(measured.rows())

    def _next(self, number: int, ticket: Ticket, state: TrainState) -> Ticket:
        """The ticket of the next round, from what this round trained."""
        name = f"ticket-{number + 1:02}"
        stored = self.folder.ticket(name)
        if stored is not None:
            return stored
        sparsity, masks = geometric(number + 1, self.keep), {}
        for network, mask in ticket.masks.items():
            scores = self._scores(state, network, mask)
            dims = getattr(scores, "output_dims", None)
            among = {key: scores[key] for key in mask}
            masks[network] = allocate(among, sparsity, self.allocation, within=mask, output_dims=dims)
        rewound = ticket.rewound
        if self.rewind == "learning-rate":
            rewound = dataclasses.replace(Snapshot.of(state), step=self.rewind_step, history=(), pending=())
        following = Ticket(masks, rewound, metadata=self._metadata(number + 1))
        self.folder.keep_ticket(name, following)
        return following

    def _scores(self, state: TrainState, network: str, mask: Mask) -> Mapping[str, Tensor]:
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

    def _metadata(self, number: int) -> dict[str, Any]:
        return {
            "round": number,
            "keep": self.keep,
            "rewind": self.rewind,
            "rewind_step": self.rewind_step,
            "score": self.score if isinstance(self.score, str) else "of its own",
            "allocation": self.allocation,
        }

    def _row(
        self, number: int, ticket: Ticket, state: TrainState, measured: list[dict[str, Any]]
    ) -> dict[str, Any]:
        row = {"round": number, "sparsity": ticket.sparsity, "kept": ticket.kept, "start_step": ticket.step}
        row |= {f"{name}_sparsity": mask.sparsity for name, mask in ticket.masks.items()}
        return {**row, **state.history[-1], "measured": measured}


def _flat(rows: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for one in rows for row in one]
