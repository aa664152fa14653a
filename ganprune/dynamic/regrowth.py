"""SET and RigL: a constant number of weights, moved to where they help."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.random import seeded, step_seed
from ganprune.dynamic.common import (
    check_not_diverged,
    dense_gradients,
    draw_first_mask,
    effective,
    let_gradients_through,
    mask_in_force,
)
from ganprune.masks.mask import Mask, check_sparsity, pruned_count
from ganprune.masks.select import keep_largest
from ganprune.masks.weights import weight_slots
from ganprune.networks.gan import MASKED_NETWORKS
from ganprune.training.callbacks import PRUNE, Callback
from ganprune.training.state import TrainState

METHODS = ("rigl", "set")
DECAYS = ("cosine", "constant")
NEW_VALUES = ("zero", "random")


def set_update(weights: Mapping[str, Tensor], mask: Mask, fraction: float, seed: int = 0) -> Mask:
    """One update of SET: per layer, the kept weights nearest to zero are dropped, and as many grow at random.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (sparse evolutionary training). The paper drops a share of the positive and of the negative weights
    apart; here magnitudes are taken together, as Evci et al. 2020 and others do.

    Args:
        weights: weight name → weight, for every layer of the mask; of a network under spectral or weight norm the
            effective ones, see :func:`ganprune.masks.effective_weights`.
        mask: the mask in force.
        fraction: share of the kept weights to drop, in [0, 1]; of n weights, ⌊fraction · n⌋ go.
        seed: determines what grows, on every device alike.

    Returns:
        A mask with the same number of weights in each layer.

    Raises:
        TypeError: if ``fraction`` is no number or ``mask`` no :class:`Mask`.
        ValueError: if ``fraction`` is out of range, or the weights do not fit the mask or are not finite.
    """
    luck = {
        key: torch.rand(weight.shape, generator=seeded(step_seed(seed, 0, f"grow {key}"))).to(weight.device)
        for key, weight in weights.items()
    }
    return _drop_and_grow(weights, luck, mask, fraction)


def rigl_update(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], mask: Mask, fraction: float
) -> Mask:
    """One update of RigL: as :func:`set_update`, but what grows are the weights with the largest ``|gradient|``.

    Evci et al. 2020, "Rigging the lottery: making all tickets winners", algorithm 1. Everything that is not kept after
    dropping may grow, what was just dropped included, as in the authors' code; such a weight is as if it had never been
    touched. Of equal weights the earlier ones are dropped, of equal gradients the later ones grow.

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
    return _drop_and_grow(weights, {key: g.detach().abs() for key, g in gradients.items()}, mask, fraction)


def _drop_and_grow(
    weights: Mapping[str, Tensor], growth: Mapping[str, Tensor], mask: Mask, fraction: float
) -> Mask:
    """Per layer: keep the largest of the kept weights, then grow the best of all others."""
    check_number("fraction", fraction, "[0, 1]")
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, got {type(mask).__name__}")
    _check_layers("weights", weights, mask)
    _check_layers("gradients", growth, mask)
    layers = {}
    for key, kept in mask.items():
        magnitude, now = weights[key].detach().abs().flatten(), kept.to(weights[key].device).flatten()
        count = int(now.count_nonzero())
        moved = int(fraction * count)
        stays = torch.zeros_like(now)
        stays[now] = keep_largest(magnitude[now], count - moved)
        grown = torch.zeros_like(now)
        grown[~stays] = keep_largest(growth[key].flatten()[~stays], moved)
        layers[key] = (stays | grown).view(kept.shape)
    return Mask(layers)


def _check_layers(name: str, tensors: Mapping[str, Tensor], mask: Mask) -> None:
    wrong = [key for key, kept in mask.items() if key not in tensors or tensors[key].shape != kept.shape]
    if wrong:
        raise ValueError(f"{name} must have the layers and shapes of the mask; not so in {', '.join(wrong)}")
    bad = [key for key in mask if not bool(torch.isfinite(tensors[key]).all())]
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or infinity in {', '.join(bad)}")


class DynamicSparseTraining(Callback):
    """Trains a network that is sparse from the start, and moves its few weights to where they help; a callback.

    Every so many steps the weakest of the kept weights are dropped and as many grow, layer by layer
    (:func:`rigl_update`, :func:`set_update`), so the number of kept weights is constant in each layer. RigL grows by
    the gradient of the step just made; that step moves the weights as any other (in algorithm 1 of Evci et al. 2020 the
    update stands in place of the step). Of the discriminator it is the gradient of the last critic step. Weights that
    come back start with moments of zero, and the EMA copy gets the same zeros.

    The first mask is the one in ``gan.masks``, or else drawn at random before the first step.

    Args:
        method: "rigl" (Evci et al. 2020) or "set" (Mocanu et al. 2018).
        sparsity: of the first mask, in [0, 1); None: there must be one already.
        network: "generator" or "discriminator". For both, take two callbacks.
        allocation: of the first mask: "erk", "uniform" or "global".
        fraction: share of the kept weights that is dropped at first, in (0, 1].
        every: steps between updates.
        end: the last update is before this step; None for 75% of the steps of the run.
        decay: "cosine": the fraction at step t is fraction / 2 · (1 + cos(π t / end)) (Evci et al. 2020, section 3);
            "constant", as in Mocanu et al. 2018.
        new_values: weights grow from "zero" (RigL), or from "random" values (SET), normal with the standard deviation
            of the layer's weights that stay.
        protect: layers that the first mask leaves out.
        seed: determines the first mask and, with the step, what grows at random.

    Attributes:
        rows: one per update: step, network, fraction, moved (number of weights that are new), kept.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range.
    """

    order = PRUNE

    def __init__(
        self,
        method: str = "rigl",
        sparsity: float | None = None,
        *,
        network: str = "generator",
        allocation: str = "erk",
        fraction: float = 0.3,
        every: int = 100,
        end: int | None = None,
        decay: str = "cosine",
        new_values: str = "zero",
        protect: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method = check_choice("method", method, METHODS)
        self.network = check_choice("network", network, MASKED_NETWORKS)
        self.name = f"{type(self).__name__}/{network}"
        self.sparsity = None if sparsity is None else check_sparsity(sparsity)
        self.allocation = check_choice("allocation", allocation, ("erk", "uniform", "global"))
        self.fraction = check_number("fraction", fraction, "(0, 1]")
        self.every = check_integer("every", every, 1)
        self.end_step = None if end is None else check_integer("end", end, 1)
        self.decay = check_choice("decay", decay, DECAYS)
        self.new_values = check_choice("new_values", new_values, NEW_VALUES)
        self.protect = (protect,) if isinstance(protect, str) else tuple(protect)
        self.seed = check_integer("seed", seed, 0)

    def fraction_at(self, step: int, end: int) -> float:
        """Share of the kept weights to drop at a step before ``end``."""
        if self.decay == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / end))

    def begin(self, state: TrainState) -> None:
        """Draws the first mask if there is none, and lets the gradients through that RigL grows by.

        Raises:
            ValueError: if there is no mask and no ``sparsity``, or, at step 0, a mask of another sparsity.
        """
        mask, wanted = state.gan.masks.get(self.network), self.sparsity
        if mask is None:
            if wanted is None:
                raise ValueError(f"sparsity must be given for the {self.network}, which has no mask")
            draw_first_mask(state, self.network, wanted, self.allocation, self.protect, self.seed)
        elif state.step == 0 and wanted is not None and mask.pruned != pruned_count(wanted, mask.total):
            raise ValueError(
                f"sparsity must be that of the mask of the {self.network}, {mask.sparsity:g}, got {wanted!r}"
            )
        if self.method == "rigl":
            let_gradients_through(state, self.network)

    def __call__(self, state: TrainState) -> None:
        """Updates the mask if it is time to.

        Raises:
            DivergenceError: if training has diverged, so that there is nothing to compare.
            MaskError: if the callback was not begun.
        """
        end = int(0.75 * state.config.steps) if self.end_step is None else self.end_step
        if state.step == 0 or state.step % self.every or state.step >= end:
            return
        old, weights = mask_in_force(state, self.network), effective(state, self.network)
        fraction = self.fraction_at(state.step, end)
        if self.method == "rigl":
            gradients = dense_gradients(state, self.network)
            check_not_diverged(state, self.network, gradients.values())
            new = rigl_update(weights, gradients, old, fraction)
        else:
            check_not_diverged(state, self.network)
            new = set_update(weights, old, fraction, step_seed(self.seed, state.step, f"set {self.network}"))
        state.gan.masks[self.network] = new
        grown = {key: new[key] & ~old[key].to(new[key].device) for key in new}
        if self.new_values == "random":
            self._draw_values(state, new, grown)
        moved = sum(int(where.sum()) for where in grown.values())
        row = {"step": state.step, "network": self.network, "fraction": fraction}
        self.rows.append({**row, "moved": moved, "kept": new.kept})

    @torch.no_grad()
    def _draw_values(self, state: TrainState, mask: Mask, grown: Mapping[str, Tensor]) -> None:
        slots = weight_slots(state.gan.networks()[self.network])
        for key, where in grown.items():
            raw = slots[key].raw
            stays = raw[(mask[key] & ~where).to(raw.device)]
            if not stays.numel():
                continue
            draw = seeded(step_seed(self.seed, state.step, f"values {self.network} {key}"))
            raw[where.to(raw.device)] = stays.std(unbiased=False) * torch.randn(
                int(where.sum()), generator=draw
            ).to(raw)

    def __repr__(self) -> str:
        return f"DynamicSparseTraining({self.method!r}, {self.sparsity}, network={self.network!r}, every={self.every})"
