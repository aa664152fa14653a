"""Small GANs, their data and their settings: everything that a test of training needs, in milliseconds a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ganprune as gp


class Ring:
    """Points of the plane as a source of batches, as long as 800 of them."""

    def __len__(self) -> int:
        return 800

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """Return points as a function of (seed, step)."""
        return gp.data.gaussian_ring(batch_size, gp.step_seed(seed, step))


def small_gan(hidden: tuple[int, ...] = (16, 12), seed: int = 0, **options: Any) -> gp.GAN:
    """Return a fully connected GAN for points of the plane."""
    return gp.mlp_gan((2,), 3, hidden, seed=seed, device="cpu", **options)


def config(**changes: Any) -> gp.TrainConfig:
    """Return settings of four short steps, with the changes."""
    settings = {"steps": 4, "batch_size": 8, "precision": "float32", "log_every": 2}
    return gp.TrainConfig(**{**settings, **changes})


def weights(gan: gp.GAN) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers of a GAN."""
    return {f"{n}/{k}": v.clone() for n, net in gan.networks().items() for k, v in net.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether two such copies are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def hooks_on(gan: gp.GAN) -> int:
    """Return the number of gradient hooks on the parameters of a GAN."""
    parameters = [p for network in gan.networks().values() for p in network.parameters()]
    return sum(len(p._post_accumulate_grad_hooks or ()) for p in parameters)
