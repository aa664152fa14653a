"""The balance ratio, and a discriminator whose density follows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.device import placement_of
from ganprune.core.random import keep_random_state, step_seed
from ganprune.dynamic.common import (
    check_not_diverged,
    dense_gradients,
    draw_first_mask,
    effective,
    let_gradients_through,
    mask_in_force,
)
from ganprune.masks.mask import Mask, MaskError, pruned_count
from ganprune.networks.sampling import draw_inputs
from ganprune.scores.registry import score
from ganprune.training.callbacks import PRUNE, Callback
from ganprune.training.loop import BatchSource
from ganprune.training.state import TrainState

GROWTHS = ("gradient", "random")


@torch.no_grad()
def balance_ratio(
    generator: nn.Module,
    discriminator: nn.Module,
    before: Mapping[str, Tensor],
    real: Tensor,
    latents: Tensor | tuple[Any, ...],
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
        latents: z, shape (M, latent_dim), or a tuple of arguments.
        seed: of what the networks draw themselves (dropout).

    Returns:
        The ratio and its denominator, the discriminator's lead. The ratio is None where it means nothing: the lead is
        not positive beyond rounding, so that the discriminator cannot tell real from generated samples, or a logit
        is not finite.
    """
    critic = _tensors(discriminator)
    fakes = [_run(generator, tensors, latents, seed) for tensors in (before, _tensors(generator))]
    then, now, truth = (
        float(_run(discriminator, critic, samples, seed).cpu().double().mean()) for samples in (*fakes, real)
    )
    gain, lead = now - then, truth - then
    means_something = math.isfinite(gain) and math.isfinite(lead) and lead > 1e-6 * max(abs(then), abs(truth))
    return (gain / lead if means_something else None), lead


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}


def _run(network: nn.Module, tensors: Mapping[str, Tensor], inputs: Any, seed: int) -> Tensor:
    """The network with other parameters and buffers, which batch and spectral norm may write to unnoticed."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    with keep_random_state(placement_of(network)[0]):
        torch.manual_seed(seed)
        return functional_call(network, copies, inputs if isinstance(inputs, tuple) else (inputs,))


class BalanceController(Callback):
    """Gives the discriminator the density at which the balance ratio stays in a band; a callback.

    After the idea of ADAPT (Wang et al. 2023, "Balanced training for sparse GANs"): every so many steps
    :func:`balance_ratio` is measured for the generator's last update, on fresh latents and real samples. Above the
    band the discriminator is too weak and gets ``increment`` more density, below the band it is too strong and loses
    as much. What grows are the weights with the largest ``|gradient|``, or random ones, from zero; what goes are the
    weights with the smallest effective magnitude. The density is that of the mask in force, so a resumed run goes on
    as if nothing had happened.

    The paper's code measures on the batch just trained on and averages the ratios of many steps; here one measurement
    decides, on as many ``samples`` as one likes. There all layers compete for what grows and what goes, which is
    ``allocation="global"``, after a first mask by ERK and at the generator's density. Band, increment, interval and
    bounds are those of its relaxed variant; the strict one ends at 0.5, where it also moves the mask.

    Args:
        split: real samples, usually ``data.train``.
        band: the lowest and highest balance ratio at which nothing is changed.
        increment: of the density, in (0, 1].
        every: steps between measurements.
        bounds: the lowest and highest density, in (0, 1].
        grow: by "gradient" (the discriminator's, of the step just made) or at "random".
        allocation: how the first mask, and then what grows or goes, is divided among the layers: "erk", "uniform" or
            "global".
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

    order = PRUNE

    def __init__(
        self,
        split: BatchSource,
        *,
        band: tuple[float, float] = (0.45, 0.55),
        increment: float = 0.05,
        every: int = 1_000,
        bounds: tuple[float, float] = (0.05, 1.0),
        grow: str = "gradient",
        allocation: str = "erk",
        density: float | None = None,
        samples: int = 256,
        end: int | None = None,
        protect: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(getattr(split, "batch", None)):
            raise TypeError(
                f"split must have a method batch(batch_size, seed, step), got {type(split).__name__}"
            )
        self.split = split
        self.band = _pair("band", band, "[-inf, inf]")
        self.increment = check_number("increment", increment, "(0, 1]")
        self.bounds = _pair("bounds", bounds, "(0, 1]")
        self.every = check_integer("every", every, 1)
        self.samples = check_integer("samples", samples, 1)
        self.grow = check_choice("grow", grow, GROWTHS)
        self.allocation = check_choice("allocation", allocation, ("erk", "uniform", "global"))
        low, high = self.bounds
        self.density = high if density is None else check_number("density", density, f"[{low!r}, {high!r}]")
        self.end_step = None if end is None else check_integer("end", end, 1)
        self.protect = (protect,) if isinstance(protect, str) else tuple(protect)
        self.seed = check_integer("seed", seed, 0)
        self._before: tuple[int, dict[str, Tensor]] | None = None

    def begin(self, state: TrainState) -> None:
        """Gives the discriminator a mask if it has none, and takes a copy of the generator if it is time to."""
        if "discriminator" not in state.gan.masks:
            sparsity = 1 - self.density
            draw_first_mask(state, "discriminator", sparsity, self.allocation, self.protect, self.seed)
        if self.grow == "gradient":
            let_gradients_through(state, "discriminator")
        self._prepare(state)

    def __call__(self, state: TrainState) -> None:
        """Measures and adapts if it is time to.

        Raises:
            DivergenceError: if training has diverged.
            MaskError: if the callback was not begun, or not called after the step before.
        """
        mask_in_force(state, "discriminator")
        if self._due(state.step):
            for network in ("generator", "discriminator"):
                check_not_diverged(state, network)
            self._control(state)
        self._prepare(state)

    def _due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0 and (self.end_step is None or step <= self.end_step)

    def _prepare(self, state: TrainState) -> None:
        """Copies the generator if the balance ratio is measured after the next step."""
        self._before = None
        if self._due(state.step + 1):
            copies = {name: tensor.clone() for name, tensor in _tensors(state.gan.generator).items()}
            self._before = (state.step, copies)

    def _control(self, state: TrainState) -> None:
        if self._before is None or self._before[0] != state.step - 1:
            raise MaskError(
                f"the generator as it was before step {state.step} is not known: call begin(state) before training, "
                "as gp.train does, and the callback after every step"
            )
        gan, draw = state.gan, step_seed(self.seed, state.step, "balance")
        real = self.split.batch(self.samples, draw, 0).to(gan.device)
        latents = draw_inputs(gan.generator, self.samples, draw)
        ratio, lead = balance_ratio(gan.generator, gan.discriminator, self._before[1], real, latents, draw)
        if ratio is None:
            action = "skipped: the discriminator does not tell real from generated samples"
        elif self.band[0] <= ratio <= self.band[1]:
            action = "in band"
        else:
            action = self._adapt(state, self.increment if ratio > self.band[1] else -self.increment)
        density = gan.masks["discriminator"].density
        row = {"step": state.step, "balance_ratio": ratio, "lead": lead, "density": density, "action": action}
        self.rows.append(row)

    def _adapt(self, state: TrainState, change: float) -> str:
        """Changes the density by as much as the bounds allow."""
        mask = state.gan.masks["discriminator"]
        density = min(max(mask.density + change, self.bounds[0]), self.bounds[1])
        more = mask.total - pruned_count(1 - density, mask.total) - mask.kept
        if more == 0 or (more > 0) != (change > 0):
            return "at bound"
        if more > 0:
            growth = self._growth(state, mask)
            if not any(bool(one.any()) for one in growth.values()):
                return "skipped: the discriminator has no gradient to grow by"
            new = _grown(mask, growth, more, self.allocation)
        else:
            weights = effective(state, "discriminator")
            magnitudes = {key: weight.abs() for key, weight in weights.items()}
            new = allocate(magnitudes, 1 - density, self.allocation, within=mask)
        state.gan.masks["discriminator"] = new
        return "grown" if more > 0 else "shrunk"

    def _growth(self, state: TrainState, mask: Mask) -> dict[str, Tensor]:
        """The larger, the sooner a weight grows."""
        if self.grow == "random":
            seed = step_seed(self.seed, state.step, "grow discriminator")
            luck = score(state.gan.discriminator, "random", seed=seed)
            return {key: luck[key] for key in mask}
        gradients = dense_gradients(state, "discriminator")
        check_not_diverged(state, "discriminator", gradients.values())
        return {key: gradient.abs() for key, gradient in gradients.items()}


def _grown(mask: Mask, scores: Mapping[str, Tensor], more: int, allocation: str) -> Mask:
    """All that the mask keeps and ``more`` of the rest, divided among the layers by the allocation."""
    rest = Mask({key: ~kept for key, kept in mask.items()})
    return mask | allocate(scores, 1 - more / mask.total, allocation, within=rest)


def _pair(name: str, values: Any, interval: str) -> tuple[float, float]:
    if not isinstance(values, Sequence) or len(values) != 2 or isinstance(values, str):
        raise TypeError(f"{name} must be (lower, upper), got {values!r}")
    lower, upper = (check_number(name, value, interval) for value in values)
    if not lower < upper:
        raise ValueError(f"{name} must be (lower, upper) with lower < upper, got {values!r}")
    return lower, upper
