"""Tickets: masks with the training state that they start from; saved, loaded, moved to other data, and controlled.

A lottery ticket is a mask together with the weights that it is trained from (Frankle & Carbin 2019). For a GAN
that is more than the generator's weights: the discriminator, the batch-norm statistics, the EMA copy, both
optimisers' moments and the step belong to it. A :class:`Ticket` holds them all *unmasked*, so that a control can
put another mask on the same weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_choice
from ganprune.core.random import step_seed
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.masks.mask import Mask
from ganprune.masks.weights import PRUNABLE_LAYERS, canonical_name, prunable_weights, weight_slots
from ganprune.networks.checkpoints import masks_from
from ganprune.networks.gan import GAN
from ganprune.scores.registry import Scores, score
from ganprune.training.config import TrainConfig
from ganprune.training.state import TrainState, load_moments

TICKET_NETWORKS = ("generator", "discriminator")


def copy_gan(gan: GAN) -> GAN:
    """A deep copy of a GAN, without its masks; also of networks with the older ``torch.nn.utils.spectral_norm``.

    Such a layer keeps the weight of its last forward pass as a plain attribute, which cannot be copied while it
    hangs on its graph; it is made anew at the next pass, so it is cut off here.
    """
    for network in gan.networks().values():
        for module in network.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    setattr(module, name, value.detach())
    copied = copy.deepcopy(gan)
    copied.masks = {}
    return copied


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of a training state without its masks, from which any number of equal states can be made.

    Attributes:
        gan: the networks at that step; not to be trained, :meth:`state` copies them.
        config: the training run that the state belongs to.
        step: generator updates done.
        history: rows of mean losses up to there.
        pending: losses that are not in the history yet.
        moments: per network, the state of its optimiser.
        extras: tensors that callbacks kept.
    """

    gan: GAN
    config: TrainConfig
    step: int = 0
    history: Sequence[dict[str, float]] = ()
    pending: Sequence[Tensor] = ()
    moments: Mapping[str, dict[Any, Any]] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, state: TrainState) -> Snapshot:
        """The snapshot of a state as it is now."""
        moments = {
            name: copy.deepcopy(optimizer.state_dict()["state"])
            for name, optimizer in state.optimizers.items()
        }
        history, pending = copy.deepcopy(state.history), [losses.clone() for losses in state.pending]
        extras = {key: value.clone() for key, value in state.extras.items()}
        return cls(copy_gan(state.gan), state.config, state.step, history, pending, moments, extras)

    def state(self, config: TrainConfig | None = None) -> TrainState:
        """A state equal to that of the snapshot, bit for bit, but without a mask.

        Args:
            config: another training run; its learning rates and betas hold from then on.

        Raises:
            ValueError: if it uses another optimiser than the saved moments belong to.
        """
        config = config or self.config
        if any(self.moments.values()) and config.optimizer != self.config.optimizer:
            raise ValueError(
                f"config.optimizer must be {self.config.optimizer!r}, whose moments are rewound too, "
                f"got {config.optimizer!r}"
            )
        state = TrainState(copy_gan(self.gan), config, masks={})
        state.step, state.history = self.step, [dict(row) for row in self.history]
        state.pending = [losses.clone() for losses in self.pending]
        state.extras = {key: value.clone() for key, value in self.extras.items()}
        for name, entries in self.moments.items():
            load_moments(state.optimizers[name], copy.deepcopy(entries))
        return state


@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """Masks with the training state that they start from.

    Attributes:
        masks: by network, "generator" or "discriminator".
        rewound: the state to start from, unmasked.
        arm: "ticket", "early-bird", or the controls that made it from one: "reinitialised", "shuffled", "random
            mask".
        metadata: plain values that say where it comes from.

    Raises:
        TypeError: if a mask is not a :class:`Mask`.
        ValueError: if a mask is of another network or does not fit it, or empties what a norm divides by its
            length.
    """

    masks: Mapping[str, Mask]
    rewound: Snapshot
    arm: str = "ticket"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            _check_network(name)
            _check_fits(self.rewound.gan.networks()[name], mask, name)

    @property
    def step(self) -> int:
        """The step that training starts from."""
        return self.rewound.step

    @property
    def kept(self) -> int:
        """Number of weights kept, in all masks together."""
        return sum(mask.kept for mask in self.masks.values())

    @property
    def total(self) -> int:
        """Number of prunable weights, in all masks together."""
        return sum(mask.total for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is pruned, in all masks together."""
        return 1 - self.kept / self.total if self.total else 0.0

    def start(self, config: TrainConfig | None = None) -> TrainState:
        """A state ready to train, which keeps the masks; the ticket stays as it is.

        Kept weights, all other parameters, batch-norm statistics, the EMA, the moments and the step are those of
        the rewound state, bit for bit; pruned weights and their moments are zero. The power iteration of a
        spectral norm is run again where the mask changes its weight. A mask that prunes nothing is not set.

        Args:
            config: another training run; None for the one that the ticket comes from.

        Raises:
            ValueError: if that run is over at the ticket's step, or uses another optimiser than the moments
                belong to.
        """
        steps = (config or self.rewound.config).steps
        if steps <= self.step:
            raise ValueError(f"config.steps must be above the ticket's step, {self.step}, got {steps}")
        state = self.rewound.state(config)
        for name, mask in self.masks.items():
            if mask.pruned:
                state.set_mask(name, mask)
                _clear_moments(state, name, mask)
        return state

    def save(self, path: str | Path) -> None:
        """Writes the ticket to one safetensors file, atomically; it is also a file of its rewound state.

        Raises:
            CheckpointError: if a network has no spec, so that nothing could rebuild it.
        """
        tensors, metadata = self.rewound.state().packed()
        for name, mask in self.masks.items():
            tensors |= {f"ticket/{name}/{key}": kept for key, kept in mask.items()}
        metadata["ticket"] = {"arm": self.arm, "metadata": dict(self.metadata)}
        write_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Ticket:
        """The ticket that :meth:`save` wrote; nothing in the file is executed.

        Raises:
            CheckpointError: if the file is missing, damaged, or holds no ticket, or one that does not fit its networks.
        """
        tensors, metadata = read_safetensors(path)
        if "ticket" not in metadata:
            raise CheckpointError(f"{path} holds no ticket; use load() or TrainState.load()")
        rewound = Snapshot.of(TrainState.load(path, device))
        own = {
            key.replace("ticket/", "mask/", 1): v for key, v in tensors.items() if key.startswith("ticket/")
        }
        try:
            found, masks = masks_from(own), {}
            for name in sorted(found, key=TICKET_NETWORKS.index):
                order = list(weight_slots(rewound.gan.networks()[name]))
                layers = {key: found[name][key] for key in sorted(found[name], key=order.index)}
                masks[name] = Mask(layers).to(rewound.gan.device)
            return cls(masks, rewound, metadata["ticket"]["arm"], metadata["ticket"]["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds a ticket that does not fit its networks: {error}") from error

    def __repr__(self) -> str:
        parts = [f"{name} sparsity {mask.sparsity:.4f}" for name, mask in self.masks.items()]
        return f"Ticket({', '.join([self.arm, f'step {self.step}', *parts])})"


def _check_network(name: str) -> None:
    check_choice("network", name, TICKET_NETWORKS)


def _check_fits(network: nn.Module, mask: Any, name: str) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(f"mask of the {name} must be a Mask, got {type(mask).__name__}")
    slots = weight_slots(network)
    problems = [
        f"{key} with shape {tuple(kept.shape)}"
        for key, kept in mask.items()
        if key not in slots or slots[key].raw.shape != kept.shape
    ]
    if problems:
        raise ValueError(f"the mask does not fit the {name}, which has no {'; no '.join(problems)}")
    emptied = [key for key, kept in mask.items() if not slots[key].normed_groups(kept).all()]
    if emptied:
        raise ValueError(
            f"the mask of the {name} empties what a norm divides by its length in {', '.join(emptied)}; "
            "protect these layers, or use another allocation or seed"
        )


@torch.no_grad()
def _clear_moments(state: TrainState, name: str, mask: Mask) -> None:
    slots, optimizer = weight_slots(state.gan.networks()[name]), state.optimizers[name]
    for key, kept in mask.items():
        weight = slots[key].raw
        for entry in optimizer.state.get(weight, {}).values():
            if isinstance(entry, Tensor) and entry.shape == weight.shape:
                entry.masked_fill_(~kept.to(weight.device), 0.0)


def _control(ticket: Ticket, arm: str, made_by: Mapping[str, Any], **changes: Any) -> Ticket:
    arms = arm if ticket.arm == "ticket" else f"{ticket.arm}, {arm}"
    metadata = {**ticket.metadata, **{f"{arm} {name}": value for name, value in made_by.items()}}
    return dataclasses.replace(ticket, arm=arms, metadata=metadata, **changes)


def reinitialised(
    ticket: Ticket,
    seed: int,
    networks: str | Sequence[str] = TICKET_NETWORKS,
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

    Raises:
        ValueError: if a network is unknown, or there is neither spec nor factory, or the factory's networks have
            other weights.
    """
    chosen = check_networks(networks)
    rewound, derived = ticket.rewound, step_seed(seed, 0, "reinitialised")
    without = [n for n in TICKET_NETWORKS if getattr(rewound.gan.networks()[n], "spec", None) is None]
    if factory is None and without:
        raise ValueError(
            f"the {' and the '.join(without)} has no spec; pass a factory, a function of a seed that makes the GAN"
        )
    fresh = factory(derived) if factory else GAN.from_spec(rewound.gan.spec, derived, "cpu")
    gan = copy_gan(rewound.gan)
    for name in (*chosen, *(("generator_ema",) if "generator" in chosen else ())):
        new, old = fresh.networks()[name].state_dict(), gan.networks()[name].state_dict()
        if {k: v.shape for k, v in new.items()} != {k: v.shape for k, v in old.items()}:
            raise ValueError(
                f"factory must make networks like the ticket's, but its {name} has other weights"
            )
        gan.networks()[name].load_state_dict(new)
    moments = {name: entries for name, entries in rewound.moments.items() if name not in chosen}
    changed = dataclasses.replace(rewound, gan=gan, history=(), pending=(), moments=moments, extras={})
    return _control(ticket, "reinitialised", {"seed": seed}, rewound=changed)


def shuffled(ticket: Ticket, seed: int) -> Ticket:
    """The control of Frankle et al. (2021): each layer's mask shuffled within the layer, the weights as they are.

    Every layer keeps as many weights as before, so it tells whether the mask found more than layer-wise densities.

    Args:
        ticket: left as it is.
        seed: determines the permutations.

    Raises:
        ValueError: if the ticket was made by learning-rate rewinding: the weights that it pruned are gone; or if
            an output under weight norm would lose all its weights.
    """
    _check_has_all_weights(ticket)
    masks = {
        name: mask.shuffled(step_seed(seed, 0, f"shuffled {name}")) for name, mask in ticket.masks.items()
    }
    return _control(ticket, "shuffled", {"seed": seed}, masks=masks)


def random_mask(ticket: Ticket, seed: int, allocation: str = "global") -> Ticket:
    """The control that keeps only the number: a random mask of the same sparsity, the weights as they are.

    Args:
        ticket: left as it is.
        seed: determines the masks.
        allocation: as for ``allocate``; "global" gives every layer about the same density.

    Raises:
        ValueError: as :func:`shuffled` and ``allocate`` do.
    """
    _check_has_all_weights(ticket)
    masks = {}
    for name, mask in ticket.masks.items():
        model = ticket.rewound.gan.networks()[name]
        values = score(model, "random", seed=step_seed(seed, 0, f"random mask {name}"))
        among = Scores({key: values[key] for key in mask}, values.output_dims)
        masks[name] = allocate(among, mask.sparsity, allocation)
    return _control(ticket, "random mask", {"seed": seed, "allocation": allocation}, masks=masks)


def check_networks(networks: str | Sequence[str]) -> tuple[str, ...]:
    chosen = (networks,) if isinstance(networks, str) else tuple(networks)
    for name in chosen:
        _check_network(name)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"networks must name one or both of {', '.join(TICKET_NETWORKS)}, got {networks!r}")
    return chosen


def _check_has_all_weights(ticket: Ticket) -> None:
    if ticket.metadata.get("rewind") == "learning-rate":
        raise ValueError(
            "ticket must come from rewinding to init or late for this control: learning-rate rewinding keeps the "
            "trained weights, and those that earlier rounds pruned are gone"
        )


def transfer(ticket: Ticket, gan: GAN | None = None, config: TrainConfig | None = None) -> Ticket:
    """The ticket for other data: its masks and weights, to be trained from step 0 with fresh optimisers.

    Data of the same sample shape needs no ``gan``: train the result on the other split. Otherwise pass a freshly
    initialised GAN for the other shape. What a layer or a norm holds is taken over where all of it has the same
    names and shapes, and stays fresh elsewhere. A layer's mask goes with its weights: a prunable layer that stays
    fresh stays dense too, and counts as such in the sparsity. The metadata list, per masked network, the layers
    "moved" and those left "dense". Morcos et al. (2019) and Chen et al. (2021) move tickets between data sets in
    this way.

    Args:
        ticket: left as it is.
        gan: networks for the other data, dense; left as they are. None for the ticket's own.
        config: the training run there; None for the ticket's.

    Raises:
        ValueError: if the GAN has masks, or no layer of a masked network has the names and shapes of the ticket's.
    """
    if gan is not None and gan.masks:
        raise ValueError(f"gan must be dense, got one with masks of {', '.join(gan.masks)}")
    source = ticket.rewound.gan
    target = copy_gan(source if gan is None else gan)
    masks, report = {}, {}
    for name, network in target.networks().items():
        weights = _moved_weights(source.networks()[name], network)
        if name in ticket.masks:
            moved = {canonical_name(key, network) for key in weights}
            masks[name], report[name] = _moved_mask(
                name, source.networks()[name], network, ticket.masks[name], moved
            )
        network.load_state_dict(weights, strict=False)
    rewound = Snapshot(target, config or ticket.rewound.config)
    return Ticket(masks, rewound, ticket.arm, {**ticket.metadata, "transferred": report})


def _moved_mask(
    name: str, source: nn.Module, target: nn.Module, mask: Mask, taken: set[str]
) -> tuple[Mask, dict[str, list[str]]]:
    protected = weight_slots(source).keys() - mask.keys()
    layers, moved = {}, []
    for key, weight in prunable_weights(target).items():
        if key in mask and key in taken:
            layers[key] = mask[key].to(weight.device)
            moved.append(key)
        elif key not in protected:
            layers[key] = torch.ones_like(weight, dtype=torch.bool)
    if not moved:
        wanted = ", ".join(f"{key} {tuple(kept.shape)}" for key, kept in mask.items())
        raise ValueError(f"gan must share a layer's name and shape with the ticket's {name} ({wanted})")
    return Mask(layers), {"moved": moved, "dense": [key for key in layers if key not in moved]}


def _moved_weights(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """Entries of the source for each layer, and each other module, whose entries all fit the target's."""
    given, wanted = _by_owner(source), _by_owner(target)
    moved: dict[str, Tensor] = {}
    for owner, entries in given.items():
        shapes = {key: value.shape for key, value in entries.items()}
        if shapes == {key: value.shape for key, value in wanted.get(owner, {}).items()}:
            moved |= entries
    return moved


def _by_owner(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    layers = [name for name, module in network.named_modules() if isinstance(module, PRUNABLE_LAYERS)]
    owners: dict[str, dict[str, Tensor]] = {}
    for key, value in network.state_dict().items():
        inside = [name for name in layers if key.startswith(f"{name}.")]
        owner = inside[0] if inside else canonical_name(key, network).rpartition(".")[0]
        owners.setdefault(owner, {})[key] = value
    return owners
