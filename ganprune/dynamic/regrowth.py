"""SET and RigL: a constant number of weights, moved to where they help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.random import seeded, step_seed
from ganprune.dynamic.common import (
    NETWORKS,
    ask_for_gradients,
    check_layers,
    dense_gradients,
    effective,
    mask_in_force,
    random_mask,
    release_gradients,
    set_mask,
)
from ganprune.masks.mask import Mask, check_sparsity, pruned_count
from ganprune.masks.select import keep_largest
from ganprune.masks.weights import WeightSlot, weight_slots
from ganprune.training.callbacks import PRUNE
from ganprune.training.state import TrainState

METHODS = ("rigl", "set")


DECAYS = ("cosine", "constant")


NEW_VALUES = ("zero", "random")


def set_update(weights: Mapping[str, Tensor], mask: Mask, fraction: float, seed: int = 0) -> Mask:
    """One update of SET: per layer, the kept weights nearest to zero are dropped, and as many grow at random.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (sparse evolutionary training). Of n kept weights ⌊fraction · n⌋ are dropped, equal ones by
    position, the earlier first; the paper drops that share of the positive and of the negative weights apart, where
    Evci et al. 2020 and others take magnitudes together, as here. Everything that is not kept after dropping may grow,
    what was just dropped included, as in RigL (:func:`rigl_update`); such a weight is as if it had never been touched.

    Args:
        weights: weight name → weight, for every layer of the mask; of a network under spectral or weight norm the
            effective ones, see ``effective_weights``.
        mask: the mask in force.
        fraction: share of the kept weights to drop, in [0, 1].
        seed: determines what grows, on every device alike.

    Returns:
        A mask with the same number of weights in each layer.

    Raises:
        TypeError: if ``fraction`` is no number or ``mask`` no :class:`Mask`.
        ValueError: if ``fraction`` is out of range, or the weights do not fit the mask or are not finite.
    """

    def growth(key: str, like: Tensor) -> Tensor:
        generator = seeded(step_seed(seed, 0, f"grow {key}"))
        return torch.rand(like.shape, generator=generator).to(like.device)

    return _update(weights, mask, fraction, growth)


def rigl_update(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], mask: Mask, fraction: float
) -> Mask:
    """One update of RigL: as :func:`set_update`, but what grows are the weights with the largest ``|gradient|``.

    Evci et al. 2020, "Rigging the lottery: making all tickets winners", algorithm 1. Where gradients are equal the
    later positions grow.

    Args:
        weights: as for :func:`set_update`.
        gradients: weight name → dense gradient of the loss, in the shape of the weight.
        mask: the mask in force.
        fraction: share of the kept weights to drop, in [0, 1].

    Returns:
        A mask with the same number of weights in each layer.

    Raises:
        TypeError: if ``fraction`` is no number or ``mask`` no :class:`Mask`.
        ValueError: if ``fraction`` is out of range, or weights or gradients do not fit the mask or are not finite.
    """
    if isinstance(mask, Mask):
        check_layers("gradients", gradients, mask)
    return _update(weights, mask, fraction, lambda key, like: gradients[key].detach().abs())


def _update(
    weights: Mapping[str, Tensor], mask: Mask, fraction: float, growth: Callable[[str, Tensor], Tensor]
) -> Mask:
    check_number("fraction", fraction, "[0, 1]")
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, got {type(mask).__name__}")
    check_layers("weights", weights, mask)
    layers = {}
    for key, kept in mask.items():
        weight = weights[key].detach()
        now = kept.to(weight.device).flatten()
        count = int(now.count_nonzero())
        dropped = int(fraction * count)
        stays = torch.zeros_like(now)
        stays[now] = keep_largest(weight.abs().flatten()[now], count - dropped)
        free, grown = ~stays, stays.clone()
        grown[free] = keep_largest(growth(key, weight).flatten()[free], dropped)
        layers[key] = grown.view(kept.shape)
    return Mask(layers)


class DynamicSparseTraining:
    """Trains a network that is sparse from the start, and moves its few weights to where they help; a callback.

    Every ``interval`` steps the weakest of the kept weights are dropped and as many grow, layer by layer
    (:func:`rigl_update`, :func:`set_update`), so the number of kept weights is constant in each layer. Weights grow
    by the gradient of the step just made, which is let through unmasked for that one step; that step moves the
    weights as any other (in algorithm 1 of Evci et al. 2020 the update stands in place of the step). Weights that come
    back start with moments of zero, and the EMA copy gets the same zeros.

    The first mask is the one in force, if there is one, or else drawn at random by ``begin``. The discriminator may
    be sparse too; then its gradient is that of its last update (the last critic step).

    Args:
        method: "rigl" (Evci et al. 2020) or "set" (Mocanu et al. 2018).
        sparsity: of the first mask, in [0, 1); a number, or by network. None: masks must be in force.
        networks: "generator", "discriminator", or both.
        allocation: of the first mask: "erk", "uniform" or "global".
        fraction: share of the kept weights that is dropped at first, in (0, 1].
        interval: steps between updates.
        end: the last update is before this step; None for 75% of the steps of the run.
        decay: "cosine": the fraction at step t is fraction / 2 · (1 + cos(π t / end)) (Evci et al. 2020, section 3);
            "constant", as in Mocanu et al. 2018.
        new_values: weights grow from "zero", or from "random" values, normal with the standard deviation of the
            layer's kept weights.
        protect: layers that the first mask leaves out: names, or names by network.
        seed: determines the first mask and, with the step, what SET grows.

    Attributes:
        rows: one per update and network: step, network, fraction, moved (weights that are new), kept.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if a number is expected and something else is given.
    """

    order = PRUNE

    def __init__(
        self,
        method: str = "rigl",
        sparsity: float | Mapping[str, float] | None = None,
        *,
        networks: str | Iterable[str] = "generator",
        allocation: str = "erk",
        fraction: float = 0.3,
        interval: int = 100,
        end: int | None = None,
        decay: str = "cosine",
        new_values: str = "zero",
        protect: Iterable[str] | Mapping[str, Iterable[str]] = (),
        seed: int = 0,
    ) -> None:
        self.method = check_choice("method", method, METHODS)
        self.networks = tuple([networks] if isinstance(networks, str) else networks)
        if not self.networks:
            raise ValueError(f"networks must name {' or '.join(NETWORKS)}, got none")
        for network in self.networks:
            check_choice("networks", network, NETWORKS)
        if len(set(self.networks)) < len(self.networks):
            raise ValueError(f"networks must name each network once, got {', '.join(self.networks)}")
        by_name = self._by_network("sparsity", sparsity)
        self.sparsity = {
            network: check_sparsity(value, f"sparsity of the {network}")
            for network, value in by_name.items()
            if value is not None
        }
        self.allocation = check_choice("allocation", allocation, ("erk", "uniform", "global"))
        self.fraction = check_number("fraction", fraction, "[0, 1]")
        if self.fraction == 0:
            raise ValueError("fraction must be above 0, got 0: no weight would ever move")
        self.interval = check_integer("interval", interval, 1)
        self.end = None if end is None else check_integer("end", end, 1)
        self.decay = check_choice("decay", decay, DECAYS)
        self.new_values = check_choice("new_values", new_values, NEW_VALUES)
        shared = [protect] if isinstance(protect, str) else protect
        names = self._by_network("protect", shared if isinstance(shared, Mapping) else tuple(shared))
        self.protect = {
            network: [one] if isinstance(one, str) else list(one) for network, one in names.items()
        }
        self.seed = seed
        self.rows: list[dict[str, Any]] = []

    def _by_network(self, name: str, value: Any) -> dict[str, Any]:
        """The argument by network: as it is given, or the same for all."""
        found = dict(value) if isinstance(value, Mapping) else dict.fromkeys(self.networks, value)
        strangers = sorted(set(found) - set(self.networks))
        if strangers:
            raise ValueError(f"{name} is given for {', '.join(strangers)}, which is not among the networks")
        return found

    def _end(self, state: TrainState) -> int:
        return int(0.75 * state.config.steps) if self.end is None else self.end

    def _due(self, state: TrainState, step: int) -> bool:
        return step > 0 and step % self.interval == 0 and step < self._end(state)

    def fraction_at(self, step: int, end: int) -> float:
        """Share of the kept weights to drop at a step before ``end``."""
        if self.decay == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / end))

    def begin(self, state: TrainState) -> None:
        """Draws the masks that are not in force yet, and asks for dense gradients if the next step is an update.

        Raises:
            ValueError: if a network has no mask and ``sparsity`` is not given, or, at step 0, a mask in force has
                another sparsity than asked for.
        """
        masks = {}
        for network in self.networks:
            wanted = self.sparsity.get(network)
            if network not in state.keepers:
                if wanted is None:
                    raise ValueError(f"sparsity must be given for the {network}, which has no mask in force")
                names = self.protect.get(network, ())
                model = state.gan.networks()[network]
                masks[network] = random_mask(
                    model, wanted, self.allocation, names, step_seed(self.seed, 0, f"mask {network}")
                )
                continue
            mask = state.keepers[network].mask
            if state.step == 0 and wanted is not None and mask.pruned != pruned_count(wanted, mask.total):
                raise ValueError(
                    f"sparsity of the {network} must be that of its mask in force, {mask.sparsity:g}, got {wanted!r}"
                )
        for network, mask in masks.items():
            set_mask(state, network, mask)
        self._prepare(state)

    def __call__(self, state: TrainState) -> None:
        """Updates the masks if it is time to; asks for dense gradients if it will be after the next step."""
        for network in self.networks:
            mask_in_force(state, network)
        if self._due(state, state.step):
            for network in self.networks:
                self._move(state, network)
        self._prepare(state)

    def _prepare(self, state: TrainState) -> None:
        if self.method == "rigl":
            for network in self.networks:
                if self._due(state, state.step + 1):
                    ask_for_gradients(state, network)
                else:
                    release_gradients(state, network)

    def _move(self, state: TrainState, network: str) -> None:
        model, mask = state.gan.networks()[network], mask_in_force(state, network)
        fraction = self.fraction_at(state.step, self._end(state))
        weights = effective(model, mask)
        if self.method == "rigl":
            new = rigl_update(weights, dense_gradients(state, network), mask, fraction)
        else:
            new = set_update(weights, mask, fraction, step_seed(self.seed, state.step, f"set {network}"))
        slots = weight_slots(model)
        grown = {key: (new[key] & ~mask[key].to(new[key].device)) for key in mask}
        if self.new_values == "random":
            seed = step_seed(self.seed, state.step, f"values {network}")
            _write_random(slots, mask, grown, seed)
        try:
            set_mask(state, network, new)
        except ValueError:
            for key, where in grown.items():
                slots[key].raw.detach().masked_fill_(where, 0.0)
            raise
        moved = sum(int(where.sum()) for where in grown.values())
        self.rows.append(
            {"step": state.step, "network": network, "fraction": fraction, "moved": moved, "kept": new.kept}
        )

    def __repr__(self) -> str:
        return (
            f"DynamicSparseTraining({self.method}, {' and '.join(self.networks)}, fraction {self.fraction:g}, "
            f"every {self.interval} steps)"
        )


@torch.no_grad()
def _write_random(
    slots: Mapping[str, WeightSlot], mask: Mask, grown: Mapping[str, Tensor], seed: int
) -> None:
    for key, where in grown.items():
        raw = slots[key].raw.detach()
        kept = raw[mask[key].to(raw.device)]
        scale = kept.std(unbiased=False) if kept.numel() else kept.new_zeros(())
        values = torch.randn(int(where.sum()), generator=seeded(step_seed(seed, 0, key))).to(raw)
        raw[where] = scale * values
