"""The claims that are tested on the ring: losses, lottery tickets, and when to prune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ganprune.experiments.arms import Arms
from ganprune.experiments.base import Experiment
from ganprune.experiments.ring_schedules import RingSchedule
from ganprune.experiments.ring_tickets import RingTickets
from ganprune.experiments.studies import ring_losses_of
from ganprune.experiments.verdicts import Arm, Claim, Comparison


def ring_claims(arms: Arms) -> list[Claim]:
    """The claims 25 to 29, about the arms of one profile."""
    ring, searched = "on the ring", "on the ring at the searched learning rate"
    return [
        *_losses(arms),
        *_tickets(26, arms.ring_tickets, ring),
        *_schedules(27, arms.ring_schedules, arms.ring_slower, ring),
        *_tickets(28, arms.ring_tickets_searched, searched),
        *_schedules(29, arms.ring_schedules_searched, arms.ring_slower_searched, f"{searched},"),
    ]


def _trained(experiment: Experiment, **where: Any) -> Arm:
    return Arm(experiment, "trained", where)


def _losses(arms: Arms) -> Iterator[Claim]:
    ways = ring_losses_of(arms)
    plain, held = "non-saturating", "non-saturating, R1"
    clipped, penalised, normed = "WGAN, clipping", "WGAN-GP", "hinge, spectral norm"
    light, often = "WGAN-GP, weight 0.1", "non-saturating, R1, five updates"
    where = "on the ring, each at its best learning rate"
    pairs = (
        (penalised, held, "matches", f"WGAN-GP matches the non-saturating loss with R1 {where}", "lucic2018equal"),
        (normed, held, "matches", f"hinge with spectral norm matches the loss with R1 {where}", "lucic2018equal"),
        (penalised, normed, "matches", f"WGAN-GP matches hinge with spectral norm {where}", "lucic2018equal"),
        (penalised, clipped, "lower", f"WGAN-GP ends nearer to the data than clipping {where}", "gulrajani2017wgangp"),
        (held, plain, "lower", f"R1 brings the non-saturating loss nearer {where}", "mescheder2018converge"),
        (light, penalised, "lower", f"a hundredth of the penalty's weight brings WGAN-GP nearer {where}", ""),
        (light, held, "matches", f"WGAN-GP with that weight matches the loss with R1 {where}", "lucic2018equal"),
        (often, held, "lower", f"five updates of D for one of G bring the loss with R1 nearer {where}", ""),
        (light, often, "matches", f"both with five updates, these two match {where}", "lucic2018equal"),
    )  # fmt: skip
    for letter, (one, other, rule, text, source) in zip("abcdefghi", pairs, strict=True):
        compared = (Comparison(_trained(ways[one]), _trained(ways[other]), "earth_mover"),)
        yield Claim(f"25{letter}", text, source, "ring-losses", rule, compared)


def _tickets(claim: int, study: RingTickets, where: str) -> Iterator[Claim]:
    number = study.controlled[0]

    def arm(name: str, at: int = number) -> Arm:
        return _trained(study, round=at, arm=name)

    dense, ticket, fresh = arm("ticket", 0), arm("ticket"), arm("reinitialised")
    pairs = (
        (ticket, dense, "not worse", "is no worse than dense", "frankle2019lottery"),
        (ticket, fresh, "lower", "beats its mask on fresh weights", "frankle2019lottery"),
        (ticket, arm("shuffled"), "lower", "beats its shuffled mask", "frankle2021missing"),
        (ticket, arm("one-shot"), "lower", "beats as many weights chosen at once", "frankle2019lottery"),
        (ticket, arm("small and dense"), "lower", "beats a dense generator with as many weights", ""),
        (arm("other batches"), ticket, "not worse", "is no worse on other batches", ""),
    )
    said = f"{where}, the ticket of {study.keep**number:.0%} of the weights"
    for letter, (one, other, rule, text, source) in zip("abcdef", pairs, strict=True):
        compared = (Comparison(one, other, "earth_mover"),)
        yield Claim(f"{claim}{letter}", f"{said} {text}", source, "ring-tickets", rule, compared)
    text = f"{where}, the ticket's mask on a fresh generator does better if the discriminator keeps its start"
    compared = (Comparison(arm("fresh generator"), fresh, "earth_mover"),)
    yield Claim(f"{claim}g", text, "chen2021gantickets", "ring-tickets", "lower", compared)


def _schedules(
    claim: int, at: Mapping[str, RingSchedule], slower: Mapping[str, RingSchedule], place: str
) -> Iterator[Claim]:
    where = f"{place} at {at['after'].sparsity:.0%}, in as many steps,"
    han = "han2015learning"
    pairs = (
        (at["after"], at["before"], "pruning at once after training beats pruning before it", "frankle2021missing"),
        (at["during"], at["after"], "pruning gradually during training beats pruning at once after it", han),
        (at["gradually"], at["after"], "pruning gradually after training beats pruning at once", han),
        (slower["after"], at["after"], "a slower discriminator helps the generator that was pruned at once", ""),
        (slower["dense"], at["dense"], "a slower discriminator helps the dense generator", ""),
    )  # fmt: skip
    for letter, (one, other, text, source) in zip("abcde", pairs, strict=True):
        compared = (Comparison(_trained(one), _trained(other), "earth_mover"),)
        yield Claim(f"{claim}{letter}", f"{where} {text}", source, "ring-schedules", "lower", compared)
    cut, dense = (Arm(at[moment], "second cycle", {"step": 0}) for moment in ("after", "dense"))
    text = "the discriminator leads by more right after the generator has been pruned at once than over the dense one"
    compared = (Comparison(cut, dense, "lead"),)
    yield Claim(f"{claim}f", f"{place} {text}", "", "ring-schedules", "higher", compared)
    text = "a slower discriminator ends with a smaller lead over the generator that was pruned at once"
    compared = (Comparison(_trained(slower["after"]), _trained(at["after"]), "lead"),)
    yield Claim(f"{claim}g", f"{where} {text}", "", "ring-schedules", "lower", compared)
    whole, shares = at["its mask at once"], at["its shares at once"]
    masks = (
        (at["gradually"], whole, "pruning gradually after training beats one cut to the very mask that it ends with"),
        (whole, shares, "one cut to that mask beats one cut to as many weights in each layer, the largest ones"),
        (shares, at["after"], "one cut to as many weights in each layer as that mask keeps beats one over all layers"),
    )  # fmt: skip
    for letter, (one, other, text) in zip("hij", masks, strict=True):
        compared = (Comparison(_trained(one), _trained(other), "earth_mover"),)
        yield Claim(f"{claim}{letter}", f"{where} {text}", "", "ring-schedules", "lower", compared)
