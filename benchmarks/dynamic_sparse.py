"""What RigL adds to a training step: a sparse generator whose mask moves, over a dense one."""

import dataclasses
from collections.abc import Callable, Iterator

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare
from ganprune.dynamic import DynamicSparseTraining

MINUTES = 6
SPARSITY = 0.9
BATCH_SIZE = 64
INTERVAL = 100
FOREVER = 10**9


def training(width: int, data: gp.data.ImageData, interval: int, rigl: bool) -> Callable[[], None]:
    """A function that trains for one interval, so that each call has its share of one update of the mask."""
    config = gp.TrainConfig(steps=1, batch_size=BATCH_SIZE, loss="non-saturating", decay_from=1.0)
    state = gp.TrainState(gp.dcgan(data.image_shape, width), config)
    callbacks = []
    if rigl:
        callback = DynamicSparseTraining("rigl", SPARSITY, every=interval, end=FOREVER)
        callbacks = [callback]

    def run() -> None:
        state.config = dataclasses.replace(state.config, steps=state.step + interval)
        gp.train(state, data.train, callbacks)

    return run


def measure(quick: bool) -> Iterator[Row]:
    """The ratio at 90% sparsity, per step, over whole intervals; the fraction that moves is that of the start."""
    data = gp.mnist()
    width, interval, rounds = (4, 2, 2) if quick else (32, INTERVAL, 30)
    arms = {name: training(width, data, interval, name == "RigL") for name in ("dense", "RigL")}
    times = compare(arms, rounds, warmup=1, device=data.train.device)
    ratio = times.ratio("RigL", "dense")
    yield Row(
        f"RigL step over dense step, {SPARSITY:.0%} sparsity, width {width}",
        ratio.value,
        "×",
        at_most=1.05,
        details={
            "low": ratio.low,
            "high": ratio.high,
            "dense_ms": 1e3 * times.median("dense") / interval,
            "steps_between_updates": interval,
        },
    )
