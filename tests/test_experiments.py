"""Experiments in the smallest sizes: rows, repetition, resumption, masks, schedules; studies and claims fit."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_data import small_mnist

import ganprune as gp
from ganprune import records
from ganprune.experiments import (
    critic_and_blur,
    images,
    recovery,
    ring_schedules,
    ring_training,
    speed,
    tickets,
    training,
)
from ganprune.experiments.arms import PROFILES, arms_of
from ganprune.experiments.base import Experiment, Seconds
from ganprune.experiments.claims import claims, ledger, shipped_verdicts
from ganprune.experiments.critic_and_blur import CRITIC_TRAINING, CriticAndBlur
from ganprune.experiments.equal_quality import recorded_pairs, sparsity_of
from ganprune.experiments.fewer_channels import FewerChannels
from ganprune.experiments.images import SpoiltImages
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.experiments.recovery import DISCRIMINATORS, OUTPUT_LAYER, Recovery
from ganprune.experiments.ring_games import RingGame
from ganprune.experiments.ring_schedules import RingSchedule
from ganprune.experiments.ring_tickets import RingTickets
from ganprune.experiments.ring_training import RingTraining
from ganprune.experiments.speed import Latency, SparseLatency, TrainingTime, break_even
from ganprune.experiments.studies import RECOVERED, STUDIES, study
from ganprune.experiments.tickets import Tickets
from ganprune.experiments.training import FromScratch
from ganprune.experiments.verdicts import Arm, judge
from ganprune.masks.weights import prunable_weights
from ganprune.networks.checkpoints import pretrained_path
from ganprune.records import check_record, config_hash, measure

ROOT = Path(__file__).resolve().parents[1]
SHORT = gp.TrainConfig(steps=4, batch_size=8, precision="float32", log_every=3)
SMALL = FromScratch(SHORT, (8, 4, 2), (2, 4, 8), samples=64, rounds=3)


def small(sparsity: float = 0.0, **changes: Any) -> Recovery:
    """Return a short recovery of a small pair."""
    return Recovery(sparsity, **{"training": SHORT, "dense": SMALL, "samples": 64, **changes})


KINDS: dict[str, Experiment] = {
    "dense": SMALL,
    "other loss": replace(SMALL, training=replace(SHORT, loss="hinge", penalty=None), norm="spectral"),
    "sparse from the start": replace(SMALL, score="synflow", sparsity=0.8, shuffled=True),
    "control": small(),
    "pruned alone": small(0.7, training=None),
    "recovery": small(0.7),
    "imitation beside": small(0.7, imitation=10.0),
    "cubic": small(0.7, schedule="cubic", allocation="erk"),
    "rounds": small(0.7, schedule="rounds", score="taylor", protect=(OUTPUT_LAYER,)),
    "gradients": small(0.7, training=None, score="grasp"),
    "counts of another": small(0.7, allocation="counts of taylor", training=None),
    "activations": small(0.7, training=None, score="wanda", allocation=None),
    **{f"discriminator {how}": small(0.7, discriminator=how) for how in DISCRIMINATORS[1:]},
    "channels": FewerChannels(training=SHORT, dense=SMALL, samples=64, channel_ratio=0.5),
    "channels and zeros": FewerChannels(0.7, training=SHORT, dense=SMALL, samples=64, channel_ratio=0.25),
    "tickets": Tickets(SMALL, rounds=2, controlled=(2,), samples=64),
    "images": SpoiltImages(noise=0.2, dropped=3, samples=40),
    "masks": InitialMasks("snip", 0.9, SMALL),
    "ring": RingGame(steps=40, moment=20, every=5),
    "ring training": RingTraining.of("WGAN-GP", 1e-3, 5),
    "ring schedules": RingSchedule(RingTraining.of("non-saturating, R1", 1e-3, 8), "during"),
    "ring tickets": RingTickets(RingTraining.of("non-saturating, R1", 1e-3, 8), rounds=2, controlled=(2,)),
    "critic and blur": CriticAndBlur(replace(CRITIC_TRAINING, steps=3), hidden=(8, 16), sizes=(4, 8)),
    "latency": Latency(SMALL, sparsity=0.5, batch_size=4, turns=2),
    "sparse latency": SparseLatency(SMALL, sparsities=(0.0, 0.9), batch_size=4, turns=2),
    "training time": TrainingTime(SMALL, sparsity=0.5, updates=2, turns=2),
}
STAGES = {
    "dense": ["on the way"] * 3 + ["trained"] * 4,
    "control": ["recovered"] * 4,
    "pruned alone": ["pruned"] * 2 + ["recalibrated"] * 2,
    "recovery": ["pruned"] * 2 + ["recalibrated"] * 2 + ["recovered"] * 4,
    "cubic": ["recovered"] * 4,
    "channels": ["recovered"] * 4,
    "channels and zeros": ["pruned"] * 2 + ["recalibrated"] * 2 + ["recovered"] * 4,
    "tickets": ["trained"] * 2 * (1 + 2 + 3),
    "images": ["measured"] * 2,
    "masks": ["measured"] * 4,
    "ring": ["played"] * 2,
    "ring training": ["trained"],
    "ring schedules": ["first cycle", *["second cycle"] * 6, "trained"],
    "ring tickets": ["trained"] * (1 + 2 + 7),
    "critic and blur": ["measured"] * 6,
    "latency": ["measured"] * 3,
    "sparse latency": ["measured"] * 4,
    "training time": ["measured"] * 2,
}


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Return 64 images of each split, which all experiments see; they share a cache; the ring has few points."""
    found = small_mnist(64)
    figures, recalibrate = recovery.figures, recovery.recalibrate_batchnorm

    def look(gan, *arguments):
        SEEN.append(copy.deepcopy(gan))
        return figures(gan, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, recovery, tickets, images, critic_and_blur, speed):
            patch.setattr(module, "course_data", lambda: found)
        patch.setattr(recovery, "figures", look)
        patch.setattr(recovery, "recalibrate_batchnorm", partial(recalibrate, batches=2))
        for module in (ring_training, ring_schedules):
            patch.setattr(module, "MEASURED", 80)  # a distance takes the cube of their number
        patch.setenv("GANPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        measured.cache_clear()
        yield found


SEEN: list[gp.GAN] = []
"""Copies of the GANs that recoveries have measured."""


@cache
def measured(kind: str) -> tuple[dict[str, Any], list[gp.GAN]]:
    """Return the record of seed 3, and what a recovery has measured for it."""
    SEEN.clear()
    return measure(KINDS[kind], 3, "smoke"), SEEN.copy()


def figures_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what a clock says."""
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


# ---------------------------------------------------------------- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_rows_fit_the_schema(kind) -> None:
    experiment, (record, _) = KINDS[kind], measured(kind)
    check_record(record)
    rows = record["rows"]
    if kind in STAGES:
        assert [row["stage"] for row in rows] == STAGES[kind]
    for row in rows:
        if "split" in row:
            assert row["samples"] in (64, 40)
            assert {"digit_fid", "digit_fid_floor", "recall", "density"} <= row.keys()
        if row["stage"] in ("on the way", "trained", "recovered"):
            assert row["wall_seconds"] >= 0 and row["processor_seconds"] >= 0
            assert row["precision_of_training"] == "float32" and row["step"] >= 0
        if row["stage"] == "recovered":
            assert row["gradients_at_start"].keys() == row["gradients_at_end"].keys()
    assert experiment.label and experiment.steps >= 0


REPEATED = (
    "dense",
    "sparse from the start",
    "imitation beside",
    "rounds",
    "gradients",
    "activations",
    "images",
)
REPEATED += ("discriminator balanced", "discriminator none", "tickets", "masks", "ring")
REPEATED += ("ring training", "ring schedules", "ring tickets")


@pytest.mark.parametrize("kind", REPEATED)
def test_a_seed_determines_the_figures(kind, tmp_path, monkeypatch) -> None:
    experiment, rows = KINDS[kind], measured(kind)[0]["rows"]
    if not isinstance(experiment, Recovery):  # their pair is the same by the first of these tests
        monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "other"))
    assert figures_of(measure(experiment, 3, "smoke")["rows"]) == figures_of(rows)
    if kind in ("dense", "gradients", "images", "ring", "ring training", "ring schedules", "ring tickets"):
        assert figures_of(measure(experiment, 4, "smoke")["rows"]) != figures_of(rows)


def test_claims_find_the_rows_that_they_need() -> None:
    def found(kind: str, stage: str, key: Any = "digit_fid", **where: Any) -> bool:
        record = measured(kind)[0]
        rows = [{**row, "key": record["key"], "seed": record["seed"]} for row in record["rows"]]
        return set(Arm(KINDS[kind], stage, where).values(rows, key)) == {3}

    assert found("dense", "trained") and found("dense", "on the way", split="validation", step=2)
    assert not found("dense", "on the way") and not found("dense", "on the way", split="validation", step=4)
    assert found("recovery", "recovered", network="generator") and found("recovery", "pruned")
    assert found("recovery", "recovered", lambda row: min(row["gradients_at_end"].values()))
    assert found("training time", "measured", "step_processor_seconds", arm="zeros")
    assert found("tickets", "trained", round=2, arm="shuffled")
    assert not found("tickets", "trained", round=1, arm="shuffled")
    assert found("latency", "measured", "latency_seconds", arm="zeros")
    assert found("sparse latency", "measured", "latency_seconds", arm="twin", sparsity=0.9)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({0.0: 3.0, 0.5: 1.5, 0.9: 0.5}, 0.7),
        ({0.9: 0.5, 0.5: 1.0}, 0.5),
        ({0.0: 0.9, 0.5: 1.2, 0.8: 0.8}, 0.65),  # the last crossing: from there on it stays faster
        ({0.0: 0.9, 0.9: 0.2}, 0.0),
        ({0.0: 3.0, 0.9: 1.0}, None),
    ],
)
def test_break_even_is_where_twins_become_faster_for_good(ratios, expected) -> None:
    assert break_even(ratios) == (expected if expected is None else pytest.approx(expected))


# ---------------------------------------------------------------- from scratch


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch) -> None:
    whole = figures_of(measured("dense")[0]["rows"])
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "other"))
    left, look = [1, 3], training._Marks.__call__

    def stop(self, state):
        if state.step in left:
            left.remove(state.step)
            raise KeyboardInterrupt
        look(self, state)

    monkeypatch.setattr(training._Marks, "__call__", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            list(SMALL.run(3))
    assert figures_of(measure(SMALL, 3)["rows"]) == whole
    assert [row["step"] for row in SMALL.trained(3, training.course_data()).rows["marks"]] == [1, 2, 3]


def test_seconds_of_all_pieces_are_added_up(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "other"))
    first = SMALL.trained(0, data, until=2).rows[Seconds.name][0]
    both = SMALL.trained(0, data).rows[Seconds.name][0]
    assert both["wall_seconds"] > first["wall_seconds"] > 0
    again = SMALL.trained(0, data).rows[Seconds.name][0]  # nothing is left to do
    assert again["wall_seconds"] == pytest.approx(both["wall_seconds"], abs=0.1)


def test_a_ticket_run_that_was_stopped_goes_on_to_the_same_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "other"))
    experiment = KINDS["tickets"]
    assert len([row for row, _ in zip(experiment.run(3), range(7), strict=False)]) == 7
    assert figures_of(measure(experiment, 3)["rows"]) == figures_of(measured("tickets")[0]["rows"])


def test_a_mask_before_training_is_kept_and_a_shuffled_one_keeps_its_counts() -> None:
    plain = replace(SMALL, score="snip", sparsity=0.8)
    shuffled = replace(plain, shuffled=True)
    one, other, dense = (arm.initial(5) for arm in (plain, shuffled, SMALL))
    assert one.masks["generator"] != other.masks["generator"]
    counts = [{row["name"]: row["kept"] for row in gan.masks["generator"].layers()} for gan in (one, other)]
    assert counts[0] == counts[1]
    for gan in (one, other):  # the weights that are kept are those of the dense network of this seed
        for key, weight in prunable_weights(gan.generator).items():
            assert torch.equal(weight, prunable_weights(dense.generator)[key] * gan.masks["generator"][key])
    rows = measured("sparse from the start")[0]["rows"]
    assert all(row["achieved_sparsity"] == pytest.approx(0.8, abs=0.01) for row in rows)


# ---------------------------------------------------------------- recovery


@pytest.mark.parametrize("kind", [kind for kind, arm in KINDS.items() if isinstance(arm, Recovery)])
def test_masks_hold_and_reach_the_sparsity(kind) -> None:
    experiment, (record, gans) = KINDS[kind], measured(kind)
    weights = prunable_weights(gans[-1].generator)
    protected = {f"{layer}.weight" for layer in experiment.protect}
    total = sum(weight.numel() for key, weight in weights.items() if key not in protected)
    for gan, row in zip(gans, record["rows"][::2], strict=True):
        mask = gan.masks.get("generator")
        assert (mask is None) == (experiment.sparsity == 0)
        if mask is None:
            continue
        assert mask.pruned == round(experiment.sparsity * total)
        for network in (gan.generator, gan.generator_ema):
            for key, weight in prunable_weights(network).items():
                assert key not in mask or not weight[~mask[key]].any()
                assert (key in mask) == (key not in protected)
        if row["stage"] != "recalibrated":
            assert (
                row["achieved_sparsity"] == pytest.approx(mask.sparsity)
                and sum(row["kept"].values()) == mask.kept
            )


def test_the_sparsity_of_equal_quality_lies_on_the_recorded_curve() -> None:
    curve = {0.8: 32.0, 0.0: 4.0, 0.5: 8.0}
    for sparsity, value in curve.items():
        assert sparsity_of(value, curve) == pytest.approx(sparsity)
    assert sparsity_of(16.0, curve) == pytest.approx(0.65)  # half-way between 8 and 32 by factors
    assert sparsity_of(1.0, curve) == 0.0
    assert sparsity_of(33.0, curve) is None
    values = [sparsity_of(value / 10, curve) for value in range(40, 320)]
    assert values == sorted(values)


def test_pairs_of_equal_quality_come_from_the_records() -> None:
    pairs = recorded_pairs()
    assert pairs
    for pair in pairs:
        assert 0 <= pair.lowest_sparsity <= pair.sparsity <= pair.highest_sparsity <= max(RECOVERED)
        assert 1 <= pair.seeds <= 5


@pytest.mark.parametrize("schedule", ["cubic", "rounds"])
@pytest.mark.parametrize("steps", [1, 2, 7, 21])
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
def test_schedules_end_at_the_sparsity_by_the_middle(schedule, steps, sparsity) -> None:
    plan = small(sparsity, schedule=schedule)._schedule(steps)
    assert plan.end <= max(1, steps // 2) and plan(plan.end) == pytest.approx(sparsity, abs=1e-9)
    assert plan(steps) == pytest.approx(sparsity, abs=1e-9)


def test_channels_that_are_taken_out_are_gone_before_weights_are_pruned(data) -> None:
    (record, gans), dense = measured("channels"), SMALL.pair(3, data)
    assert [row["channels"] for row in record["rows"]] == [[4, 2, 1]] * 4
    assert record["rows"][0]["weights"] == 64 * 4 * 16 + 4 * 2 * 9 + 2 * 16 + 16
    assert record["rows"][0]["macs"] < gp.complexity(dense.generator).macs / 2
    assert gans[-1].discriminator.spec == dense.discriminator.spec
    both = measured("channels and zeros")[1][-1].generator
    assert both.spec.channels == (6, 3, 2) and not all(weight.all() for weight in both.parameters())


def test_without_an_adversary_the_discriminator_is_left_as_it_was(data) -> None:
    dense = SMALL.pair(3, data)
    before = dense.discriminator.state_dict()
    pruned, _, recovered, _ = measured("discriminator none")[1]
    for gan in (pruned, recovered):
        assert all(torch.equal(value, before[key]) for key, value in gan.discriminator.state_dict().items())
    assert mse(recovered, dense) < mse(pruned, dense)
    against = measured("recovery")[1][-1].discriminator.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in against.items())


def mse(gan: gp.GAN, teacher: gp.GAN) -> float:
    """Return the squared error of the images of two generators, as a generator sees its own batch."""
    with torch.no_grad():
        z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        return float((gan.generator.train()(z) - teacher.generator_ema.eval()(z)).square().mean())


def test_what_is_said_of_the_discriminator_is_done(data, monkeypatch) -> None:
    begun: list[tuple[dict, dict]] = []

    def look(state, *arguments):
        rates = {
            name: optimizer.param_groups[0]["initial_lr"] for name, optimizer in state.optimizers.items()
        }
        begun.append((copy.deepcopy(state.gan.discriminator.state_dict()), rates))
        return state

    monkeypatch.setattr(recovery, "train", look)
    for how in ("trained", "slower", "fresh", "pruned"):
        list(small(0.7, discriminator=how, samples=6).run(3))
    (own, rate), (_, slower), (fresh, _), (pruned, _) = begun
    assert rate["discriminator"] == rate["generator"] == slower["generator"] == 4 * slower["discriminator"]
    dense, initial = SMALL.pair(3, data), SMALL.initial(3)
    assert all(torch.equal(own[key], value) for key, value in dense.discriminator.state_dict().items())
    assert all(torch.equal(fresh[key], value) for key, value in initial.discriminator.state_dict().items())
    mask = measured("discriminator pruned")[1][-1].masks["discriminator"]
    assert mask.sparsity == pytest.approx(0.7, abs=0.01)
    assert all(not pruned[key][~mask[key]].any() for key in mask)


def test_the_control_starts_where_the_pruned_one_does_and_sees_the_same_batches(monkeypatch) -> None:
    begun = []
    monkeypatch.setattr(recovery, "train", lambda state, *_: begun.append(state) or state)
    for arm in (small(samples=6), small(0.7, samples=6)):
        list(arm.run(3))
    control, sparse = begun
    assert control.config == sparse.config and control.config.seed == 1_000_003
    mask = sparse.gan.masks["generator"]
    for key, weight in prunable_weights(sparse.gan.generator).items():
        assert torch.equal(weight, prunable_weights(control.gan.generator)[key] * mask[key])


def test_counts_can_be_those_of_another_score() -> None:
    ways: list[dict[str, str]] = [{}, {"allocation": "counts of taylor"}, {"score": "taylor"}]
    own, borrowed, other = (mask_at_the_start(small(0.7, training=None, **way)) for way in ways)
    counts = [{row["name"]: row["kept"] for row in mask.layers()} for mask in (own, borrowed, other)]
    assert counts[1] == counts[2] != counts[0]
    assert borrowed != other
    for key, size in prunable_weights(SMALL.pair(3, recovery.course_data()).generator_ema).items():
        kept, left_out = size.abs()[borrowed[key]], size.abs() * ~borrowed[key]
        assert kept.min() >= left_out.max()  # magnitude's order within each layer


def mask_at_the_start(arm: Recovery) -> gp.Mask:
    """Return the mask that an arm begins with, of seed 3."""
    return arm.start(3, recovery.course_data())[0].masks["generator"]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="allocation 'counts of luck' must be one of .*, got 'luck'"):
        small(0.5, allocation="counts of luck")
    with pytest.raises(ValueError, match="schedule must be 'one-shot' with allocation"):
        small(0.5, allocation="counts of taylor", schedule="cubic")
    with pytest.raises(ValueError, match="schedule must be one of"):
        small(0.5, schedule="slowly")
    with pytest.raises(ValueError, match="discriminator must be one of"):
        small(0.5, discriminator="kind")


# ---------------------------------------------------------------- studies


def test_configurations_are_those_of_the_records() -> None:
    """A changed field would orphan every record; so would a changed default."""
    dense = arms_of("laptop").dense
    assert gp.load(pretrained_path("dcgan-mnist", 0)).metadata["key"] == config_hash(dense)
    known = {config_hash(arm) for name in STUDIES for arm in study(name).arms}
    for name in (
        "from_scratch",
        "initial_masks",
        "ring_games",
        "ring_training",
        "ring_tickets",
        "spoilt_images",
    ):
        assert {row["key"] for row in records.read(name)} <= known


@pytest.mark.parametrize("profile", PROFILES)
def test_every_study_can_be_built_in_every_profile(profile) -> None:
    for name in STUDIES:
        found = study(name, profile)
        keys = [config_hash(arm) for arm in found.arms]
        assert keys, name
        assert all(arm.label and arm.steps >= 0 for arm in found.arms)
        assert len({arm.label for arm in found.arms}) == len(set(keys)), name
        assert len(keys) == len(set(keys)) or profile == "smoke", name
        assert found.steps == sum(arm.steps for arm in found.arms) and found.question.endswith("?")
        ten = dict.fromkeys(("mode-collapse", "ring-losses", "ring-schedules", "ring-tickets"), (*range(10),))
        others = {"recipe": (100,), "ring-search": (100, 101, 102)}
        assert found.seeds == (ten | others).get(name, (0, 1, 2, 3, 4))
        for arm in found.arms:
            assert hash(arm) == hash(copy.deepcopy(arm)) and config_hash(arm) == config_hash(
                copy.deepcopy(arm)
            )


@pytest.mark.parametrize("profile", ["laptop", "gpu"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_small_and_dense_has_the_non_zeros_of_its_sparse_twin(profile, sparsity) -> None:
    arms = arms_of(profile)
    small_one, sparse = arms.small(sparsity), arms.recovery(sparsity)
    weights = prunable_weights(small_one.dense.initial(0).generator).values()
    non_zeros = gp.prune(sparse.dense.initial(0), sparsity).kept
    assert sum(weight.numel() for weight in weights) == pytest.approx(non_zeros, rel=0.02)
    assert small_one.dense.training == sparse.dense.training and small_one.training == sparse.training
    assert small_one.dense.judge_channels == sparse.dense.judge_channels and small_one.sparsity == 0


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu"])
def test_a_protected_arm_keeps_as_many_weights_as_its_control(profile) -> None:
    arms = arms_of(profile)
    protected, control = arms.protected(0.9), arms.recovery(0.9)
    gan = protected.dense.initial(0)
    gp.prune(gan, protected.sparsity, protect=protected.protect)
    weights = prunable_weights(gan.generator)
    kept = sum(int(weight.count_nonzero()) for weight in weights.values())
    assert weights[f"{OUTPUT_LAYER}.weight"].count_nonzero() == weights[f"{OUTPUT_LAYER}.weight"].numel()
    assert abs(kept - gp.prune(control.dense.initial(0), 0.9).kept) <= 1


def test_the_control_in_float32_differs_in_nothing_else() -> None:
    arms = arms_of("laptop")
    one, other = arms.in_float32(0.9), arms.recovery(0.9)
    assert one.label == other.label.replace("global", "global, float32")
    assert replace(one, training=replace(one.training, precision="auto")) == other


def test_a_best_critic_of_a_shift_finds_the_exact_distance() -> None:
    class Along(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) @ direction

    direction = torch.nn.functional.normalize(torch.randn(784, generator=gp.seeded(0)), dim=0)
    real = torch.randn(12, 1, 28, 28, generator=gp.seeded(1))
    other = (real - 3 * direction.view(1, 28, 28))[torch.randperm(12, generator=gp.seeded(2))]
    assert critic_and_blur.critic_distance(Along(), real, other) == pytest.approx(3, abs=1e-4)
    exact = ring_training.earth_mover(real.flatten(1), other.flatten(1))
    assert exact == pytest.approx(3, abs=1e-4)  # each image is nearest to its own shifted copy


def test_the_clouds_of_digits_are_disjoint_and_the_blur_is_one_image() -> None:
    rows = measured("critic and blur")[0]["rows"]
    assert [(row["images"], row["cloud"]) for row in rows] == [
        (n, kind) for n in (4, 8) for kind in ("digits", "blur", "generated")
    ]
    assert all(row["exact"] > 0 for row in rows)  # no digit stands beside itself
    blur = {row["images"]: row for row in rows if row["cloud"] == "blur"}
    assert blur[4]["exact"] != blur[8]["exact"]


def test_an_unknown_study_or_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        study("magnitud")
    with pytest.raises(ValueError, match="profile must be one of"):
        study("magnitude", "desktop")


# ---------------------------------------------------------------- claims

PARTS = {
    1: "abc",
    2: "abc",
    3: "abcd",
    4: "abc",
    5: "abcd",
    6: "abcdefgh",
    7: "",
    8: "abcd",
    10: "ab",
    11: "ab",
}
PARTS |= {16: "abcde", 19: "abcd", 20: "abc", 21: "abc", 22: "abc", 23: "abcdefgh", 24: ""}
PARTS |= {30: "abcd", 25: "abcdefghi", 26: "abcdefg", 27: "abcdefghij", 28: "abcdefg", 29: "abcdefghij"}


def test_claims_are_numbered_as_they_were_planned() -> None:
    wanted = [f"{number}{letter}" for number, letters in PARTS.items() for letter in letters or [""]]
    found = [claim.claim for claim in claims(arms_of("laptop"))]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_claim_needs_is_run_by_the_study_that_it_names(profile) -> None:
    """So that one command repeats a claim; the dense pairs are run with whatever starts from them."""
    for claim in claims(arms_of(profile)):
        run = {config_hash(arm) for arm in study(claim.study, profile).arms} | {
            config_hash(arms_of(profile).dense)
        }
        wanted = [arm.experiment for pair in claim.comparisons for arm in (pair.treated, pair.control)]
        wanted += [claim.dense.experiment] if claim.dense else []
        wanted += [claim.event[0]] if claim.event else []
        missing = [experiment.label for experiment in wanted if config_hash(experiment) not in run]
        assert not missing and wanted, f"{claim.claim} needs {missing}"


@pytest.mark.parametrize("profile", PROFILES)
def test_marks_are_where_claims_look(profile) -> None:
    for claim in claims(arms_of(profile)):
        for pair in claim.comparisons:
            for arm in (pair.treated, pair.control):
                if arm.stage == "on the way":
                    scratch = arm.experiment
                    assert isinstance(scratch, FromScratch)
                    assert arm.where["step"] in [round(mark * scratch.steps) for mark in scratch.marks]


def test_sources_are_in_the_bibliography() -> None:
    entries = re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    for claim in claims(arms_of("laptop")):
        assert claim.source == "" or claim.source in entries, claim.claim


def test_the_ledger_has_a_verdict_for_each_claim() -> None:
    arms = arms_of("laptop")
    rows = [row for path in records.store.SHIPPED.glob("*.jsonl") for row in records.read(path)]
    for some in ([], rows):
        found = ledger(some, arms)
        assert [verdict.claim for verdict in found] == [claim.claim for claim in claims(arms)]
        words = {"supported", "not supported", "not decided"}
        assert all(verdict.verdict in words and verdict.text and verdict.study for verdict in found)
        assert all(verdict.n >= 5 for verdict in found if verdict.verdict != "not decided")


def test_simulated_records_of_every_claim_are_judged() -> None:
    """With five seeds in every arm, each verdict has five seeds, an effect and an interval."""
    arms, rows, random = arms_of("laptop"), [], torch.Generator().manual_seed(0)
    wanted: dict[str, Simulated] = {}
    for claim in claims(arms):
        sides = [arm for pair in claim.comparisons for arm in (pair.treated, pair.control)]
        for arm in [*sides, *([claim.dense] if claim.dense else [])]:
            wanted[f"{config_hash(arm.experiment)} {arm.stage} {arm.where}"] = Simulated(arm)
        if claim.event:
            shared = {"key": config_hash(claim.event[0]), "stage": "measured", "starved": False}
            rows += [{**shared, "seed": seed} for seed in range(5)]
    for one in wanted.values():
        rows += [one.row(seed, float(torch.rand(1, generator=random))) for seed in range(5)]
    for verdict in ledger(rows, arms):
        assert verdict.n == 5, verdict
        assert None not in (verdict.effect, verdict.low, verdict.high, verdict.detectable), verdict
        assert verdict.low <= verdict.effect <= verdict.high


@dataclass
class Simulated:
    """Rows that an arm would have."""

    arm: Arm

    def row(self, seed: int, noise: float) -> dict[str, Any]:
        """Return the row of one seed."""
        value = 2 + noise / 10
        names = ("digit_fid", "recall", "precision", "density", "earth_mover", "lead", "exact", "critic")
        names += ("latency_seconds", "step_processor_seconds")
        row = {"key": config_hash(self.arm.experiment), "seed": seed, "stage": self.arm.stage}
        row |= {"split": "test", "network": "generator_ema", "digit_fid_floor": 1.0, "step": 1}
        return row | dict.fromkeys(names, value) | {"gradients_at_end": {"a": value}} | dict(self.arm.where)


def test_seeds_of_a_search_decide_nothing() -> None:
    claim = next(claim for claim in claims(arms_of("laptop")) if claim.claim == "25a")
    (compared,) = claim.comparisons

    def verdict(seeds: range) -> Any:
        arms = (compared.treated, compared.control)
        return judge(claim, [Simulated(arm).row(seed, seed % 3) for arm in arms for seed in seeds])

    assert verdict(range(100, 110)).n == 0
    assert verdict(range(95, 110)) == verdict(range(95, 100)) and verdict(range(95, 110)).n == 5
    events = [claim for claim in claims(arms_of("laptop")) if claim.event]
    for found in events:
        row = {"key": config_hash(found.event[0]), "starved": True, "stage": "measured"}
        assert judge(found, [{**row, "seed": seed} for seed in range(100, 105)]).n == 0


def test_a_claim_with_an_arm_that_has_no_record_shows_no_effect() -> None:
    arms = arms_of("laptop")
    claim = next(claim for claim in claims(arms) if claim.claim == "4b")
    one = claim.comparisons[0]
    rows = [
        {
            "key": config_hash(arm.experiment),
            "seed": seed,
            "stage": arm.stage,
            "split": "test",
            "digit_fid": 8.0 + seed,
        }
        for arm in (one.treated, one.control)
        for seed in range(5)
    ]
    found = judge(claim, rows)
    assert found.n == 0 and found.in_words() == "not measured yet"
    assert found.line()["verdict"] == "not measured yet" and found.line()["effect"] is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pair_whose_arms_were_trained_in_different_precisions_is_marked(precision: str) -> None:
    claim = next(claim for claim in claims(arms_of("laptop")) if claim.claim == "7")
    cubic, one_shot = claim.comparisons[0].treated, claim.comparisons[0].control
    rows = []
    for seed in range(5):
        rows.append({**Simulated(cubic).row(seed, seed / 9), "precision_of_training": "bfloat16"})
        taken = precision if seed == 3 else "bfloat16"
        rows.append({**Simulated(one_shot).row(seed, seed / 7), "precision_of_training": taken})
    assert judge(claim, rows).mixed == (precision == "float32")


def test_the_shipped_verdicts_are_those_of_the_shipped_records() -> None:
    known = shipped_verdicts()
    rows = gp.records.read_store()
    assert [*known.values()] == ledger(rows, arms_of("laptop"))
    assert known[
        "16a"
    ].in_words() == "{verdict}, ratio {effect:#.3g} [{low:#.3g}, {high:#.3g}], {n} seeds".format(
        **known["16a"].as_dict()
    )
