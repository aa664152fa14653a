"""Tickets: masks with the training state that they start from, saved and loaded.

A lottery ticket is a mask together with the weights that it is trained from (Frankle & Carbin 2019). For a GAN
that is more than the generator's weights: the discriminator, the batch-norm statistics, the EMA copy, both
optimisers' moments and the step belong to it. A :class:`Ticket` holds them all *unmasked*, so that a control can
put another mask on the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_choice
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.masks.apply import match_slots
from ganprune.masks.mask import Mask
from ganprune.masks.weights import weight_slots
from ganprune.networks.checkpoints import mask_order, masks_from
from ganprune.networks.gan import GAN, MASKED_NETWORKS
from ganprune.networks.parts import copy_network
from ganprune.training.config import TrainConfig
from ganprune.training.state import TrainState, load_moments


def check_networks(networks: str | Sequence[str]) -> tuple[str, ...]:
    """The names of one or both networks that can be pruned, as a tuple.

    Raises:
        ValueError: if a name is unknown or comes twice, or there is none.
    """
    chosen = (networks,) if isinstance(networks, str) else tuple(networks)
    for name in chosen:
        check_choice("network", name, MASKED_NETWORKS)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"networks must name one or both of {', '.join(MASKED_NETWORKS)}, got {networks!r}")
    return chosen


def check_dense(gan: GAN) -> None:
    """Does nothing if neither network of a GAN is pruned.

    Raises:
        ValueError: if the GAN has a mask.
        MaskError: if a network has been pruned, but the GAN has no mask for it; see ``gan.masks.check``.
    """
    if gan.masks:
        raise ValueError(f"gan must be dense, got one with masks of {', '.join(gan.masks)}")
    gan.masks.check()


def copy_gan(gan: GAN) -> GAN:
    """A deep copy of a GAN, without its masks."""
    copied = GAN(*(copy_network(network) for network in gan.networks().values()))
    copied.metadata = copy.deepcopy(gan.metadata)
    copied.masks.clear()
    return copied


def copy_state(state: TrainState, config: TrainConfig | None = None) -> TrainState:
    """A copy of a training state that is equal to it bit for bit, but without its masks.

    Args:
        state: left as it is.
        config: another training run; its learning rates and betas hold in the copy. None for that of the state.

    Raises:
        ValueError: if that run uses another optimiser than the state's moments belong to.
    """
    config = config or state.config
    if config.optimizer != state.config.optimizer and any(o.state for o in state.optimizers.values()):
        raise ValueError(
            f"config.optimizer must be {state.config.optimizer!r}, whose moments are rewound too, "
            f"got {config.optimizer!r}"
        )
    copied = TrainState(copy_gan(state.gan), config)
    copied.step, copied.history, copied.rows = state.step, *copy.deepcopy((state.history, state.rows))
    copied.pending = [losses.clone() for losses in state.pending]
    copied.extras = {key: value.clone() for key, value in state.extras.items()}
    for name, optimizer in state.optimizers.items():
        load_moments(copied.optimizers[name], copy.deepcopy(optimizer.state_dict()["state"]))
    return copied


@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """Masks with the training state that they start from.

    Attributes:
        masks: by network, "generator" or "discriminator".
        rewound: the state to start from, unmasked; not to be trained, :meth:`start` copies it.
        arm: "ticket", or the controls that made it from one: "reinitialised", "shuffled", "random
            mask".
        metadata: plain values that say where it comes from.

    Raises:
        TypeError: if a mask is not a :class:`Mask`.
        ValueError: if a mask is of another network or does not fit it, or empties what a norm divides by its
            length.
    """

    masks: Mapping[str, Mask]
    rewound: TrainState
    arm: str = "ticket"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            check_choice("network", name, MASKED_NETWORKS)
            _check_fit(self.rewound.gan.networks()[name], mask, name)

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
        """A state ready to train, whose GAN has the masks; the ticket stays as it is.

        Kept weights, all other parameters, batch-norm statistics, the EMA, the moments, the history and the step are
        those of the rewound state, bit for bit; pruned weights and their moments are zero. The power iteration of a
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
        state = copy_state(self.rewound, config)
        for name, mask in self.masks.items():
            if mask.pruned:
                state.gan.masks[name] = mask
                _clear_moments(state, name, mask)
        return state

    def save(self, path: str | Path) -> None:
        """Writes the ticket to one safetensors file, atomically; it is also a file of its rewound state.

        Raises:
            CheckpointError: if a network has no spec, so that nothing could rebuild it.
        """
        tensors, metadata = self.rewound.packed()
        for name, mask in self.masks.items():
            tensors |= {f"ticket/{name}/{key}": kept for key, kept in mask.items()}
        remarks = {"arm": self.arm, "metadata": dict(self.metadata), "order": mask_order(self.masks)}
        write_safetensors(path, tensors, {**metadata, "ticket": remarks})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Ticket:
        """The ticket that :meth:`save` wrote, with its layers in the same order; nothing in the file is executed.

        Raises:
            CheckpointError: if the file is missing, damaged, or holds no ticket, or one that does not fit its networks.
        """
        tensors, metadata = read_safetensors(path)
        if "ticket" not in metadata:
            raise CheckpointError(f"{path} holds no ticket; use load() or TrainState.load()")
        remarks, rewound = metadata["ticket"], TrainState.load(path, device)
        rewound.gan.masks.clear()
        own = {
            key.replace("ticket/", "mask/", 1): v for key, v in tensors.items() if key.startswith("ticket/")
        }
        try:
            found = masks_from(own, {})
            masks = {}
            for name in sorted(found, key=MASKED_NETWORKS.index):
                order = remarks["order"][name]
                layers = {key: found[name][key] for key in sorted(found[name], key=order.index)}
                masks[name] = Mask(layers).to(rewound.gan.device)
            return cls(masks, rewound, remarks["arm"], remarks["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds a ticket that does not fit its networks: {error}") from error

    def __repr__(self) -> str:
        parts = [f"{name} sparsity {mask.sparsity:.4f}" for name, mask in self.masks.items()]
        return f"Ticket({', '.join([self.arm, f'step {self.step}', *parts])})"


def _check_fit(network: nn.Module, mask: Mask, name: str) -> None:
    pairs = match_slots(network, mask, name)
    emptied = [slot.key for slot, kept in pairs if not slot.normed_groups(kept).all()]
    if emptied:
        raise ValueError(
            f"the mask of the {name} empties what a norm divides by its length in {', '.join(emptied)}; "
            "protect these layers, or use another allocation or seed"
        )


@torch.no_grad()
def _clear_moments(state: TrainState, name: str, mask: Mask) -> None:
    """Sets the moments of pruned weights to zero, as if these had never moved."""
    slots, optimizer = weight_slots(state.gan.networks()[name]), state.optimizers[name]
    for key, kept in mask.items():
        weight = slots[key].raw
        for entry in optimizer.state.get(weight, {}).values():
            if isinstance(entry, Tensor) and entry.shape == weight.shape:
                entry.masked_fill_(~kept.to(weight.device), 0.0)
