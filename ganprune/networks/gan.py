"""A GAN: a generator, a discriminator, the moving average of the generator, and the masks of the two networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ganprune.core.checks import check_choice
from ganprune.core.device import as_device, standard_defaults
from ganprune.core.random import step_seed
from ganprune.masks.apply import apply_mask, check_fit, check_mask
from ganprune.masks.keep import MaskKeeper, is_kept, keep_mask
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.names import find_adapter
from ganprune.masks.weights import weight_slots
from ganprune.networks.parts import copy_network

MASKED_NETWORKS = ("generator", "discriminator")
_FEW_ZEROS = 0.01


@dataclass(frozen=True)
class GANSpec:
    """The specs of both networks of a GAN."""

    generator: Any
    discriminator: Any


class GAN:
    """A generator, a discriminator, and the exponential moving average (EMA) of the generator.

    Attributes:
        generator: maps latents (N, latent_dim) to samples.
        discriminator: maps samples to logits (N,).
        generator_ema: a frozen copy of the generator in evaluation mode; training moves it slowly after the generator.
        masks: the masks of "generator" and "discriminator", see :class:`GANMasks`; empty for a dense GAN.
        metadata: what a checkpoint says of its making.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, generator_ema: nn.Module | None = None
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.generator_ema = generator_ema if generator_ema is not None else copy_network(generator)
        self.generator_ema.requires_grad_(False).eval()
        self.masks = GANMasks(self)
        self.metadata: dict[str, Any] = {}

    @classmethod
    def from_spec(cls, spec: GANSpec, seed: int = 0, device: str | torch.device | None = None) -> GAN:
        """A freshly initialised GAN; the seed determines the weights, on every device alike."""
        with torch.random.fork_rng(devices=[]), standard_defaults():
            torch.manual_seed(step_seed(seed, 0, "init"))
            generator, discriminator = spec.generator.build(), spec.discriminator.build()
        return cls(generator, discriminator).to(as_device(device))

    @property
    def spec(self) -> GANSpec:
        """The specs of the two networks."""
        return GANSpec(self.generator.spec, self.discriminator.spec)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.generator.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """The three networks by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_ema": self.generator_ema,
        }

    def to(self, device: str | torch.device) -> GAN:
        """Moves all three networks in place; returns self."""
        for network in self.networks().values():
            network.to(device)
        return self

    def __repr__(self) -> str:
        counts = {
            name: sum(p.numel() for p in network.parameters()) for name, network in self.networks().items()
        }
        masks = "".join(f", {name} {mask.sparsity:.0%} sparse" for name, mask in self.masks.items())
        return (
            f"GAN(generator={type(self.generator).__name__} {counts['generator']:,} parameters, "
            f"discriminator={type(self.discriminator).__name__} {counts['discriminator']:,} parameters{masks})"
        )


def built_here(network: nn.Module) -> bool:
    """Whether this package built a network, so that its memory layout and its kernels are our choice.

    Its class is one of the package's, and so is, or is PyTorch's, that of each of its parts: a part of your own may
    count on the layout that it is used to.
    """
    if find_adapter(network) is not None:  # what lies inside is somebody else's
        return False
    origins = [type(part).__module__.partition(".")[0] for part in network.modules()]
    return origins[0] == "ganprune" and set(origins) <= {"ganprune", "torch"}


class GANMasks(MutableMapping[str, Mask]):
    """The masks of a GAN: the one place that knows which of its weights are pruned.

    ``gan.masks["generator"] = mask`` sets the pruned weights to zero, in the generator and in its EMA copy, and
    remembers the mask. While :func:`ganprune.train` runs, it also keeps the mask from then on. ``del`` and ``clear``
    say that the networks are dense from now on: the zeros stay until an optimiser moves them.
    """

    def __init__(self, gan: GAN) -> None:
        self._gan = gan
        self._masks: dict[str, Mask] = {}
        self._said_dense: set[str] = set()
        self._optimizers: Mapping[str, Optimizer] | None = None
        self._keepers: dict[str, MaskKeeper] = {}

    def __getitem__(self, network: str) -> Mask:
        return self._masks[network]

    def __setitem__(self, network: str, mask: Mask) -> None:
        check_choice("network", network, MASKED_NETWORKS)
        model, ema = self._pair(network)
        for one in (model, ema):
            if one is not None:
                check_fit(one, mask)
        keeper = self._keepers.get(network)
        if keeper is not None and keeper.mask.shapes == mask.shapes:
            keeper.update(mask)
        elif self._optimizers is not None:
            self._let_go(network)
            try:
                self._keepers[network] = keep_mask(model, mask, self._optimizers[network], ema)
            except Exception:
                if network in self._masks:  # the mask of before stays in force
                    before = self._masks[network]
                    self._keepers[network] = keep_mask(model, before, self._optimizers[network], ema)
                raise
        else:
            apply_mask(model, mask, ema)
        self._masks[network] = mask
        self._said_dense.discard(network)

    def __delitem__(self, network: str) -> None:
        del self._masks[network]
        self._let_go(network)
        self._said_dense.add(network)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._masks))

    def __len__(self) -> int:
        return len(self._masks)

    def clear(self) -> None:
        """Says that both networks are trained dense from now on, also where their weights happen to be zero."""
        self.say_dense(MASKED_NETWORKS)

    def say_dense(self, networks: Iterable[str]) -> None:
        """Says of some networks what :meth:`clear` says of both; it is saved with the GAN."""
        for network in networks:
            check_choice("network", network, MASKED_NETWORKS)
            self._masks.pop(network, None)
            self._let_go(network)
            self._said_dense.add(network)

    def check(self) -> None:
        """Does nothing if every mask holds, in the EMA copy too, and no network has zeros that nobody answers for.

        Raises:
            MaskError: if a pruned weight is not zero, a weight is not finite, or a network without a mask has been
                pruned and :meth:`clear` was not called.
        """
        for network in MASKED_NETWORKS:
            for one in self._pair(network):
                if network in self._masks and one is not None:
                    check_mask(one, self._masks[network])
            if network not in self._masks and network not in self._said_dense:
                self._refuse_unowned_zeros(network)

    def keeper(self, network: str) -> MaskKeeper:
        """What keeps the mask of a network while training runs; its ``gradients`` may be set to "dense".

        Raises:
            MaskError: outside of training, and for a network without a mask.
        """
        if network not in self._keepers:
            held = "holds no mask" if self._optimizers is not None else "is not being trained"
            raise MaskError(f"gan.masks has no keeper for {network!r}: the network {held}")
        return self._keepers[network]

    @contextmanager
    def held(self, optimizers: Mapping[str, Optimizer]) -> Iterator[None]:
        """Keeps all masks inside the block, those set inside it too, and lets go of all at its end.

        Args:
            optimizers: of "generator" and "discriminator".

        Raises:
            MaskError: if the masks are held already, or as :meth:`check` does, before the block and after it.
        """
        if self._optimizers is not None:
            raise MaskError(
                "the masks of this GAN are held already: two trainings of one GAN cannot be nested"
            )
        self.check()
        self._optimizers = optimizers
        try:
            for network, mask in self._masks.items():
                model, ema = self._pair(network)
                self._keepers[network] = keep_mask(model, mask, optimizers[network], ema)
            yield
            for keeper in self._keepers.values():
                keeper.check()
        finally:
            self._optimizers = None
            for network in list(self._keepers):
                self._let_go(network)

    def _pair(self, network: str) -> tuple[nn.Module, nn.Module | None]:
        """A network and, of the generator, its EMA copy."""
        return self._gan.networks()[network], self._gan.generator_ema if network == "generator" else None

    def _let_go(self, network: str) -> None:
        if network in self._keepers:
            self._keepers.pop(network).remove()

    @torch.no_grad()
    def _refuse_unowned_zeros(self, network: str) -> None:
        """Layers that are zero throughout were initialised so; zeros among other weights come from pruning."""
        slots = [slot for slot in weight_slots(self._pair(network)[0]).values() if not is_kept(slot.raw)]
        if not slots:
            return
        zeros = torch.stack([(slot.raw == 0).sum().cpu() for slot in slots]).tolist()
        partly = [
            (zero, slot.raw.numel())
            for zero, slot in zip(zeros, slots, strict=True)
            if zero < slot.raw.numel()
        ]
        count, total = sum(zero for zero, _ in partly), sum(size for _, size in partly)
        if total and count > _FEW_ZEROS * total:
            raise MaskError(
                f"{count / total:.1%} of the {network}'s weights are zero, but gan.masks has no mask for it: prune "
                f"with gp.prune(gan, ...) or set gan.masks[{network!r}] = gp.Mask.nonzero(gan.{network}), and training "
                "keeps the zeros; or say gan.masks.clear(), and the network is trained dense"
            )

    @property
    def said_dense(self) -> frozenset[str]:
        """The networks of which ``clear`` or ``del`` said that they are dense."""
        return frozenset(self._said_dense)

    def __getstate__(self) -> dict[str, Any]:
        """Copies have the masks; keepers belong to the optimisers of the original."""
        state = {"_masks": dict(self._masks), "_said_dense": set(self._said_dense)}
        return {"_gan": self._gan, **state, "_optimizers": None, "_keepers": {}}

    def __repr__(self) -> str:
        return f"GANMasks({self._masks!r})"
