"""The balance ratio, and a discriminator whose density follows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import apportion
from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.random import keep_random_state, seeded, step_seed
from ganprune.dynamic.common import (
    ask_for_gradients,
    check_layers,
    dense_gradients,
    effective,
    mask_in_force,
    pair,
    random_mask,
    release_gradients,
    set_mask,
)
from ganprune.masks.mask import Mask, MaskError, pruned_count
from ganprune.masks.select import keep_largest
from ganprune.networks.sampling import latent_dim_of, sample_latents
from ganprune.training.callbacks import PRUNE
from ganprune.training.loop import BatchSource
from ganprune.training.state import TrainState

GROWTHS = ("gradient", "random")


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
    with keep_random_state(inputs.device):
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

    The paper's code measures on the batch just trained on and averages the ratios of many steps; here one measurement
    decides, on as many ``samples`` as one likes. There all layers compete for what grows and what goes, which is
    ``allocation="global"``, after a first mask by ERK and at the generator's density. Band, increment, interval and
    bounds are those of its relaxed variant; the strict one ends at 0.5, where it also moves the mask.

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

    order = PRUNE

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
        self.band = pair("band", band, "[-inf, inf]")
        self.increment = check_number("increment", increment, "[0, 1]")
        if self.increment == 0:
            raise ValueError("increment must be above 0, got 0: the density would never change")
        self.bounds = pair("bounds", bounds, "[0, 1]")
        if self.bounds[0] == 0:
            raise ValueError("bounds must be above 0: a discriminator without weights tells nothing apart")
        self.interval = check_integer("interval", interval, 1)
        self.samples = check_integer("samples", samples, 1)
        self.grow = check_choice("grow", grow, GROWTHS)
        self.allocation = check_choice("allocation", allocation, ("erk", "uniform", "global"))
        low, high = self.bounds
        self.density = high if density is None else check_number("density", density, f"[{low!r}, {high!r}]")
        self.end = None if end is None else check_integer("end", end, 1)
        self.protect, self.seed = [protect] if isinstance(protect, str) else list(protect), seed
        self.rows: list[dict[str, Any]] = []
        self._before: tuple[nn.Module, int, dict[str, Tensor]] | None = None

    def _due(self, step: int) -> bool:
        return step > 0 and step % self.interval == 0 and (self.end is None or step <= self.end)

    def begin(self, state: TrainState) -> None:
        """Gives the discriminator a mask if it has none, and takes a copy of the generator if it is time to."""
        if "discriminator" not in state.keepers:
            model = state.gan.discriminator
            seed = step_seed(self.seed, 0, "mask discriminator")
            set_mask(
                state,
                "discriminator",
                random_mask(model, 1 - self.density, self.allocation, self.protect, seed),
            )
        self._prepare(state)

    def __call__(self, state: TrainState) -> None:
        """Measures and adapts if it is time to."""
        mask_in_force(state, "discriminator")
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
            (ask_for_gradients if due else release_gradients)(state, "discriminator")

    def _control(self, state: TrainState) -> None:
        gan, mask = state.gan, mask_in_force(state, "discriminator")
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
            mask = mask_in_force(state, "discriminator")
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
        set_mask(
            state,
            "discriminator",
            self._grown(state, mask, keep) if grows else self._shrunk(state, mask, density),
        )
        return "grown" if grows else "shrunk"

    def _shrunk(self, state: TrainState, mask: Mask, density: float) -> Mask:
        weights = effective(state.gan.discriminator, mask)
        scores = {key: weight.abs() for key, weight in weights.items()}
        return allocate(scores, 1 - density, self.allocation, within=mask)

    def _grown(self, state: TrainState, mask: Mask, keep: int) -> Mask:
        if self.grow == "gradient":
            gradients = dense_gradients(state, "discriminator")
            scores = {key: gradient.detach().abs() for key, gradient in gradients.items()}
            check_layers("gradients", scores, mask)
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
