"""What a discriminator says of real and of generated images: its loss and its accuracy on both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.device import placement_of
from ganprune.core.modes import eval_mode
from ganprune.data.splits import Split
from ganprune.losses import get_loss
from ganprune.masks.spectral import settled_spectral_norms
from ganprune.metrics.reference import choose_batch
from ganprune.networks.sampling import check_output


def judge(
    discriminator: nn.Module, images: Tensor, split: Split, loss: str, batch_size: int | None
) -> dict[str, Any]:
    """Loss and accuracy of a discriminator, in evaluation mode, on all real and all generated images.

    Real and generated images never share a batch. Spectral norms divide by the true norm of their weight, also those
    that were never trained.

    Raises:
        TypeError: if the discriminator returns something other than a tensor.
        ValueError: if it does not return a logit per image, or probabilities instead of logits.
    """
    chosen = get_loss(loss)
    device, dtype = placement_of(discriminator)
    size = choose_batch(batch_size, device)
    with eval_mode(discriminator), settled_spectral_norms(discriminator):
        starts = range(0, len(split), size)
        real_batches = (split.float_images(at, at + size) for at in starts)
        real = torch.cat([_logits(discriminator, batch.to(device, dtype)) for batch in real_batches])
        fake = torch.cat([_logits(discriminator, batch.to(device, dtype)) for batch in images.split(size)])
    signed = chosen.name != "wasserstein"
    if signed:
        _refuse_probabilities(discriminator, real, fake)
    return {
        "loss": chosen.name,
        "real_loss": float(chosen.real(real)),
        "fake_loss": float(chosen.fake(fake)),
        "real_accuracy": int((real > 0).sum()) / real.numel() if signed else None,
        "fake_accuracy": int((fake < 0).sum()) / fake.numel() if signed else None,
    }


def _logits(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Logits in float32: one per image, or as many per image as there are patches."""
    logits = check_output(discriminator, discriminator(images), "logits (N,)")
    if logits.dim() == 0 or len(logits) != len(images):
        raise ValueError(
            f"discriminator must return a logit for each of {len(images)} images, got shape {tuple(logits.shape)}"
        )
    return logits.float().flatten()


def _refuse_probabilities(discriminator: nn.Module, real: Tensor, fake: Tensor) -> None:
    """The losses take logits; the output of a last sigmoid would be measured as if it were one."""
    leaves = [module for module in discriminator.modules() if not list(module.children())]
    low, high = min(float(real.min()), float(fake.min())), max(float(real.max()), float(fake.max()))
    if leaves and isinstance(leaves[-1], nn.Sigmoid) and low >= 0 and high <= 1:
        raise ValueError(
            "discriminator must return logits, but its last module is a Sigmoid and all its outputs lie in [0, 1]; "
            "leave the sigmoid out, the losses contain it"
        )
