"""What a ticket is compared with: fresh weights, and shuffled or random masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ganprune.allocation.choose import allocate
from ganprune.core.random import step_seed
from ganprune.lottery.tickets import Ticket, check_networks, copy_state
from ganprune.networks.gan import GAN, MASKED_NETWORKS
from ganprune.scores.registry import Scores, score


def reinitialise_ticket(
    ticket: Ticket,
    seed: int,
    networks: str | Sequence[str] = MASKED_NETWORKS,
    factory: Callable[[int], GAN] | None = None,
) -> Ticket:
    """The control of Frankle & Carbin (2019): the same masks on fresh weights of the same distribution.

    The networks named get new weights, statistics and no moments (the generator's EMA with it); the others keep
    what the ticket has, so that the part of each network's initialisation can be told apart. What callbacks kept in
    the state is left out. The step stays the ticket's, so that all arms train equally long with the same learning
    rates.

    Args:
        ticket: left as it is.
        seed: determines the weights; never those that ``GAN.from_spec`` gives for the same number.
        networks: "generator", "discriminator", or both.
        factory: for networks without a spec, a function of a seed that makes a fresh GAN.

    Returns:
        A ticket of the arm "reinitialised".

    Raises:
        ValueError: if a network is unknown, or there is neither spec nor factory, or the factory's networks have
            other weights.
    """
    chosen, derived = check_networks(networks), step_seed(seed, 0, "reinitialised")
    rewound = copy_state(ticket.rewound)
    without = [n for n in MASKED_NETWORKS if getattr(rewound.gan.networks()[n], "spec", None) is None]
    if factory is None and without:
        raise ValueError(
            f"the {' and the '.join(without)} has no spec; pass a factory, a function of a seed that makes the GAN"
        )
    fresh = factory(derived) if factory else GAN.from_spec(rewound.gan.spec, derived, "cpu")
    for name in (*chosen, *(("generator_ema",) if "generator" in chosen else ())):
        new, old = fresh.networks()[name].state_dict(), rewound.gan.networks()[name].state_dict()
        if {k: v.shape for k, v in new.items()} != {k: v.shape for k, v in old.items()}:
            raise ValueError(
                f"factory must make networks like the ticket's, but its {name} has other weights"
            )
        rewound.gan.networks()[name].load_state_dict(new)
    for name in chosen:
        rewound.optimizers[name].state.clear()
    rewound.history, rewound.pending, rewound.rows, rewound.extras = [], [], {}, {}
    return _control(ticket, "reinitialised", {"seed": seed}, rewound=rewound)


def shuffle_ticket(ticket: Ticket, seed: int) -> Ticket:
    """The control of Frankle et al. (2021): each layer's mask shuffled within the layer, the weights as they are.

    Every layer keeps as many weights as before, so it tells whether the mask found more than layer-wise densities.

    Args:
        ticket: left as it is.
        seed: determines the permutations.

    Returns:
        A ticket of the arm "shuffled".

    Raises:
        ValueError: if the ticket was made by learning-rate rewinding: the weights that it pruned are gone; or if
            an output under weight norm would lose all its weights.
    """
    _check_has_all_weights(ticket)
    masks = {
        name: mask.shuffled(step_seed(seed, 0, f"shuffled {name}")) for name, mask in ticket.masks.items()
    }
    return _control(ticket, "shuffled", {"seed": seed}, masks=masks)


def draw_random_ticket(ticket: Ticket, seed: int, allocation: str = "global") -> Ticket:
    """The control that keeps only the number: a random mask of the same sparsity, the weights as they are.

    Args:
        ticket: left as it is.
        seed: determines the masks.
        allocation: as for ``allocate``; "global" gives every layer about the same density.

    Returns:
        A ticket of the arm "random mask".

    Raises:
        ValueError: as :func:`shuffle_ticket` and ``allocate`` do.
    """
    _check_has_all_weights(ticket)
    masks = {}
    for name, mask in ticket.masks.items():
        network = ticket.rewound.gan.networks()[name]
        values = score(network, "random", seed=step_seed(seed, 0, f"random mask {name}"))
        among = Scores({key: values[key] for key in mask}, values.output_dims)
        masks[name] = allocate(among, mask.sparsity, allocation)
    return _control(ticket, "random mask", {"seed": seed, "allocation": allocation}, masks=masks)


def _control(ticket: Ticket, arm: str, made_by: Mapping[str, Any], **changes: Any) -> Ticket:
    arms = arm if ticket.arm == "ticket" else f"{ticket.arm}, {arm}"
    metadata = {**ticket.metadata, **{f"{arm} {name}": value for name, value in made_by.items()}}
    return dataclasses.replace(ticket, arm=arms, metadata=metadata, **changes)


def _check_has_all_weights(ticket: Ticket) -> None:
    if ticket.metadata.get("rewind") == "learning-rate":
        raise ValueError(
            "ticket must come from rewinding to init or late for this control: learning-rate rewinding keeps the "
            "trained weights, and those that earlier rounds pruned are gone"
        )


CONTROLS: dict[str, Callable[[Ticket, int], Ticket]] = {
    "reinitialised": reinitialise_ticket,
    "shuffled": shuffle_ticket,
    "random": draw_random_ticket,
}
"""The controls of a ticket by their names: each takes the ticket and a seed."""
