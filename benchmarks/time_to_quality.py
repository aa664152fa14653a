"""How soon the package's recipe reaches the digit-FID that the plain PyTorch recipe has after 4,000 steps.

Two runs per seed take turns, a few hundred steps each: the plain recipe, and ours over as many steps, which
is evaluated at each turn of its first half and at its end. Only training is timed. Seeds that are done are
kept in ``_build/benchmarks`` until the last one is, so a stopped run goes on.
"""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ganprune as gp
from benchmarks import plain, record
from benchmarks.record import Row
from benchmarks.timing import clock

MINUTES = 15
JOURNAL = Path(__file__).parents[1] / "_build" / "benchmarks" / "time_to_quality.jsonl"


@dataclass(frozen=True)
class Setting:
    """Sizes of the comparison.

    Attributes:
        width: of both GANs.
        latent_dim: of both.
        batch_size: of both.
        plain_steps: after which the plain recipe's digit-FID is the mark.
        budget: steps over which our learning rate is held and then decayed to zero.
        learning_rate: of ours.
        decay_from: fraction of the budget for which it is held.
        ema_decay: of our moving average.
        turn: steps between evaluations, and between the turns of the runs.
        samples: per evaluation.
        seeds: one run of each kind per seed.
    """

    width: int = 32
    latent_dim: int = 64
    batch_size: int = 64
    plain_steps: int = 4_000
    budget: int = 4_000
    learning_rate: float = 1.5e-3
    decay_from: float = 0.25
    ema_decay: float = 0.99
    turn: int = 250
    samples: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2)


class Run:
    """A training that advances by turns and counts its own seconds."""

    def __init__(
        self, total: int, turn: int, advance: Callable[[int], None], network: torch.nn.Module
    ) -> None:
        self.total, self.turn, self.advance, self.network = total, turn, advance, network
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []

    def take_turn(self) -> None:
        """Trains for one turn, timed."""
        steps = min(self.turn, self.total - self.step)
        device = next(self.network.parameters()).device
        begin = clock(device)
        self.advance(steps)
        self.seconds += clock(device) - begin
        self.step += steps

    def evaluate(self, data: gp.data.ImageData, setting: Setting) -> float:
        """Digit-FID against validation, noted in the curve; not timed."""
        report = gp.evaluate(self.network, data.validation, setting.samples, metrics=("fid",))
        assert report.digit_fid is not None
        self.curve.append({"step": self.step, "seconds": self.seconds, "digit_fid": report.digit_fid})
        return report.digit_fid


class _Pause(Exception):
    """Leaves the package's loop between two steps."""


def our_run(setting: Setting, budget: int, seed: int, data: gp.data.ImageData) -> Run:
    """The package's recipe over a budget; its loop is left after each turn and entered again."""
    config = gp.TrainConfig(
        budget,
        setting.batch_size,
        learning_rate=setting.learning_rate,
        decay_from=setting.decay_from,
        ema_decay=setting.ema_decay,
        seed=seed,
    )
    state = gp.TrainState(gp.dcgan(data.image_shape, setting.width, setting.latent_dim, seed=seed), config)

    def advance(steps: int) -> None:
        until = state.step + steps

        def pause(current: gp.TrainState) -> None:
            if current.step == until < config.steps:
                raise _Pause

        with contextlib.suppress(_Pause):
            gp.train(state, data.train, [pause])

    return Run(budget, setting.turn, advance, state.gan.generator_ema)


def plain_run(setting: Setting, seed: int, data: gp.data.ImageData) -> Run:
    """The plain recipe: batch norm in D, no moving average; its raw generator is what is measured."""
    gan = gp.dcgan(data.image_shape, setting.width, setting.latent_dim, norm="batch", seed=seed)
    batches = plain.loader(plain.ImageDataset(data.train), setting.batch_size, seed)
    stepping = plain.steps(gan, batches, setting.latent_dim, seed)

    def advance(steps: int) -> None:
        for _ in range(steps):
            next(stepping)

    return Run(setting.plain_steps, setting.turn, advance, gan.generator)


def one_seed(setting: Setting, seed: int, data: gp.data.ImageData) -> dict[str, Any]:
    """Both runs of one seed, taking turns; ours is evaluated at each turn of its first half and at its end."""
    runs = {"plain": plain_run(setting, seed, data), "ours": our_run(setting, setting.budget, seed, data)}
    while waiting := [name for name, run in runs.items() if run.step < run.total]:
        name = min(waiting, key=lambda name: runs[name].step / runs[name].total)
        run = runs[name]
        run.take_turn()
        if run.step == run.total or (name == "ours" and run.step <= run.total // 2):
            quality = run.evaluate(data, setting)
            done = f"step {run.step} of {run.total}, {run.seconds:.0f} s of training"
            print(f"  seed {seed}, {name}: {done}, digit-FID {quality:.1f}", file=sys.stderr)
    mark, last = runs["plain"].curve[-1], runs["ours"].curve[-1]
    reached = next((row for row in runs["ours"].curve if row["digit_fid"] <= mark["digit_fid"]), None)
    return {
        "seed": seed,
        "plain_digit_fid": mark["digit_fid"],
        "plain_seconds": mark["seconds"],
        "reached_seconds": reached and reached["seconds"],
        "reached_step": reached and reached["step"],
        "our_digit_fid": last["digit_fid"],
        "our_seconds": last["seconds"],
        "curve": runs["ours"].curve,
    }


def all_seeds(setting: Setting, journal: Path | None) -> list[dict[str, Any]]:
    """The rows of all seeds; those in the journal for this setting, commit and machine are not rerun."""
    data = gp.mnist()
    key = {
        "setting": gp.records.config_hash(setting),
        "commit": gp.records.provenance()["commit"],
        "threads": torch.get_num_threads(),
        "processor": record.machine()["processor"],
    }
    known = gp.records.read(journal) if journal else []
    rows = {row["seed"]: row for row in known if all(row.get(name) == value for name, value in key.items())}
    missing = [seed for seed in setting.seeds if seed not in rows]
    for seed in missing:
        begin = time.perf_counter()
        rows[seed] = one_seed(setting, seed, data)
        if journal:
            gp.records.append(journal, {**key, **rows[seed]})
        minutes = (time.perf_counter() - begin) / 60
        shown = {k: v for k, v in rows[seed].items() if k != "curve"}
        print(f"  seed {seed}: {minutes:.1f} min, {shown}", file=sys.stderr)
    return [rows[seed] for seed in setting.seeds]


def measure(quick: bool) -> Iterator[Row]:
    """The ratio of times to the mark, and how far each recipe goes in equally many steps."""
    setting, journal = Setting(), JOURNAL
    if quick:
        setting = dataclasses.replace(
            setting, width=2, batch_size=4, plain_steps=4, budget=4, turn=2, samples=200, seeds=(0,)
        )
    rows = all_seeds(setting, None if quick else journal)
    ratios = [
        0.0 if row["reached_seconds"] is None else row["plain_seconds"] / row["reached_seconds"]
        for row in rows
    ]
    middle = statistics.median(ratios)
    yield Row(
        f"time to the digit-FID of {setting.plain_steps:,} plain steps, plain over ours, "
        f"median of {len(rows)} seeds, width {setting.width}",
        middle or None,
        "×",
        at_least=2.0,
        details={
            "ratios": [round(ratio, 3) for ratio in ratios],
            "steps": [row["reached_step"] for row in rows],
            "budget": setting.budget,
        },
    )
    floor = gp.metrics.floor(gp.mnist())
    for name, words in (
        ("plain_digit_fid", f"digit-FID of the plain recipe after {setting.plain_steps:,} steps"),
        ("our_digit_fid", f"digit-FID of ours after {setting.budget:,} steps"),
    ):
        values = [row[name] for row in rows]
        yield Row(
            f"{words}, median of {len(rows)} seeds",
            statistics.median(values),
            "digit-FID",
            details={
                "by_seed": [round(v, 2) for v in values],
                "seconds": [round(row[name.replace("digit_fid", "seconds")], 1) for row in rows],
                "floor": floor,
                "samples": setting.samples,
            },
        )
    if not quick:
        journal.unlink(missing_ok=True)
