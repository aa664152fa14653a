"""Chapter 5: what it writes by hand equals the package; each mistake of its naive pruner fails its own check."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.chapters import Chapter
from torch import nn
from torch.nn.functional import softplus

import ganprune as gp

TOOLS = {
    "contextlib": contextlib,
    "copy": copy,
    "statistics": statistics,
    "time": time,
    "torch": torch,
    "nn": nn,
    "softplus": softplus,
    "gp": gp,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "KINDS": (nn.Linear, nn.Conv2d, nn.ConvTranspose2d),
}


CHAPTER = Chapter("05_what_pruning_removes", **TOOLS)
run_cells = CHAPTER.run


def small_generator(seed: int = 0) -> nn.Module:
    return gp.dcgan(width=4, latent_dim=8, seed=seed, device="cpu").generator


# --- Masks and granularities --------------------------------------------------------------------------------


def test_the_hand_made_list_is_the_packages() -> None:
    network = small_generator()
    listed = run_cells("scratch-prunable", dense=network)["list_prunable"](network)
    expected = gp.prunable_weights(network)
    assert list(listed) == list(expected)
    assert all(weight is expected[name] for name, weight in listed.items())


@settings(deadline=None, max_examples=40)
@given(outputs=st.integers(1, 6), groups=st.integers(1, 5), seed=st.integers(0, 1000))
def test_patterns_keep_what_they_say_and_freedom_keeps_most(outputs: int, groups: int, seed: int) -> None:
    cells = run_cells("scratch-patterns")
    w = torch.randn(outputs, 4 * groups, generator=torch.Generator().manual_seed(seed))
    pattern = cells["keep_two_of_four"](w)
    theirs = gp.allocate({"w": w.abs()}, allocation="2:4", output_dims={"w": 0})["w"]
    assert pattern.equal(theirs)
    rows = cells["keep_outputs"](w, max(1, outputs // 2))
    for other in (pattern, rows):
        free = cells["keep_weights"](w, int(other.sum()))
        assert int(free.sum()) == int(other.sum())
        assert (w[free] ** 2).sum() >= (w[other] ** 2).sum() - 1e-5


@settings(deadline=None, max_examples=20)
@given(gone=st.sets(st.integers(0, 7), min_size=1, max_size=7), seed=st.integers(0, 100))
def test_masked_and_removed_channels_give_the_same(gone: set[int], seed: int) -> None:
    cells = run_cells("scratch-channels")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.randn(16, 4)
        nn.init.normal_(net[1].bias)
        net(x)
    channels = sorted(gone)
    masked = cells["mask_channels"](net, channels)(x)
    small = cells["remove_channels"](net, channels)
    assert masked.allclose(small(x), atol=1e-5)
    assert gp.channels.remove_channels(net.eval(), {"0": channels}, inputs=x)(x).allclose(masked, atol=1e-5)
    assert len(small[0].weight) == 8 - len(channels)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_hand_made_counts_equal_the_report(sparsity: float) -> None:
    network = small_generator().eval()
    gp.prune(network, sparsity)
    report = gp.complexity(network, batch_size=None)
    nonzero, macs, effective, size = run_cells("scratch-count")["count"](network)
    assert (nonzero, macs, effective) == (report.nonzero, report.macs, report.effective_macs)
    assert 0 <= report.file_bytes - size < 4096


# --- How a mask survives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("betas", "steps"), [((0.9, 0.99), 5), ((0.9, 0.9), 40), ((0.5, 0.99), 20), ((0.0, 0.99), 20)]
)
def test_drift_of_adam_is_the_geometric_sum(betas: tuple[float, float], steps: int) -> None:
    cells = run_cells("scratch-drift")
    path = cells["measure_drift"](lambda w, r: torch.optim.Adam(w, r, betas=betas), steps=steps)
    rho = betas[0] / math.sqrt(betas[1])
    for t in (1, steps):
        assert path[t] == pytest.approx(cells["drift"](rho, t), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_drift_of_momentum_is_the_geometric_sum(momentum: float) -> None:
    cells = run_cells("scratch-drift")
    path = cells["measure_drift"](lambda w, r: torch.optim.SGD(w, r, momentum=momentum))
    assert path[-1] == pytest.approx(cells["drift"](momentum, 60), rel=1e-6, abs=1e-12)


def test_a_large_epsilon_shortens_the_drift() -> None:
    cells = run_cells("scratch-drift")
    usual, large = (
        cells["measure_drift"](lambda w, r, eps=eps: torch.optim.Adam(w, r, betas=(0.9, 0.9), eps=eps))[-1]
        for eps in (1e-8, 10.0)
    )
    assert large < usual
    assert large == pytest.approx(9, rel=0.1)  # beta one alone


def test_decoupled_weight_decay_pulls_a_drifted_weight_back() -> None:
    cells = run_cells("scratch-drift")
    path = cells["measure_drift"](
        lambda w, r: torch.optim.AdamW(w, r, betas=(0.9, 0.99), weight_decay=0.1), steps=1_000
    )
    furthest = max(path, key=abs)
    assert abs(path[-1]) < 0.9 * abs(furthest) and abs(furthest) > 5


def test_updates_grow_at_first_where_adam_forgets_squares_sooner_than_gradients() -> None:
    cells = run_cells("scratch-drift")
    path = cells["measure_drift"](lambda w, r: torch.optim.Adam(w, r, betas=(0.95, 0.8)), steps=20)
    moves = [after - before for before, after in zip(path, path[1:], strict=False)]
    assert all(after > before for before, after in zip(moves, moves[1:], strict=False))


def test_at_half_of_the_arithmetic_channels_leave_more_than_half_of_the_weights() -> None:
    for seed, width in ((0, 32), (1, 64)):
        network = gp.dcgan(width=width, seed=seed, device="cpu").generator
        plan = gp.channels.plan_channels(network, macs_fraction=0.5)
        assert plan.macs_fraction <= 0.5 < plan.parameters_fraction


@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.0, 0.99)])
def test_the_hand_made_hook_trains_to_the_weights_of_keep_mask(betas: tuple[float, float]) -> None:
    gan = gp.dcgan(width=2, latent_dim=8, seed=0, device="cpu")
    cells = run_cells("scratch-hold", pretrained=gan)
    trained = []
    for keep in (cells["hold"], gp.keep_mask):
        generator, average = copy.deepcopy(gan.generator), copy.deepcopy(gan.generator)
        optimizer = torch.optim.Adam(generator.parameters(), 2e-4, betas=betas)
        cells["train_briefly"](generator, optimizer, steps=2)
        mask = gp.prune(generator, 0.8)
        keeper = keep(generator, mask, optimizer, ema=average)
        cells["train_briefly"](generator, optimizer, steps=2)
        gp.check_mask(generator, mask)
        gp.check_mask(average, mask)
        trained.append(generator)
        keeper.remove()
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert one.equal(other)


# --- The naive pruner ---------------------------------------------------------------------------------------

PRUNERS = ("naive", "checks-1", "checks-2", "checks-3", "checks-4", "find-mistakes", "solution-4-code")
MISTAKES = [
    "mistake 1: whole tensors",
    "mistake 2: compared the wrong way round",
    "mistake 3: a module container",
    "mistake 4: images made without a graph",
    "mistake 5: judged with noise that is defined nowhere",
    "mistake 6: pruned once per epoch and not kept",
]


@pytest.fixture(scope="module")
def pruners() -> dict[str, Any]:
    return run_cells(*PRUNERS)


def test_the_naive_pruner_fails_six_checks_by_name(pruners: dict[str, Any]) -> None:
    found = pruners["find_mistakes"](pruners["NaivePruner"])
    assert len(found) == len(MISTAKES)
    assert all(message.startswith(start) for message, start in zip(found, MISTAKES, strict=True))


def test_the_repaired_pruner_passes_and_really_prunes(pruners: dict[str, Any]) -> None:
    repaired = pruners["RepairedPruner"]
    assert pruners["find_mistakes"](repaired) == []
    gan = gp.dcgan(width=2, latent_dim=8, seed=0, device="cpu")
    optimizer = torch.optim.Adam(gan.generator.parameters(), 1e-3)
    pruner = repaired(gan.generator, gan.discriminator, optimizer, 0.01)
    before = copy.deepcopy(gan.generator.state_dict())
    pruner.train_epoch([torch.randn(4, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    mask = gp.Mask.nonzero(gan.generator)
    assert 0.1 < mask.sparsity < 0.9
    moved = {name: value != before[name] for name, value in gp.prunable_weights(gan.generator).items()}
    assert all(bool(moved[name][kept].any()) for name, kept in mask.items())
    assert pruner.judge() == pruner.judge()


def whole_tensors(self: Any) -> Any:
    for w in self.prunable():
        w.data *= w.abs().max() >= self.tau
    return gp.Mask.nonzero(self.G)


def wrong_way_round(self: Any) -> Any:
    for w in self.prunable():
        w.data *= w.abs() < self.tau
    return gp.Mask.nonzero(self.G)


def no_graph(self: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        fakes = self.G(z)
    return softplus(-self.D(fakes)).mean()


def not_kept(self: Any, latents: Any) -> None:
    self.prune()
    for z in latents:
        self.optimizer.zero_grad()
        self.loss(z).backward()
        self.optimizer.step()


def masked_gradients(self: Any, latents: Any) -> None:
    mask = self.prune()
    for name, w in gp.prunable_weights(self.G).items():
        w.register_hook(lambda g, kept=mask[name]: g * kept)
    for z in latents:
        self.optimizer.zero_grad()
        self.loss(z).backward()
        self.optimizer.step()


ALONE = [
    ("prune", whole_tensors, "mistake 1"),
    ("prune", wrong_way_round, "mistake 2"),
    ("prunable", lambda self: nn.ModuleList(gp.prunable_weights(self.G).values()), "mistake 3"),
    ("loss", no_graph, "mistake 4"),
    ("loss", lambda self, z: softplus(-self.D(self.G(z).detach())).mean(), "mistake 4"),
    (
        "judge",
        lambda self: float(self.D(self.G(self.noise)).mean()),
        "mistake 5: judged with noise that is def",
    ),
    (
        "judge",
        lambda self: float(self.D(self.G(torch.randn(64, 8))).mean()),
        "mistake 5: judged with noise that nob",
    ),
    ("train_epoch", not_kept, "mistake 6"),
    ("train_epoch", masked_gradients, "mistake 6"),
]


@pytest.mark.parametrize(
    ("method", "wrong", "message"), ALONE, ids=[f"{m}-{i}" for i, (m, _, _) in enumerate(ALONE)]
)
def test_one_mistake_alone_fails_its_own_check_alone(
    pruners: dict[str, Any], method: str, wrong: Any, message: str
) -> None:
    found = pruners["find_mistakes"](type("Wrong", (pruners["RepairedPruner"],), {method: wrong}))
    assert len(found) == 1
    assert found[0].startswith(message)


# --- The exercises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0, 0), "which share is kept"),
        ((1.0, 0.6, 0.54), "half of what was left"),
        ((0.75, 0.75, 0.54), "divide by all"),
        ((0.75, 0.6, 0.9), "linear layers"),
    ],
)
def test_wrong_sparsities_are_told_why(numbers: tuple[float, ...], message: str) -> None:
    check = run_cells("exercise-1-check")["check_sparsities"]
    check(0.75, 0.6, 0.54)
    with pytest.raises(AssertionError, match=message):
        check(*numbers)


def along_outputs(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    moved = weight.abs().movedim(1, -1)
    padded = nn.functional.pad(moved, (0, -moved.shape[-1] % m))
    best = padded.reshape(-1, m).topk(n, dim=1).indices
    kept = torch.zeros(padded.numel() // m, m, dtype=torch.bool).scatter(1, best, True)
    return kept.view_as(padded)[..., : moved.shape[-1]].movedim(-1, 1)


def by_comparison(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    moved = weight.abs().movedim(0, -1)
    groups = moved.reshape(-1, m)
    least = groups.topk(n, dim=1).values[:, -1:]
    return (groups >= least).view_as(moved).movedim(-1, 0)


@pytest.mark.parametrize(
    ("answer", "message"), [(along_outputs, "inputs come first"), (by_comparison, "count, do not compare")]
)
def test_wrong_patterns_are_told_why(answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("exercise-3-check")["check_n_of_m"](answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda b: b / (1 - b), "plain momentum"),
        (lambda b: 1 / (1 - b), "not part of it"),
        (lambda b: b**3 / (1 - b), "torch: "),
    ],
)
def test_wrong_drifts_are_told_why(answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_cells("scratch-drift", "exercise-5-check")["check_nesterov"](answer)


@pytest.mark.parametrize(
    ("before", "check", "stub"),
    [
        (("exercise-3-check",), "check_n_of_m", "keep_n_of_m"),
        (("scratch-drift", "exercise-5-check"), "check_nesterov", "nesterov_drift"),
    ],
)
def test_stubs_fail_and_solutions_pass(before: tuple[str, ...], check: str, stub: str) -> None:
    cells = run_cells(*before)
    with pytest.raises(NotImplementedError):
        cells[check](cells[stub])
    number = re.search(r"exercise-(\d)", before[-1])[1]
    run_cells(*before, f"solution-{number}-code")


def test_the_stub_of_the_repair_starts_with_all_mistakes(
    pruners: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_cells(*PRUNERS[:-1], "exercise-4-stub")
    assert capsys.readouterr().out.startswith("6 mistakes")


# --- The record ---------------------------------------------------------------------------------------------


def glued(
    cell: str, monkeypatch: pytest.MonkeyPatch, **namespace: Any
) -> tuple[dict[str, str], dict[str, Any]]:
    import myst_nb

    texts: dict[str, str] = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, text, display: texts.__setitem__(name, text))
    return texts, run_cells(cell, **namespace)


def invented(seeds: int, path: Path) -> None:
    """Rows as the study writes them, with seconds that no machine took."""
    from ganprune.experiments.arms import arms_of
    from ganprune.records.store import config_hash

    experiment = arms_of("laptop").latency
    for seed in range(seeds):
        times = {"dense": 0.01, "zeros": 0.01 * (1 + 0.001 * seed), "fewer channels": 0.004 + 1e-5 * seed}
        rows = [{"stage": "measured", "arm": arm, "latency_seconds": taken} for arm, taken in times.items()]
        gp.records.append(path, {"key": config_hash(experiment), "seed": seed, "rows": rows})


def test_the_setting_names_threads_and_processor_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from ganprune.experiments.arms import arms_of

    texts, _ = glued("records", monkeypatch)
    rows = gp.records.rows_of(gp.records.read_store(), arms_of("laptop").latency)
    named = {row["processor"] for row in rows if row["threads"] == 1}
    assert all(f", 1 thread of an {name} processor" in texts["chapter-05-setting"] for name in named)
    assert bool(named) == ("thread" in texts["chapter-05-setting"])


def test_sentences_follow_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    texts, _ = glued("records", monkeypatch)
    assert texts["chapter-05-16a"] == texts["chapter-05-16b"] == "not measured yet"
    invented(5, tmp_path / "latency.jsonl")
    texts, _ = glued("records", monkeypatch)
    assert texts["chapter-05-16a"].startswith("supported, ratio 1.00 [")
    assert texts["chapter-05-16b"].startswith("supported, ratio 0.402 [")
    assert texts["chapter-05-16a"].endswith("5 seeds")


@pytest.mark.parametrize("seeds", [0, 5])
def test_the_opening_takes_the_recorded_time_if_there_is_one(
    seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    invented(seeds, tmp_path / "latency.jsonl")
    texts, cells = glued("records", monkeypatch)
    cells["usual"] = {"dense": 0.02, "zeros": 0.021}
    table = [{"recall": r, "digit-FID": 1 - r, "precision": 1.0, "recalibrated": 2.0} for r in (0.9, 0.5)]
    cells |= {"reports": {"zeros": SimpleNamespace(compressed_bytes=1)}, "n_all": 8, "lines": table}
    run_cells("live-says", **cells)
    expected = "1.00 times as long as before (95%" if seeds else "1.05 times as long as before (timed"
    assert texts["chapter-05-zeros"].startswith(expected)


def test_half_of_the_weights_costs_far_less_by_one_threshold_than_by_one_for_each_layer() -> None:
    """What the chapter says of chapter 6's lower digit-FID: at one number of images."""
    dense, found = gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema.eval(), {}
    for allocation in ("global", "uniform"):
        network = copy.deepcopy(dense)
        _ = gp.prune(network, 0.5, allocation=allocation)
        split = gp.mnist(device="cpu").validation
        found[allocation] = gp.evaluate(network, split, 500, metrics="fid").digit_fid
    assert 2 * found["global"] < found["uniform"]


def test_for_one_image_a_recorded_runtime_is_faster_than_the_twin() -> None:
    """What the chapter says in brackets, from the benchmark that it points to."""
    rows = json.loads((Path(__file__).parents[1] / "benchmarks" / "latest.json").read_text(encoding="utf-8"))[
        "rows"
    ]
    of_one = {
        row["name"].split(",")[0]: row["details"]["high"]
        for row in rows
        if row["benchmark"] == "sparse_inference" and "90%: width 32, one image on one thread" in row["name"]
    }
    assert of_one["ONNX Runtime"] < 1 and of_one["OpenVINO in int8"] < 1
