"""The claims that the course tests, each with its arms and the numeric meaning of its words.

They were written down before their runs. A claim with "and" is split into parts, each with a letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ganprune.experiments.arms import Arms, arms_of
from ganprune.experiments.base import Experiment
from ganprune.experiments.ring_claims import ring_claims
from ganprune.experiments.studies import RECOVERED, SPARSITIES, losses_of
from ganprune.experiments.verdicts import Arm, Claim, Comparison, Rows, Verdict, judge
from ganprune.records.store import read_store


def ledger(rows: Rows, arms: Arms) -> list[Verdict]:
    """The verdicts on all claims, in their order.

    Args:
        rows: of all records.
        arms: the configurations of the profile that the rows were measured in.
    """
    return [judge(claim, rows) for claim in claims(arms)]


def shipped_verdicts() -> dict[str, Verdict]:
    """The verdicts that the shipped records give, by the numbers of the claims."""
    return {verdict.claim: verdict for verdict in ledger(read_store(), arms_of("laptop"))}


def claims(arms: Arms) -> list[Claim]:
    """All claims, about the arms of one profile."""
    return [
        *_measures(arms),
        *_training(arms),
        *_magnitude(arms),
        *_criteria(arms),
        *_tickets(arms),
        *_before_training(arms),
        *_speed(arms),
        *_small(arms),
        *_variety(arms),
        *_discriminators(arms),
        *_precision(arms),
        *ring_claims(arms),
        *_critic_and_blur(arms),
    ]


def measured(experiment: Experiment, **where: Any) -> Arm:
    """Rows of an experiment with one stage."""
    return Arm(experiment, "measured", where)


def trained(experiment: Experiment, **where: Any) -> Arm:
    """Rows at the end of a training from scratch."""
    return Arm(experiment, "trained", where)


def recovered(experiment: Experiment, **where: Any) -> Arm:
    """Rows after pruning and training on."""
    return Arm(experiment, "recovered", where)


def only_pruned(experiment: Experiment) -> Arm:
    """Rows after pruning alone; batch-norm statistics as they were."""
    return Arm(experiment, "pruned")


def _measures(arms: Arms) -> Iterator[Claim]:
    def rising(spoilt: Sequence[Experiment]) -> tuple[Comparison, ...]:
        return tuple(
            Comparison(measured(more), measured(less)) for less, more in zip(spoilt, spoilt[1:], strict=False)
        )

    noise = [arms.spoilt(noise=noise) for noise in (0.0, 0.05, 0.1, 0.2, 0.4)]
    missing = [arms.spoilt(), *(arms.spoilt(dropped=dropped) for dropped in (1, 2, 5))]
    fewer = [arms.spoilt(share=share) for share in (1.0, 0.5, 0.2, 0.1, 0.05)]
    say = "digit-FID of real images rises with each step of"
    yield Claim(
        "1a",
        f"{say} noise (standard deviation 0 to 0.4)",
        "heusel2017ttur",
        "measures",
        "higher",
        rising(noise),
    )
    yield Claim(
        "1b", f"{say} missing digits (0, 1, 2, 5)", "heusel2017ttur", "measures", "higher", rising(missing)
    )
    text = "digit-FID of the same real images rises with each step down in their number (10,000 to 500)"
    yield Claim("1c", text, "binkowski2018kid", "measures", "higher", rising(fewer))


def _training(arms: Arms) -> Iterator[Claim]:
    ways = losses_of(arms)
    names = {
        "non-saturating": "non-saturating with R1",
        "wasserstein": "WGAN-GP",
        "hinge": "hinge with spectral norm",
    }
    pairs = [("wasserstein", "non-saturating"), ("hinge", "non-saturating"), ("wasserstein", "hinge")]
    for letter, (one, other) in zip("abc", pairs, strict=True):
        compared = (Comparison(trained(ways[one]), trained(ways[other])),)
        text = f"{names[one]} matches the digit-FID of {names[other]} in as many generator updates"
        yield Claim(
            f"2{letter}",
            text,
            "lucic2018equal",
            "losses",
            "matches",
            compared,
            trained(ways["non-saturating"]),
        )
    for letter, sparsity in zip("abcd", (0.0, 0.5, 0.8, 0.9), strict=True):
        arm = arms.recovery(sparsity)
        compared = (Comparison(recovered(arm), recovered(arm, network="generator")),)
        text = f"averaged weights have a lower digit-FID than the last ones at {sparsity:.0%} sparsity"
        yield Claim(f"3{letter}", text, "yazici2019ema", "magnitude", "lower", compared, _control(arms))


def _magnitude(arms: Arms) -> Iterator[Claim]:
    start, control = trained(arms.dense), _control(arms)
    doubled = (Comparison(only_pruned(arms.pruned(0.5)), start, against=2.0),)
    text = "one-shot global magnitude pruning to 50% more than doubles digit-FID before any training"
    yield Claim("4a", text, "", "curve", "higher", doubled, start)
    upto = tuple(Comparison(recovered(arms.recovery(s)), control) for s in (0.5, 0.7))
    text = "trained on, it matches the dense control at 50% and 70%"
    yield Claim("4b", text, "han2015learning", "magnitude", "matches", upto, control)
    upto = tuple(Comparison(recovered(arms.recovery(s, score="random")), control) for s in (0.5, 0.7))
    text = "random pruning, trained on, stays worse than the dense control at 50% and 70%"
    yield Claim("4c", text, "han2015learning", "magnitude", "higher", upto, control)
    uniform = recovered(arms.recovery(0.9, allocation="uniform"))
    sources = {"global": "", "erk": "evci2020rigl", "lamp": "lee2021lamp"}
    for letter, (allocation, source) in zip("abc", sources.items(), strict=True):
        compared = (Comparison(recovered(arms.recovery(0.9, allocation=allocation)), uniform),)
        text = f"{allocation.upper() if source else allocation} beats uniform allocation at 90%, trained on"
        yield Claim(f"5{letter}", text, source, "magnitude", "lower", compared, control)
    ties = tuple(
        Comparison(
            recovered(arms.recovery(0.5, allocation=one)), recovered(arms.recovery(0.5, allocation="uniform"))
        )
        for one in sources
    )
    text = "global, ERK and LAMP match uniform allocation at 50%, trained on"
    yield Claim("5d", text, "", "magnitude", "matches", ties, control)


def _criteria(arms: Arms) -> Iterator[Claim]:
    sources = {
        "taylor": "molchanov2019importance",
        "squared-gradient": "theis2018fisher",
        "wanda": "sun2024wanda",
    }
    names = {"taylor": "Taylor scores", "squared-gradient": "squared gradients", "wanda": "Wanda"}
    for letters, stage in (("abc", "pruned"), ("def", "recovered")):
        for letter, (score, source) in zip(letters, sources.items(), strict=True):
            how: dict[str, Any] = {"score": score, "allocation": None if score == "wanda" else "global"}
            if stage == "pruned":
                compared = Comparison(only_pruned(arms.pruned(0.8, **how)), only_pruned(arms.pruned(0.8)))
                text, rule = f"{names[score]} beat magnitude at 80% before training on", "lower"
            else:
                compared = Comparison(recovered(arms.recovery(0.8)), recovered(arms.recovery(0.8, **how)))
                text, rule = f"{names[score]} no longer beat magnitude at 80% after training on", "not worse"
            yield Claim(f"6{letter}", text, source, "criteria", rule, (compared,), _control(arms))
    counts = recovered(arms.recovery(0.8, allocation="counts of taylor"))
    text = "magnitude with as many weights in each layer as Taylor leaves it beats global magnitude at 80%, trained on"
    own = (Comparison(counts, recovered(arms.recovery(0.8))),)
    yield Claim("6g", text, "", "criteria", "lower", own, _control(arms))
    text = (
        "magnitude with as many weights in each layer as Taylor leaves it matches Taylor at 80%, trained on"
    )
    taylor = (Comparison(counts, recovered(arms.recovery(0.8, score="taylor"))),)
    yield Claim("6h", text, "", "criteria", "matches", taylor, _control(arms))
    cubic = (Comparison(recovered(arms.recovery(0.9, schedule="cubic")), recovered(arms.recovery(0.9))),)
    text = "the cubic schedule is at least as good as one-shot pruning at 90% in as many steps"
    yield Claim("7", text, "zhu2018agp", "schedules", "not worse", cubic, _control(arms))


def _tickets(arms: Arms) -> Iterator[Claim]:
    rounds = arms.tickets.controlled
    letters = iter("abcdef")
    for control, name in (
        ("reinitialised", "the same mask on fresh weights"),
        ("shuffled", "its shuffled mask"),
    ):
        for number in rounds:
            sparsity = 1 - arms.tickets.keep**number
            one, other = (trained(arms.tickets, round=number, arm=arm) for arm in ("ticket", control))
            text = f"the ticket of round {number} ({sparsity:.0%}) beats {name}"
            dense = trained(arms.tickets, round=0, arm="ticket")
            yield Claim(
                f"8{next(letters)}",
                text,
                "frankle2019lottery",
                "tickets",
                "lower",
                (Comparison(one, other),),
                dense,
            )


def _before_training(arms: Arms) -> Iterator[Claim]:
    def starved(rows: Rows) -> bool:
        return any(row["starved"] for row in rows)

    study = "initial-masks"
    text = "at 99% SNIP leaves a layer fewer weights than it has outputs"
    yield Claim("10a", text, "tanaka2020synflow", study, "always", event=(arms.masks("snip"), starved))
    text = "at 99% SynFlow with 100 rounds never does"
    yield Claim("10b", text, "tanaka2020synflow", study, "never", event=(arms.masks("synflow"), starved))
    for letter, score in zip("ab", ("snip", "synflow"), strict=True):
        one, other = (
            arms.scratch(score=score, sparsity=0.9, shuffled=shuffled) for shuffled in (True, False)
        )
        compared = (Comparison(trained(one), trained(other)),)
        study = "before-training"
        text = f"shuffling the {'SNIP' if score == 'snip' else 'SynFlow'} mask within layers leaves digit-FID as it was"
        yield Claim(
            f"11{letter}", text, "frankle2021missing", study, "matches", compared, trained(arms.scratch())
        )


def _speed(arms: Arms) -> Iterator[Claim]:
    dense = measured(arms.latency, arm="dense")
    for letter, arm, rule, text in (
        ("a", "zeros", "matches", "90% zeros take as long as no zeros in dense kernels"),
        ("b", "fewer channels", "lower", "channels taken out, for 90% fewer multiplications, take less time"),
    ):
        compared = (Comparison(measured(arms.latency, arm=arm), dense, "latency_seconds"),)
        yield Claim(f"16{letter}", text, "", "latency", rule, compared)
    for letter, images, sparsity in (("c", 64, 0.9), ("d", 64, 0.5), ("e", 1, 0.9)):
        experiment = arms.sparse_latency[images]
        twin = measured(experiment, arm="twin", sparsity=sparsity)
        compared = (Comparison(twin, measured(experiment, arm="dense"), "latency_seconds"),)
        count = f"{images} images" if images > 1 else "one image at a time"
        text = f"a sparse twin at {sparsity:.0%} takes less time than PyTorch's dense kernels, {count}"
        yield Claim(f"16{letter}", text, "park2017faster", "sparse-latency", "lower", compared)
    control, sparse = _control(arms), recovered(arms.recovery(0.9))

    def weakest(row: Mapping[str, Any]) -> float:
        return min(row["gradients_at_end"].values())

    text = "a training step takes less processor time at 90% sparsity than dense, timed in turns"
    zeros, full = (measured(arms.training_time, arm=arm) for arm in ("zeros", "dense"))
    compared = (Comparison(zeros, full, "step_processor_seconds"),)
    yield Claim("19a", text, "", "training-time", "lower", compared)
    early, whole = (
        Arm(one, "on the way", {"split": "validation", "step": arms.scratch().steps // 2})
        for one in (arms.scratch(score="synflow", sparsity=0.9), arms.scratch())
    )
    text = (
        "half-way through training from scratch, a generator pruned to 90% before it has the lower digit-FID"
    )
    yield Claim(
        "19b", text, "", "before-training", "lower", (Comparison(early, whole),), trained(arms.scratch())
    )
    text = "pruning half of the weights and training on lowers digit-FID below the dense control's"
    yield Claim(
        "19c", text, "", "magnitude", "lower", (Comparison(recovered(arms.recovery(0.5)), control),), control
    )
    text = "at 90% the smallest gradient of any layer falls below a tenth of the dense network's smallest"
    compared = (Comparison(sparse, control, weakest, against=0.1),)
    yield Claim("19d", text, "", "magnitude", "lower", compared, control)


def _small(arms: Arms) -> Iterator[Claim]:
    for letter, sparsity in zip("abc", (0.5, 0.8, 0.9), strict=True):
        compared = (Comparison(recovered(arms.recovery(sparsity)), recovered(arms.small(sparsity))),)
        text = f"large and {sparsity:.0%} sparse beats small and dense with as many non-zero weights"
        yield Claim(f"20{letter}", text, "zhu2018agp", "small-and-dense", "lower", compared, _control(arms))
    protected = recovered(arms.protected(0.9))
    for letter, allocation in zip("abc", ("global", "lamp", "erk"), strict=True):
        compared = (Comparison(protected, recovered(arms.recovery(0.9, allocation=allocation))),)
        name = "global pruning without it" if allocation == "global" else allocation.upper()
        text = f"at 90%, protecting the output layer gives a lower digit-FID than {name}, trained on"
        yield Claim(f"21{letter}", text, "", "magnitude", "lower", compared, _control(arms))


def _variety(arms: Arms) -> Iterator[Claim]:
    def share(name: str) -> Any:
        return lambda row: max(row[name], 1e-4)  # one image of ten thousand

    def threes(sparse: list[Arm], control: Arm) -> tuple[Comparison, ...]:
        names = ("recall", "precision", "density")
        return tuple(Comparison(one, control, share(name)) for one in sparse for name in names)

    start, control = trained(arms.dense), _control(arms)
    say = "at the first sparsity that costs a quarter of recall, precision and density keep nine tenths"
    before = threes([only_pruned(arms.pruned(sparsity)) for sparsity in SPARSITIES], start)
    yield Claim("22a", f"{say}: before training on", "", "curve", "variety", before, start)
    after = threes([recovered(arms.recovery(sparsity)) for sparsity in RECOVERED], control)
    yield Claim("22b", f"{say}: after training on", "", "magnitude", "variety", after, control)
    alone = [recovered(arms.recovery(sparsity, discriminator="none")) for sparsity in RECOVERED]
    none = recovered(arms.recovery(discriminator="none"))
    text = f"{say}: after recovery without an adversary"
    yield Claim("22c", text, "", "no-adversary", "variety", threes(alone, none), none)


def _discriminators(arms: Arms) -> Iterator[Claim]:
    plain, letters = recovered(arms.recovery(0.9)), iter("abcdefgh")
    changed = {
        "a slower discriminator": arms.recovery(0.9, discriminator="slower"),
        "a discriminator pruned as far": arms.recovery(0.9, discriminator="pruned"),
        "a discriminator whose density follows the balance": arms.recovery(0.9, discriminator="balanced"),
        "four times the steps": arms.recovery(0.9, steps=4 * arms.sizes.recovery_steps),
    }
    for name, arm in changed.items():
        for measure, rule, word in (
            ("digit_fid", "lower", "lowers digit-FID"),
            ("recall", "higher", "raises recall"),
        ):
            compared = (Comparison(recovered(arm), plain, measure),)
            text = f"{name} {word} of a generator at 90%, trained on"
            source = "wang2023adapt" if "balance" in name else ""
            yield Claim(f"23{next(letters)}", text, source, "discriminators", rule, compared, _control(arms))


def _precision(arms: Arms) -> Iterator[Claim]:
    compared = (Comparison(recovered(arms.in_float32(0.9)), recovered(arms.recovery(0.9))),)
    text = (
        "a generator at 90%, trained on in float32, matches the one trained on in the processor's precision"
    )
    yield Claim("24", text, "", "magnitude", "matches", compared, _control(arms))


def _control(arms: Arms) -> Arm:
    """The dense generator that was trained on just as long."""
    return recovered(arms.control)


def _critic_and_blur(arms: Arms) -> Iterator[Claim]:
    study, (few, many) = arms.critic_and_blur, arms.critic_and_blur.sizes[-2:]
    exact, critic = "by the exact earth mover's distance,", "by a trained critic,"
    claims = (
        ("lower", few, "blur", "digits", "exact", f"{exact} {few} digits are nearer to a blur than to others"),
        ("lower", many, "digits", "blur", "exact", f"{exact} {many} digits are nearer to others than to a blur"),
        ("higher", few, "blur", "digits", "critic", f"{critic} a blur is further from digits than others are"),
        ("higher", few, "blur", "generated", "critic", f"{critic} a blur is further from digits than generated ones"),
    )  # fmt: skip
    for letter, (rule, n, one, other, measure, text) in zip("abcd", claims, strict=True):
        pair = [measured(study, images=n, cloud=kind) for kind in (one, other)]
        compared = (Comparison(pair[0], pair[1], measure),)
        yield Claim(f"30{letter}", text, "", "critic-and-blur", rule, compared)
