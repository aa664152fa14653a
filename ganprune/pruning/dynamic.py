"""Masks that change while training goes on: gradual pruning, SET and RigL, and the density of a discriminator.

The three classes are callbacks of :func:`ganprune.training.train`. What they do at a step follows from the step
and the masks in force alone, so a run that is resumed from a checkpoint does what it would have done uninterrupted.
``begin(state)`` does what belongs before the first step of a run or of a resumed run: pruning at step 0, a first
mask, a copy of the generator, dense gradients for the step to come. It may be called any number of times.

For a loop of one's own there are the functions behind them: :func:`set_update`, :func:`rigl_update` and
:func:`balance_ratio`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ganprune.masks import (
    Mask,
    MaskError,
    MaskKeeper,
    WeightSlot,
    check_sparsity,
    protected_keys,
    prunable_slots,
    pruned_count,
    weight_slots,
)
from ganprune.models import latent_dim_of, sample_latents
from ganprune.pruning.allocation import ALLOCATION_NAMES, PATTERNS, allocate, apportion, keep_largest
from ganprune.pruning.schedules import Schedule, get_schedule
from ganprune.pruning.scores import get_score, score
from ganprune.runtime import seeded, step_seed
from ganprune.training import BatchSource, TrainState

NETWORKS = ("generator", "discriminator")
METHODS = ("rigl", "set")
DECAYS = ("cosine", "constant")
NEW_VALUES = ("zero", "random")
GROWTHS = ("gradient", "random")


# --- What the callbacks share ---------------------------------------------------------------------


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def _pair(name: str, values: Any, low: float, high: float) -> tuple[float, float]:
    if not isinstance(values, Sequence) or len(values) != 2 or isinstance(values, str):
        raise TypeError(f"{name} must be (lower, upper), got {values!r}")
    lower, upper = (_number(name, value, low, high) for value in values)
    if not lower < upper:
        raise ValueError(f"{name} must be (lower, upper) with lower < upper, got {values!r}")
    return lower, upper


_dense_steps: WeakKeyDictionary[MaskKeeper, set[int]] = WeakKeyDictionary()
"""The steps at which a keeper lets the dense gradients through, because a callback asked for them."""


def _ask_for_gradients(state: TrainState, network: str) -> None:
    """The next step leaves dense gradients."""
    keeper = state.keepers[network]
    keeper.gradients = "dense"
    _dense_steps.setdefault(keeper, set()).add(state.step + 1)


def _release_gradients(state: TrainState, network: str) -> None:
    """Gradients are masked from the next step on, unless somebody has asked for those of the next step."""
    keeper = state.keepers[network]
    asked = {step for step in _dense_steps.get(keeper, ()) if step >= state.step}
    if keeper in _dense_steps:
        _dense_steps[keeper] = asked
        if state.step + 1 not in asked:
            keeper.gradients = "masked"


def _dense_gradients(state: TrainState, network: str) -> dict[str, Tensor]:
    """The gradients of the step that was just made, unmasked, by weight.

    Raises:
        MaskError: if nobody asked for them before the step, or a layer has none.
    """
    keeper = state.keepers[network]
    if state.step not in _dense_steps.get(keeper, ()):
        raise MaskError(
            f"the gradients of step {state.step} were masked, so nothing can be grown by them: call begin(state) "
            "before training, also when a run is resumed, and call the callback after every step"
        )
    slots = weight_slots(keeper.model)
    gradients = {key: slots[key].raw.grad for key in keeper.mask}
    missing = [key for key, gradient in gradients.items() if gradient is None]
    if missing:
        raise MaskError(f"the {network} has no gradient to grow by in {', '.join(missing)}")
    return {key: gradient for key, gradient in gradients.items() if gradient is not None}


def _set_mask(state: TrainState, network: str, mask: Mask) -> None:
    """Puts a mask in force and leaves the gradients alone: another callback may want them at the same step."""
    keeper = state.keepers.get(network)
    if keeper is None:
        state.set_mask(network, mask)
        return
    mode, keeper.gradients = keeper.gradients, "dense"
    try:
        state.set_mask(network, mask)
    finally:
        keeper.gradients = mode


def _mask_in_force(state: TrainState, network: str) -> Mask:
    if network not in state.keepers:
        raise MaskError(f"no mask is in force for the {network}; call begin(state) before training")
    return state.keepers[network].mask


def _random_mask(
    model: nn.Module, sparsity: float, allocation: str, protect: Iterable[str], seed: int
) -> Mask:
    return allocate(score(model, "random", protect=protect, seed=seed), sparsity, allocation)


def _effective(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    slots = weight_slots(model)
    return {key: slots[key].effective() for key in mask}


# --- Gradual pruning ------------------------------------------------------------------------------


class GradualPruning:
    """Prunes more and more while training goes on, after a schedule; a callback.

    At the steps ``start``, ``start + every``, … and ``end`` the network is scored and pruned to the sparsity that
    the schedule has for that step. Masks are nested: what was pruned stays pruned. After ``end`` nothing changes.

    The three moments of pruning are: *before* training ``schedule="one-shot", start=0`` (or simply ``prune`` and a
    ``TrainState`` with that mask); *during* training a start and an end in between; *after* training
    ``schedule="one-shot", start=config.steps``, which prunes what the last step has left (or ``prune`` again).

    Args:
        network: "generator", whose EMA copy is pruned with it, or "discriminator".
        sparsity: final share of zeros among the prunable weights, in [0, 1). May be left out where the schedule says
            it: "piecewise" and functions.
        schedule: "cubic" (Zhu & Gupta 2018, "To prune, or not to prune", equation 1), "one-shot" (at ``start``),
            "geometric" (each round of ``every`` steps keeps the same share of what is left), "piecewise", or a
            function from step to sparsity that never falls.
        start: first step at which anything may be pruned (the warm-up lies before).
        end: last step of the schedule. None: of "one-shot" the start, of "geometric" the round that reaches the
            sparsity, of "piecewise" the last point.
        every: steps between two prunings; "piecewise" prunes at its points.
        score: one of ``SCORES``; evaluated anew at each pruning, on the weights of that step.
        allocation: as for ``allocate``, N:M patterns apart; None for the score's own.
        protect: layers to leave alone. Layers that a mask in force does not mention are left alone as well.
        loss_fn: for scores by gradients, such as ``generator_loss(gan)`` of the very GAN that is trained.
        inputs: for scores by activations; a tensor, or batches that can be gone through several times.
        seed: for scores that draw random numbers; the same at each pruning.
        schedule_options: further options of the schedule: ``initial`` of "cubic", ``keep`` of "geometric" (0.8 unless
            given), ``points`` of "piecewise".
        options: further options of the score.

    Attributes:
        rows: one per pruning: step, network, sparsity.

    Raises:
        ValueError: if an argument is out of range, the schedule falls, does not end at ``sparsity``, or the score
            lacks what it needs.
        TypeError: if an option is unknown.
    """

    order = 0  # ganprune.callbacks.PRUNE

    def __init__(
        self,
        network: str = "generator",
        sparsity: float | None = None,
        schedule: str | Schedule = "cubic",
        *,
        start: int = 0,
        end: int | None = None,
        every: int = 100,
        score: str = "magnitude",
        allocation: str | None = None,
        protect: Iterable[str] = (),
        loss_fn: Any = None,
        inputs: Any = None,
        seed: int = 0,
        schedule_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.network = _one_of("network", network, NETWORKS)
        self.start, self.every = _integer("start", start, 0), _integer("every", every, 1)
        chosen = get_score(score)
        self.score, self.allocation = score, allocation or chosen.allocation
        if self.allocation in PATTERNS:
            raise ValueError(
                f"allocation {self.allocation!r} has one sparsity; prune to it at once, with prune()"
            )
        _one_of("allocation", self.allocation, ALLOCATION_NAMES)
        given = {"loss_fn": loss_fn, "inputs": inputs}
        needed = [
            name
            for name, value in given.items()
            if value is None
            and name in chosen.parameters
            and chosen.parameters[name].default is chosen.parameters[name].empty
        ]
        if needed:
            raise ValueError(f"score {score!r} needs {', '.join(needed)}")
        unknown = [name for name in options if name not in chosen.parameters]
        if unknown:
            raise TypeError(f"score {score!r} knows no option {', '.join(unknown)}")
        self.protect = tuple([protect] if isinstance(protect, str) else protect)
        self._arguments = {"loss_fn": loss_fn, "inputs": inputs, "seed": seed, **options}
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
        self.end = _integer("end", end, self.start)
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

    def begin(self, state: TrainState) -> None:
        """Prunes at step 0 if the schedule starts there; in a resumed run the mask is there already."""
        target, mask = self.sparsity_at(state.step), state.masks.get(self.network)
        if target > 0 and (mask is None or mask.pruned < pruned_count(target, mask.total)):
            self._prune(state, target, mask)

    def __call__(self, state: TrainState) -> None:
        """Prunes if the network keeps more than the schedule allows at this step.

        Warns:
            UserWarning: if training ends before the schedule does.
        """
        self.begin(state)
        if state.step == state.config.steps < self.end:
            warnings.warn(
                f"training ends at step {state.step}, before the schedule of the {self.network} at step {self.end}",
                UserWarning,
                stacklevel=2,
            )

    def _prune(self, state: TrainState, target: float, current: Mask | None) -> None:
        model = state.gan.networks()[self.network]
        protect: Iterable[str] = self.protect
        if current is not None:
            keys = list(prunable_slots(model))
            shielded = protected_keys(keys, self.protect) & set(current)
            if shielded:
                raise ValueError(f"protect names layers of the mask in force: {', '.join(sorted(shielded))}")
            protect = [key for key in keys if key not in current]
        scores = score(model, self.score, protect=protect, sparsity=target, **self._arguments)
        mask = allocate(scores, target, self.allocation, within=current)
        _set_mask(state, self.network, mask)
        self.rows.append({"step": state.step, "network": self.network, "sparsity": mask.sparsity})

    def __repr__(self) -> str:
        span = f"steps {self.start} to {self.end} every {self.every}"
        return f"GradualPruning({self.network}, {self.score}, {self.allocation}, {span})"


# --- SET and RigL ---------------------------------------------------------------------------------


def set_update(weights: Mapping[str, Tensor], mask: Mask, fraction: float, seed: int = 0) -> Mask:
    """One update of SET: per layer, the kept weights nearest to zero are dropped, and as many grow at random.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (sparse evolutionary training). Of n kept weights ⌊fraction · n⌋ are dropped, equal ones by
    position, the earlier first. Everything that is not kept after dropping may grow, what was just dropped included,
    as in RigL (:func:`rigl_update`); such a weight is as if it had never been touched.

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
        _check_layers("gradients", gradients, mask)
    return _update(weights, mask, fraction, lambda key, like: gradients[key].detach().abs())


def _check_layers(name: str, tensors: Mapping[str, Tensor], mask: Mask) -> None:
    wrong = [key for key, kept in mask.items() if key not in tensors or tensors[key].shape != kept.shape]
    if wrong:
        raise ValueError(f"{name} must have the layers and shapes of the mask; not so in {', '.join(wrong)}")
    bad = [key for key in mask if not bool(torch.isfinite(tensors[key]).all())]
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or infinity in {', '.join(bad)}")


def _update(
    weights: Mapping[str, Tensor], mask: Mask, fraction: float, growth: Callable[[str, Tensor], Tensor]
) -> Mask:
    _number("fraction", fraction, 0, 1)
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, got {type(mask).__name__}")
    _check_layers("weights", weights, mask)
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
    weights as any other. Weights that come back start with moments of zero, and the EMA copy gets the same zeros.

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

    order = 0  # ganprune.callbacks.PRUNE

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
        self.method = _one_of("method", method, METHODS)
        self.networks = tuple([networks] if isinstance(networks, str) else networks)
        if not self.networks:
            raise ValueError(f"networks must name {' or '.join(NETWORKS)}, got none")
        for network in self.networks:
            _one_of("networks", network, NETWORKS)
        by_name = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(self.networks, sparsity)
        strangers = sorted(set(by_name) - set(self.networks))
        if strangers:
            raise ValueError(f"sparsity is given for {', '.join(strangers)}, which is not among the networks")
        self.sparsity = {
            network: check_sparsity(value, f"sparsity of the {network}")
            for network, value in by_name.items()
            if value is not None
        }
        self.allocation = _one_of("allocation", allocation, ("erk", "uniform", "global"))
        self.fraction = _number("fraction", fraction, 0, 1)
        if self.fraction == 0:
            raise ValueError("fraction must be above 0, got 0: no weight would ever move")
        self.interval = _integer("interval", interval, 1)
        self.end = None if end is None else _integer("end", end, 1)
        self.decay = _one_of("decay", decay, DECAYS)
        self.new_values = _one_of("new_values", new_values, NEW_VALUES)
        self.protect = protect
        self.seed = seed
        self.rows: list[dict[str, Any]] = []

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
                names = self.protect.get(network, ()) if isinstance(self.protect, Mapping) else self.protect
                model = state.gan.networks()[network]
                masks[network] = _random_mask(
                    model, wanted, self.allocation, names, step_seed(self.seed, 0, f"mask {network}")
                )
                continue
            mask = state.keepers[network].mask
            if state.step == 0 and wanted is not None and mask.pruned != pruned_count(wanted, mask.total):
                raise ValueError(
                    f"sparsity of the {network} must be that of its mask in force, {mask.sparsity:g}, got {wanted!r}"
                )
        for network, mask in masks.items():
            _set_mask(state, network, mask)
        self._prepare(state)

    def __call__(self, state: TrainState) -> None:
        """Updates the masks if it is time to; asks for dense gradients if it will be after the next step."""
        for network in self.networks:
            _mask_in_force(state, network)
        if self._due(state, state.step):
            for network in self.networks:
                self._move(state, network)
        self._prepare(state)

    def _prepare(self, state: TrainState) -> None:
        if self.method == "rigl":
            for network in self.networks:
                if self._due(state, state.step + 1):
                    _ask_for_gradients(state, network)
                else:
                    _release_gradients(state, network)

    def _move(self, state: TrainState, network: str) -> None:
        model, mask = state.gan.networks()[network], _mask_in_force(state, network)
        fraction = self.fraction_at(state.step, self._end(state))
        weights = _effective(model, mask)
        if self.method == "rigl":
            new = rigl_update(weights, _dense_gradients(state, network), mask, fraction)
        else:
            new = set_update(weights, mask, fraction, step_seed(self.seed, state.step, f"set {network}"))
        slots = weight_slots(model)
        grown = {key: (new[key] & ~mask[key].to(new[key].device)) for key in mask}
        if self.new_values == "random":
            seed = step_seed(self.seed, state.step, f"values {network}")
            _write_random(slots, mask, grown, seed)
        try:
            _set_mask(state, network, new)
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


# --- Balance --------------------------------------------------------------------------------------


@torch.no_grad()
def balance_ratio(
    generator: nn.Module,
    discriminator: nn.Module,
    before: Mapping[str, Tensor],
    real: Tensor,
    latents: Tensor,
    seed: int = 0,
) -> tuple[float | None, float]:
    """How much of the discriminator's lead one update of the generator made good.

    BR = E[D(G_after(z)) − D(G_before(z))] / (E[D(x)] − E[D(G_before(z))]) (Wang et al. 2023, "Balanced training for
    sparse GANs", which adapts the discriminator's density by it). Near 0 the discriminator is too strong for the
    generator, near 1 too weak. Networks run in the modes they are in, in float32, on copies of their buffers; nothing
    changes.

    Args:
        generator: after the update.
        discriminator: as it was while the generator was updated.
        before: the generator's parameters and buffers before the update, by name.
        real: samples x, shape (N, ...).
        latents: z, shape (M, latent_dim).
        seed: of what the networks draw themselves (dropout).

    Returns:
        The ratio and its denominator, the discriminator's lead. The ratio is None where it means nothing: the lead is
        not positive beyond rounding, so that the discriminator cannot tell real from generated samples, or a logit
        is not finite.
    """
    critic = _tensors(discriminator)
    fakes = [_run(generator, tensors, latents, seed) for tensors in (before, _tensors(generator))]
    then, now, truth = (
        float(_run(discriminator, critic, samples, seed).double().mean()) for samples in (*fakes, real)
    )
    gain, lead = now - then, truth - then
    means_something = math.isfinite(gain) and math.isfinite(lead) and lead > 1e-6 * max(abs(then), abs(truth))
    return (gain / lead if means_something else None), lead


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}


def _run(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, seed: int) -> Tensor:
    """The network with other parameters and buffers, which batch and spectral norm may write to unnoticed."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return functional_call(network, copies, (inputs,))


class BalanceController:
    """Gives the discriminator the density at which the balance ratio stays in a band; a callback.

    After the idea of ADAPT (Wang et al. 2023, "Balanced training for sparse GANs"): every ``interval`` steps
    :func:`balance_ratio` is measured for the generator's last update, on fresh latents and real samples. Above the
    band the discriminator is too weak and gets ``increment`` more density, below the band it is too strong and loses
    as much. What grows are the weights with the largest ``|gradient|``, or random ones, from zero; what goes are the
    weights with the smallest effective magnitude. The density is that of the mask in force, so a resumed run goes on
    as if nothing had happened.

    The paper's code measures on the batch just trained on and averages over many steps; here one measurement decides,
    on as many ``samples`` as one likes.

    Args:
        split: real samples, usually ``data.train``.
        band: the lowest and highest balance ratio at which nothing is changed.
        increment: of the density, in (0, 1].
        interval: steps between measurements.
        bounds: the lowest and highest density, in (0, 1].
        grow: by "gradient" (the discriminator's, of the step just made) or at "random".
        allocation: how the density is divided among the layers: "erk", "uniform" or "global".
        density: of the first mask, which is drawn at random if the discriminator has none; None for the upper bound.
        samples: latents, and real samples, per measurement.
        end: the last measurement is not after this step; None for no limit.
        protect: layers that the first mask leaves out.
        seed: with the step, determines what is drawn.

    Attributes:
        rows: one per measurement: step, balance_ratio (None where it could not be measured), lead (its denominator),
            density (from now on), action ("grown", "shrunk", "in band", "at bound", or "skipped: …").

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if a number is expected and something else is given.
    """

    order = 0  # ganprune.callbacks.PRUNE

    def __init__(
        self,
        split: BatchSource,
        *,
        band: tuple[float, float] = (0.45, 0.55),
        increment: float = 0.05,
        interval: int = 1_000,
        bounds: tuple[float, float] = (0.05, 1.0),
        grow: str = "gradient",
        allocation: str = "erk",
        density: float | None = None,
        samples: int = 256,
        end: int | None = None,
        protect: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        if not callable(getattr(split, "batch", None)):
            raise TypeError(
                f"split must have a method batch(batch_size, seed, step), got {type(split).__name__}"
            )
        self.split = split
        self.band = _pair("band", band, -math.inf, math.inf)
        self.increment = _number("increment", increment, 0, 1)
        if self.increment == 0:
            raise ValueError("increment must be above 0, got 0: the density would never change")
        self.bounds = _pair("bounds", bounds, 0, 1)
        if self.bounds[0] == 0:
            raise ValueError("bounds must be above 0: a discriminator without weights tells nothing apart")
        self.interval, self.samples = _integer("interval", interval, 1), _integer("samples", samples, 1)
        self.grow = _one_of("grow", grow, GROWTHS)
        self.allocation = _one_of("allocation", allocation, ("erk", "uniform", "global"))
        self.density = self.bounds[1] if density is None else _number("density", density, *self.bounds)
        self.end = None if end is None else _integer("end", end, 1)
        self.protect, self.seed = protect, seed
        self.rows: list[dict[str, Any]] = []
        self._before: tuple[nn.Module, int, dict[str, Tensor]] | None = None

    def _due(self, step: int) -> bool:
        return step > 0 and step % self.interval == 0 and (self.end is None or step <= self.end)

    def begin(self, state: TrainState) -> None:
        """Gives the discriminator a mask if it has none, and takes a copy of the generator if it is time to."""
        if "discriminator" not in state.keepers:
            model = state.gan.discriminator
            seed = step_seed(self.seed, 0, "mask discriminator")
            _set_mask(
                state,
                "discriminator",
                _random_mask(model, 1 - self.density, self.allocation, self.protect, seed),
            )
        self._prepare(state)

    def __call__(self, state: TrainState) -> None:
        """Measures and adapts if it is time to."""
        _mask_in_force(state, "discriminator")
        if self._due(state.step):
            self._control(state)
        self._prepare(state)

    def _prepare(self, state: TrainState) -> None:
        due = self._due(state.step + 1)
        self._before = None
        if due:
            copies = {name: tensor.clone() for name, tensor in _tensors(state.gan.generator).items()}
            self._before = (state.gan.generator, state.step, copies)
        if self.grow == "gradient":
            (_ask_for_gradients if due else _release_gradients)(state, "discriminator")

    def _control(self, state: TrainState) -> None:
        gan, mask = state.gan, _mask_in_force(state, "discriminator")
        if self._before is None or self._before[:2] != (gan.generator, state.step - 1):
            raise MaskError(
                f"the generator as it was before step {state.step} is not known: call begin(state) before training, "
                "also when a run is resumed, and call the callback after every step"
            )
        draw = step_seed(self.seed, state.step, "balance")
        real = self.split.batch(self.samples, draw, 0).to(gan.device)
        latents = sample_latents(self.samples, latent_dim_of(gan.generator), draw, gan.device)
        ratio, lead = balance_ratio(gan.generator, gan.discriminator, self._before[2], real, latents, draw)
        if ratio is None:
            action = "skipped: the discriminator does not tell real from generated samples"
        elif self.band[0] <= ratio <= self.band[1]:
            action = "in band"
        else:
            action = self._adapt(state, mask, self.increment if ratio > self.band[1] else -self.increment)
            mask = _mask_in_force(state, "discriminator")
        self.rows.append(
            {
                "step": state.step,
                "balance_ratio": ratio,
                "lead": lead,
                "density": mask.density,
                "action": action,
            }
        )

    def _adapt(self, state: TrainState, mask: Mask, change: float) -> str:
        density = min(max(mask.density + change, self.bounds[0]), self.bounds[1])
        keep = mask.total - pruned_count(1 - density, mask.total)
        if keep == mask.kept or (keep > mask.kept) != (change > 0):
            return "at bound"
        grows = keep > mask.kept
        _set_mask(
            state,
            "discriminator",
            self._grown(state, mask, keep) if grows else self._shrunk(state, mask, density),
        )
        return "grown" if grows else "shrunk"

    def _shrunk(self, state: TrainState, mask: Mask, density: float) -> Mask:
        weights = _effective(state.gan.discriminator, mask)
        scores = {key: weight.abs() for key, weight in weights.items()}
        return allocate(scores, 1 - density, self.allocation, within=mask)

    def _grown(self, state: TrainState, mask: Mask, keep: int) -> Mask:
        if self.grow == "gradient":
            gradients = _dense_gradients(state, "discriminator")
            scores = {key: gradient.detach().abs() for key, gradient in gradients.items()}
            _check_layers("gradients", scores, mask)
        else:
            generator = seeded(step_seed(self.seed, state.step, "grow discriminator"))
            scores = {
                key: torch.rand(kept.shape, generator=generator).to(kept.device) for key, kept in mask.items()
            }
        return _grow(mask, scores, keep, self.allocation)


def _grow(mask: Mask, scores: Mapping[str, Tensor], keep: int, allocation: str) -> Mask:
    """All that the mask keeps, and the best-scored of the rest, so that ``keep`` weights are kept in all."""
    now = {key: kept.to(scores[key].device).flatten() for key, kept in mask.items()}
    flat = {key: scores[key].flatten() for key in mask}
    if allocation == "global":
        free = torch.cat([~kept for kept in now.values()])
        chosen = torch.zeros_like(free)
        chosen[free] = keep_largest(torch.cat(list(flat.values()))[free], keep - mask.kept)
        parts = dict(zip(mask, chosen.split([kept.numel() for kept in now.values()]), strict=True))
    else:
        sizes, floors = [kept.numel() for kept in now.values()], [row["kept"] for row in mask.layers()]
        claims = sizes if allocation == "uniform" else [sum(kept.shape) for kept in mask.values()]
        parts = {}
        for (key, kept), share, floor in zip(
            now.items(), _shares(keep, claims, sizes, floors), floors, strict=True
        ):
            parts[key] = torch.zeros_like(kept)
            parts[key][~kept] = keep_largest(flat[key][~kept], share - floor)
    return Mask({key: (parts[key] | now[key]).view(mask[key].shape) for key in mask})


def _shares(keep: int, claims: Sequence[int], capacities: Sequence[int], floors: Sequence[int]) -> list[int]:
    """As ``apportion``, but no layer gets less than its floor: seats are divided as if there were fewer of them."""

    def shares(seats: int) -> list[int]:
        return [max(a, b) for a, b in zip(apportion(seats, claims, capacities), floors, strict=True)]

    low, high = 0, keep
    while low < high:  # one more seat adds one to the sum or nothing, so every sum is met
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(shares(middle)) <= keep else (low, middle - 1)
    return shares(low)
