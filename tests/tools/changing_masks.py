"""What tests of masks that change during training share: GANs of three kinds, a look at each step, and resuming."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import unseen_networks
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.training.callbacks import CHECKPOINT
from tools.small_gans import config, equal, small_gan, weights


class Noise:
    """Samples of one shape as a source of batches."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """Return samples as a function of (seed, step)."""
        return torch.randn(batch_size, *self.shape, generator=gp.seeded(gp.step_seed(seed, step)))


IMAGES, POINTS = Noise(1, 28, 28), Noise(2)


def mlp(norm: str = "none") -> tuple[gp.GAN, Noise]:
    """Return a fully connected GAN and its data."""
    return small_gan(norm=norm), POINTS


def dcgan(norm: str = "spectral") -> tuple[gp.GAN, Noise]:
    """Return the smallest DCGAN and its data."""
    return gp.dcgan(width=2, latent_dim=4, norm=norm, device="cpu"), IMAGES


def unseen() -> tuple[gp.GAN, Noise]:
    """Return a GAN of networks that the package does not know."""
    torch.manual_seed(0)
    first, last = spectral_norm(nn.Conv2d(1, 4, 4, 2)), spectral_norm(nn.Linear(36, 1))
    discriminator = nn.Sequential(first, nn.LeakyReLU(0.2), nn.Flatten(), last, nn.Flatten(0))
    return gp.GAN(unseen_networks.LinearFirst(), discriminator), Noise(1, 8, 8)


GANS = {"mlp": mlp, "dcgan": dcgan, "unseen": unseen}


class Watch:
    """Keeps what a function of the state gives after each step."""

    def __init__(self, look: Callable[[gp.TrainState], Any], order: int = CHECKPOINT + 1) -> None:
        self.look, self.order, self.seen = look, order, {}

    def __call__(self, state: gp.TrainState) -> None:
        """Look."""
        self.seen[state.step] = self.look(state)


def checked_masks(state: gp.TrainState) -> dict[str, gp.Mask]:
    """Return the masks after a step, after a look whether all that they promise holds."""
    state.gan.masks.check()
    for network, mask in state.gan.masks.items():
        state.gan.masks.keeper(network).check()
        assert state.gan.masks.keeper(network).mask is mask
    return dict(state.gan.masks)


def counts(mask: gp.Mask) -> dict[str, int]:
    """Return the number of kept weights by layer."""
    return {key: int(kept.sum()) for key, kept in mask.items()}


def everything(state: gp.TrainState) -> dict[str, Tensor]:
    """Return all tensors of a state: weights, moments, masks, extras."""
    found = weights(state.gan)
    for name, optimizer in state.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            found |= {f"{name}/{index}/{key}": value.clone() for key, value in entries.items()}
    found |= {f"mask/{name}/{key}": kept for name, mask in state.masks.items() for key, kept in mask.items()}
    return found | {f"extra/{key}": value.clone() for key, value in state.extras.items()}


def train(make: Callable, callbacks: Callable, steps: int = 8, **changes: Any) -> gp.TrainState:
    """Return the state after a run with fresh callbacks, ``callbacks(split)``."""
    gan, split = make()
    state = gp.TrainState(gan, config(steps=steps, batch_size=4, **changes))
    return gp.train(state, split, callbacks(split))


class Killed(Exception):
    """The process has come to a sudden end."""


def check_resuming(
    folder: Path, make: Callable, callbacks: Callable, stops: Sequence[int], steps: int = 8, **changes: Any
) -> gp.TrainState:
    """Check that a run that is killed at any of these steps and resumed ends as one that was not, bit for bit."""
    straight = train(make, callbacks, steps, **changes)
    for stop in stops:
        path = folder / f"{stop}.safetensors"

        def leave(state: gp.TrainState, path: Path = path, stop: int = stop) -> None:
            if state.step == stop:
                state.save(path)
                raise Killed

        with contextlib.suppress(Killed):
            train(make, lambda split, leave=leave: [*callbacks(split), leave], steps, **changes)
        resumed = gp.TrainState.load(path, "cpu")
        assert resumed.step == stop
        split = make()[1]
        gp.train(resumed, split, callbacks(split))
        assert equal(everything(straight), everything(resumed)), f"killed after step {stop}"
        assert straight.rows == resumed.rows
    return straight
