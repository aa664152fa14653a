"""What zeros save without a compiler: the sparse twin against dense PyTorch, ONNX Runtime and OpenVINO, one thread."""

import copy
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import Times, compare, keep_freed_memory, median_interval
from ganprune.experiments.speed import break_even
from ganprune.networks.fast_convolutions import fast_convolutions

MINUTES = 5
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SHOWN = 0.9
"""The sparsity that the rows of ratios are about; the details have all of them."""
WIDTHS = (32, 64)
TRAINED = 32
"""The width of the shipped generators; others are fresh, and one threshold leaves all of their layers equally dense."""
BATCHES = (1, 16, 64)
OTHERS = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "openvino_int8": "OpenVINO in int8"}
TORCH = ("products", "products, channels_last", "plain", "plain, channels_last")
"""Ways through PyTorch; the fastest one counts."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """One comparison: the width of the generator, images at a time, threads, and sparsities of the twins."""

    width: int
    images: int
    threads: int
    sparsities: tuple[float, ...]

    def __str__(self) -> str:
        images = "one image" if self.images == 1 else f"{self.images} images"
        fresh = "" if self.width == TRAINED else " (untrained)"
        threads = f"{('one', 'two')[self.threads - 1]} thread{'s' * (self.threads - 1)}"
        return f"width {self.width}{fresh}, {images} on {threads}"


def generator_of(width: int) -> nn.Module:
    """The shipped generator where it has this width, else a fresh one; a mask by magnitude works on either."""
    if width == 32:
        return gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema.eval()
    return gp.dcgan(width=width, device="cpu").generator.eval()


def pruned(network: nn.Module, sparsity: float) -> nn.Module:
    """A copy with one-shot global magnitude pruning."""
    network = copy.deepcopy(network)
    if sparsity:
        gp.prune(network, sparsity=sparsity)
    return network


def run_torch(network: nn.Module, z: torch.Tensor, products: bool) -> None:
    """Images as this package's sampling makes them, with some layers as matrix products, or with PyTorch alone."""
    with torch.inference_mode(), fast_convolutions(network) if products else nullcontext():
        network(z)


def torch_arms(network: nn.Module, z: torch.Tensor) -> dict[str, Call]:
    """All ways through PyTorch, by name."""
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    ways = (network, True), (last, True), (network, False), (last, False)
    return {
        name: partial(run_torch, net, z, products) for name, (net, products) in zip(TORCH, ways, strict=True)
    }


def onnx_arm(path: Path, z: np.ndarray, threads: int) -> Call:
    """ONNX Runtime on the dense file."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"latents": z})


def openvino_models(path: Path, latent_dim: int) -> dict[str, Any]:
    """OpenVINO's form of the dense file, in float32 and in int8, as far as the libraries are here."""
    try:
        openvino = importlib.import_module("openvino")
        models = {"openvino": openvino.Core().read_model(str(path))}
        nncf = importlib.import_module("nncf")
    except ImportError:
        return models if "openvino" in sys.modules else {}
    batches = [gp.sample_latents(16, latent_dim, seed=seed).numpy() for seed in range(20)]
    return models | {"openvino_int8": nncf.quantize(models["openvino"], nncf.Dataset(batches))}


def openvino_arm(model: Any, z: np.ndarray, threads: int) -> Call:
    """OpenVINO on one of its models."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # or it would compute in bfloat16 where it can
    }
    fixed = model.clone()
    fixed.reshape(list(z.shape))
    core = importlib.import_module("openvino").Core()
    request = core.compile_model(fixed, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: z})


@dataclass(frozen=True)
class Dense:
    """A generator, its ONNX file, and OpenVINO's models of that."""

    network: nn.Module
    path: Path
    models: dict[str, Any]


def dense_of(width: int, folder: Path, models: bool) -> Dense:
    """The generator of a width, written to a folder."""
    network, path = generator_of(width), folder / f"{width}.onnx"
    gp.export_onnx(path, network)
    return Dense(network, path, openvino_models(path, network.spec.latent_dim) if models else {})


def arms_of(setting: Setting, dense: Dense) -> dict[str, Call]:
    """Every way to make the images, by name; a twin's name is its sparsity."""
    network = dense.network
    z = gp.sample_latents(setting.images, network.spec.latent_dim)
    arms = torch_arms(network, z)
    for sparsity in setting.sparsities:
        twin = gp.sparse_twin(pruned(network, sparsity), threads=setting.threads)
        arms[str(sparsity)] = lambda twin=twin: twin(z)
    arms["onnx"] = onnx_arm(dense.path, z.numpy(), setting.threads)
    for name, model in dense.models.items():
        arms[name] = openvino_arm(model, z.numpy(), setting.threads)
    return arms


def rows_of(setting: Setting, times: Times) -> Iterator[Row]:
    """The rows of one comparison: ratios at the shown sparsity, and break-even over all of them."""
    best = min(TORCH, key=times.median)
    load = {"clock": clock_of(setting)[0], "load": round(os.getloadavg()[0], 1)}
    milliseconds = {f"{arm}_ms": 1e3 * times.median(arm) for arm in times.rounds if arm in OTHERS}
    shown, others = str(SHOWN), [name for name in OTHERS if name in times.rounds]
    told = others if setting.images != 16 else []  # the details have them all
    for other in (best, *told):
        ratio, what = times.ratio(other, shown), OTHERS.get(other, "PyTorch's best")
        promised = 1.4 if other == best and (setting.images, setting.threads) == (64, 1) else None
        yield Row(
            f"{what}, dense, over the sparse twin at {SHOWN:.0%}: {setting}",
            ratio.value,
            "×",
            at_least=promised,
            details={
                "low": ratio.low,
                "high": ratio.high,
                "dense_ms": 1e3 * times.median(other),
                "sparse_ms": 1e3 * times.median(shown),
                "torch": best,
                **milliseconds,
                **load,
            },
        )
    if len(setting.sparsities) < 2:
        return
    ratios = [times.ratio(best, str(sparsity)) for sparsity in setting.sparsities]
    each = [
        break_even({s: times.rounds[str(s)][turn] / dense for s in setting.sparsities})
        for turn, dense in enumerate(times.rounds[best])
    ]
    never = [1.0 if one is None else one for one in each]
    low, high = median_interval(never)
    found = statistics.median(never)
    yield Row(
        f"break-even sparsity against PyTorch's best: {setting}",
        None if found >= 1 else found,
        "of the weights",
        details={
            "low": low,
            "high": high,
            "sparsity": list(setting.sparsities),
            "speedup": [ratio.value for ratio in ratios],
            "speedup_low": [ratio.low for ratio in ratios],
            "speedup_high": [ratio.high for ratio in ratios],
            "sparse_ms": [1e3 * times.median(str(sparsity)) for sparsity in setting.sparsities],
            "torch_ms": 1e3 * times.median(best),
            **milliseconds,
            **load,
        },
    )


def clock_of(setting: Setting) -> tuple[str, Callable[[], float]]:
    """Processor time for one thread, which a busy machine does not stretch; seconds that pass for several."""
    if setting.threads == 1:
        return "processor time", time.process_time
    return "wall time", time.perf_counter


def too_busy(setting: Setting) -> bool:
    """Whether other programs would be measured as well: with several threads it counts what time passes."""
    busy = setting.threads > 1 and os.getloadavg()[0] > (os.cpu_count() or 1) + 1
    if busy:
        print(f"left out, because other programs keep this machine busy: {setting}", file=sys.stderr)
    return busy


def settings_of(quick: bool) -> list[Setting]:
    """All comparisons."""
    if quick:
        return [Setting(8, 2, 1, (0.5, SHOWN))]
    return [
        Setting(width, images, 1, SPARSITIES if width == TRAINED else (SHOWN,))
        for width in WIDTHS
        for images in BATCHES
    ]


def measure(quick: bool) -> Iterator[Row]:
    """Ratios with their 95% intervals over rounds in which all arms take turns, and break-even sparsities."""
    return measured(settings_of(quick), quick)


def measured(settings: list[Setting], quick: bool) -> Iterator[Row]:
    """The rows of comparisons, in their order; those that other programs would disturb are left out."""
    keep_freed_memory()
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        widths = {setting.width for setting in settings}
        dense = {width: dense_of(width, Path(folder), not quick) for width in sorted(widths)}
        try:
            for setting in (one for one in settings if not too_busy(one)):
                torch.set_num_threads(setting.threads)
                passes = 1 if quick else max(1, 32 // setting.images)
                arms = arms_of(setting, dense[setting.width])
                arms = {name: repeated(arm, passes) for name, arm in arms.items()}
                times = compare(arms, 2 if quick else 31, read=clock_of(setting)[1])
                scaled = {name: [one / passes for one in rounds] for name, rounds in times.rounds.items()}
                yield from rows_of(setting, Times(scaled))
        finally:
            torch.set_num_threads(before)


def repeated(arm: Call, passes: int) -> Call:
    """The same several times in a row."""

    def run() -> None:
        for _ in range(passes):
            arm()

    return run
