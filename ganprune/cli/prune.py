"""``ganprune prune``: prunes a generator at once, gradually or with a mask that moves, and fine-tunes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ganprune as gp
from ganprune.cli import options as shared
from ganprune.cli.networks import load_data, load_gan, loss_inputs, loss_of
from ganprune.cli.options import UsageError, wrong
from ganprune.cli.output import quick_fid
from ganprune.cli.runs import complete, own_output
from ganprune.cli.tracking import add_tracker
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.movement import MovementPruning
from ganprune.dynamic.regrowth import METHODS, DynamicSparseTraining
from ganprune.dynamic.schedules import SCHEDULES, Piecewise, Schedule, get_schedule
from ganprune.scores.registry import SCORES

MOVEMENT = "movement"
"""The score that is gathered while the network trains, so that it is none of ``SCORES``."""
EXAMPLES = """examples:
  ganprune prune --sparsity 0.8 --steps 1000 --out small.safetensors
  ganprune prune --checkpoint gan.safetensors --sparsity 0.9 --allocation erk --out small.safetensors
  ganprune prune --sparsity 0.9 --schedule cubic --prune-start 200 --prune-end 800 --out small.safetensors
  ganprune prune --sparsity 0.9 --score movement --schedule cubic --prune-end 800 --out small.safetensors
  ganprune prune --sparsity 0.9 --score random --allocation erk --dynamic rigl --out small.safetensors
  ganprune prune --generator my_networks:Net --generator-args '{"latent_dim": 8}' \\
      --generator-weights net.safetensors --sparsity 0.8 --out small.safetensors
  ganprune prune --threshold 0.02 --steps 0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    shared.add_checkpoint(parser)
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the checkpoint to write, masks included, a safetensors file (default: only report)",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--sparsity",
        type=shared.SPARSITY,
        help="the final share of zeros among the prunable weights, in [0, 1)",
    )
    amount.add_argument(
        "--threshold", type=shared.POSITIVE, help="prune every weight whose score is below this number"
    )
    add(
        "--score",
        choices=sorted([*SCORES, MOVEMENT]),
        default="magnitude",
        help=f"what the weights are ranked by; {MOVEMENT} is gathered while the generator is fine-tuned "
        "(default: magnitude)",
    )
    shared.add_method(parser)
    _add_schedule(parser)
    add(
        "--steps",
        type=shared.COUNT_OR_NONE,
        default=1_000,
        help="generator updates of fine-tuning, in which the mask is kept (default: 1000)",
    )
    shared.add_loss(parser, None, "that of the checkpoint")
    shared.add_updates(parser)
    shared.add_resuming(parser)
    shared.add_evaluation(parser)
    add_tracker(parser)
    shared.add_own_networks(parser)
    shared.add_common(parser, "what the checkpoint was trained on, else mnist")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("pruning while it is fine-tuned").add_argument
    add(
        "--schedule",
        choices=tuple(SCHEDULES),
        default="one-shot",
        help="how the sparsity rises with the steps of fine-tuning; each pruning scores the weights anew "
        "(default: one-shot)",
    )
    add(
        "--prune-start",
        type=shared.COUNT_OR_NONE,
        metavar="STEP",
        help=f"the first step at which it is pruned, or after which {MOVEMENT} is gathered (default: 0)",
    )
    add(
        "--prune-end",
        type=shared.COUNT,
        metavar="STEP",
        help="the step at which cubic reaches the final sparsity, movement fixes its mask, or a dynamic mask stops to "
        "move (default: three quarters of the steps)",
    )
    add(
        "--prune-every",
        type=shared.COUNT,
        metavar="N",
        help="steps between two prunings, rounds of geometric, or moves of a dynamic mask (default: 100; with --score "
        "movement 1, except for geometric)",
    )
    add(
        "--prune-keep",
        type=shared.BETWEEN,
        metavar="SHARE",
        help="for geometric: the share of the weights that a round keeps (default: 0.8)",
    )
    add(
        "--prune-points",
        type=_points,
        metavar="STEP:SPARSITY,...",
        help="for piecewise: the sparsity from each step on, such as 0:0.5,500:0.8",
    )
    add(
        "--dynamic",
        choices=METHODS,
        help="move the mask while its density is kept: drop the smallest weights and grow others, at random (set) or "
        "by gradient (rigl), until --prune-end",
    )


def _points(text: str) -> dict[int, float]:
    try:
        return {
            int(step): float(sparsity) for step, sparsity in (part.split(":") for part in text.split(","))
        }
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be steps and sparsities in [0, 1) such as 0:0.5,500:0.8, got {text!r}"
        ) from error


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prunes, fine-tunes, saves and measures a generator."""
    schedule = check_amount(options)
    with own_output(options) as partial:
        gan = load_gan(options)
        data = load_data(options, gan.metadata.get("data", "mnist"), gan)
        loss = loss_of(options, gan)
        if schedule is not None:
            _check_mask(options, gan, schedule)
        return complete(
            options,
            partial,
            gan,
            data,
            loss,
            prepare=lambda: _before_training(options, gan, data, loss, schedule),
            pruning=lambda trained: _callback(options, trained, loss, schedule),
        )


def check_amount(options: argparse.Namespace) -> Schedule | None:
    """Checks how much is pruned and when, before any work.

    Returns:
        The schedule of pruning while training; None if all is pruned before it.

    Raises:
        UsageError: if options do not go together, or the schedule refuses them.
    """
    pattern = ":" in (options.allocation or "")
    if options.sparsity is None and options.threshold is None and not pattern and not options.prune_points:
        raise UsageError(
            "ganprune prune: error: one of the arguments --sparsity --threshold --prune-points is required"
        )
    at_once = options.schedule == "one-shot" and not options.prune_start and options.score != MOVEMENT
    if not at_once:
        sets_at_once = {
            "threshold": options.threshold,
            "allocation": options.allocation if pattern else None,
            "dynamic": options.dynamic,
        }
        for name, value in sets_at_once.items():
            if value is not None:
                raise wrong(
                    "prune",
                    f"--{name}",
                    f"{value} sets the mask before training, so it goes with no schedule and not with {MOVEMENT}",
                )
    if options.dynamic is not None:  # its mask is there from the start; end and every are those of its moves
        _refuse(options, "prune_keep", "prune_points")
        return None
    if at_once:
        _refuse(options, "prune_end", "prune_every", "prune_keep", "prune_points")
        return None
    schedule = _schedule(options)
    if schedule.end > options.steps:
        raise wrong(
            "prune",
            "--steps",
            f"must be at least {schedule.end}, where the schedule ends, got {options.steps}",
        )
    return schedule


def _refuse(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise wrong("prune", f"--{flag}", f"is not used by --schedule {options.schedule}")


def _schedule(options: argparse.Namespace) -> Schedule:
    """The schedule of the options; the classes of schedules check them."""
    name, start, end = options.schedule, options.prune_start, options.prune_end
    movement = options.score == MOVEMENT
    every = None if name == "cubic" or (movement and name == "one-shot") else options.prune_every
    if end is None and (name == "cubic" or (movement and name == "one-shot")):
        first = start or 0
        end = first + max(1, round(0.75 * (options.steps - first)))
    given = {"sparsity": options.sparsity, "start": start, "end": end, "every": every}
    given |= {"keep": options.prune_keep, "points": options.prune_points}
    try:
        if movement and name == "one-shot":  # the mask has its sparsity all the time, and is final at the end
            _refuse(options, "prune_keep", "prune_points")
            return Piecewise(((start or 0, options.sparsity), (end, options.sparsity)))
        return get_schedule(name, **given)
    except (ValueError, TypeError) as error:
        argument, _, problem = str(error).partition(" ")
        flags = {"sparsity": "--sparsity", **{key: f"--prune-{key}" for key in given if key != "sparsity"}}
        raise wrong("prune", flags.get(argument, "--schedule"), problem) from error


def _check_mask(options: argparse.Namespace, gan: gp.GAN, schedule: Schedule) -> None:
    """A schedule cannot give back weights that a checkpoint has lost; movement needs all of them."""
    mask = gan.masks.get("generator")
    if mask is None:
        return
    if options.score == MOVEMENT:
        problem = (
            f"movement needs every weight, but the checkpoint has a mask of sparsity {mask.sparsity:.6f}"
        )
        raise wrong("prune", "--score", problem)
    if round(schedule.sparsity * mask.total) < mask.pruned:
        raise wrong("prune", "--sparsity", f"must be at least {mask.sparsity:.6f}, that of the checkpoint")


def _before_training(
    options: argparse.Namespace, gan: gp.GAN, data: gp.data.ImageData, loss: str, schedule: Schedule | None
) -> dict[str, Any]:
    """Starts from the EMA weights, and prunes and recalibrates them unless a schedule does so later."""
    found = {"fid_before": quick_fid(options, gan, data)}
    gan.generator.load_state_dict(gan.generator_ema.state_dict())
    if schedule is None:
        gp.prune(
            gan,
            options.sparsity,
            threshold=options.threshold,
            score=options.score,
            allocation=options.allocation,
            protect=tuple(options.protect),
            within=gan.masks.get("generator"),
            seed=options.seed,
            **loss_inputs(options, gan, loss),
        )
        gp.recalibrate_batchnorm(gan.generator, seed=options.seed)
        gan.generator_ema.load_state_dict(gan.generator.state_dict())
        found["fid_pruned"] = quick_fid(options, gan, data)
    return found


def _callback(
    options: argparse.Namespace, gan: gp.GAN, loss: str, schedule: Schedule | None
) -> GradualPruning | MovementPruning | DynamicSparseTraining | None:
    """What prunes, or moves the mask, during fine-tuning; None if the mask stays."""
    protect = tuple(options.protect)
    if schedule is None:
        if options.dynamic is None:
            return None
        every = options.prune_every or 100
        return DynamicSparseTraining(options.dynamic, every=every, end=options.prune_end, seed=options.seed)
    if options.score == MOVEMENT:
        every = getattr(schedule, "every", None) or options.prune_every or 1
        allocation = options.allocation or "uniform"
        return MovementPruning(schedule, every=every, allocation=allocation, protect=protect)
    return GradualPruning(
        schedule,
        options.score,
        every=options.prune_every if schedule.changes is None else None,
        allocation=options.allocation,
        protect=protect,
        seed=options.seed,
        **loss_inputs(options, gan, loss),
    )
