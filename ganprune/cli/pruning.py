"""How a command prunes: at once, gradually while it fine-tunes, or with a mask that keeps moving."""

from __future__ import annotations

import argparse
from typing import Any

import ganprune as gp
from ganprune.cli.arguments import MOVEMENT, UsageError, prunes_at_once
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.movement import MovementPruning
from ganprune.dynamic.regrowth import DynamicSparseTraining
from ganprune.networks.sampling import latent_dim_of

Pruning = GradualPruning | MovementPruning | DynamicSparseTraining
"""What prunes while training goes on."""


def scoring(
    options: argparse.Namespace, gan: gp.GAN, loss: str, network: str = "generator", split: Any = None
) -> dict[str, Any]:
    """What scores by gradients and by activations look at, as arguments of ``score``.

    Args:
        options: ``score`` and ``seed``.
        gan: the pair; the losses are those of this very pair, as it is when the score is taken.
        loss: name of the loss.
        network: "generator" or "discriminator".
        split: real images; only for a discriminator.

    Returns:
        ``loss_fn``: over 512 samples, one at a time where the score takes a batch for a sample. ``inputs``: 256.
    """
    batches, size = (512, 1) if options.score == "squared-gradient" else (8, 64)
    if network == "discriminator":
        loss_fn = gp.discriminator_loss(gan, split, batches, size, loss, options.seed)
        return {"loss_fn": loss_fn, "inputs": split.batch(256, options.seed, 0)}
    latents = gp.sample_latents(256, latent_dim_of(gan.generator), options.seed, gan.device)
    return {"loss_fn": gp.generator_loss(gan, batches, size, loss, options.seed), "inputs": latents}


def prune_at_once(options: argparse.Namespace, gan: gp.GAN, loss: str) -> None:
    """Prunes the EMA weights, recalibrates batch norm, and gives the result to both generators."""
    gan.generator.load_state_dict(gan.generator_ema.state_dict())
    mask = gp.prune(
        gan.generator,
        options.sparsity,
        threshold=options.threshold,
        score=options.score,
        allocation=options.allocation,
        protect=tuple(options.protect),
        within=gan.masks.get("generator"),
        seed=options.seed,
        ema=gan.generator_ema,
        **scoring(options, gan, loss),
    )
    gp.recalibrate_batchnorm(gan.generator, seed=options.seed)
    gan.generator_ema.load_state_dict(gan.generator.state_dict())
    gan.masks["generator"] = gan.masks["generator_ema"] = mask


def while_training(options: argparse.Namespace, gan: gp.GAN, loss: str) -> Pruning | None:
    """The callback that prunes, or moves the mask, during fine-tuning; None if the mask stays.

    Raises:
        UsageError: if the schedule ends after the last step.
        ValueError: if the schedule or the score refuses its options.
    """
    if prunes_at_once(options):
        if options.dynamic is None:
            return None
        return DynamicSparseTraining(
            options.dynamic, interval=options.prune_every, end=options.prune_end, seed=options.seed
        )
    own = {"geometric": {"keep": options.prune_keep}, "piecewise": {"points": options.prune_points}}
    plan: dict[str, Any] = {
        "sparsity": options.sparsity,
        "schedule": options.schedule,
        "start": options.prune_start,
        "end": options.prune_end,
        "every": options.prune_every,
        "protect": tuple(options.protect),
        "schedule_options": own.get(options.schedule),
    }
    callback: GradualPruning | MovementPruning
    if options.score == MOVEMENT:
        callback = MovementPruning(allocation=options.allocation or "uniform", **plan)
    else:
        callback = GradualPruning(
            score=options.score,
            allocation=options.allocation,
            seed=options.seed,
            **plan,
            **scoring(options, gan, loss),
        )
    where = f"ganprune {options.command}: error: argument"
    if callback.end > options.steps:
        raise UsageError(
            f"{where} --steps: must be at least {callback.end}, where the schedule ends, got {options.steps}"
        )
    mask, final = gan.masks.get("generator"), callback.sparsity_at(callback.end)
    if mask is None or "request" in gan.metadata:  # dense, or the mask of the run that is resumed
        return callback
    if options.score == MOVEMENT:
        raise UsageError(
            f"{where} --score: movement needs every weight, but the checkpoint has a mask of sparsity "
            f"{mask.sparsity:.6f}"
        )
    if round(final * mask.total) < mask.pruned:
        raise UsageError(f"{where} --sparsity: must be at least {mask.sparsity:.6f}, that of the checkpoint")
    return callback


def settle_masks(callback: Pruning | None, state: gp.TrainState, seed: int) -> None:
    """After training: the EMA has the generator's mask; batch norm is recalibrated if the last step pruned."""
    gan = state.gan
    if callback is None or "generator" not in gan.masks:
        return
    gan.masks["generator_ema"] = gan.masks["generator"]
    if not isinstance(callback, DynamicSparseTraining) and callback.end == state.step:
        for network in (gan.generator, gan.generator_ema):
            gp.recalibrate_batchnorm(network, seed=seed)
