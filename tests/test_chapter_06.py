"""Chapter 6: what it writes by hand equals the package; its naive pruner is as wrong as it says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import ganprune as gp
from ganprune.plots import Table

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "06_magnitude_pruning.ipynb"


def run_cells(*names: str, **namespace: Any) -> dict[str, Any]:
    """Runs cells of the chapter, by their ids, in a namespace of their own."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}
    namespace = {"copy": copy, "torch": torch, "gp": gp, "Path": Path, **namespace}
    for name in names:
        exec(sources[name], namespace)
    return namespace


def small_generator(seed: int = 0) -> nn.Module:
    return gp.dcgan(width=2, latent_dim=8, seed=seed, device="cpu").generator


# --- The ten lines ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.99),
    few_values=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ten_lines_equal_allocate_even_under_ties(
    sizes: list[tuple[int, int]], sparsity: float, few_values: bool, seed: int
) -> None:
    magnitude_mask = run_cells("scratch")["magnitude_mask"]
    random = torch.Generator().manual_seed(seed)
    weights = {f"layer{i}": torch.randn(size, generator=random) for i, size in enumerate(sizes)}
    if few_values:
        weights = {name: w.round() for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    assume(round(sparsity * total) < total)  # the package keeps one weight at least
    assume(any(w.any() for w in weights.values()))  # and refuses scores that are all zero
    expected = gp.allocate({name: w.abs() for name, w in weights.items()}, sparsity)
    assert gp.Mask(magnitude_mask(weights, sparsity)) == expected
    assert expected.pruned == round(sparsity * total)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_ten_lines_equal_torch(sparsity: float) -> None:
    generator = small_generator()
    mine = run_cells("scratch")["magnitude_mask"](gp.prunable_weights(generator), sparsity)
    layers = [(part, "weight") for part in generator.modules() if isinstance(part, nn.ConvTranspose2d)]
    nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=sparsity)
    assert gp.masks.from_torch_prune(generator) == gp.Mask(mine)


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_lamp_draws_one_mask_for_a_generator_and_its_rescaled_twin(factor: float) -> None:
    generator = small_generator()
    twin = copy.deepcopy(generator)
    with torch.no_grad():
        twin.layers.deconv2.weight.mul_(factor)
    scores = [gp.score(network, "magnitude") for network in (generator, twin)]
    assert gp.allocate(scores[0], 0.8, "lamp") == gp.allocate(scores[1], 0.8, "lamp")
    assert gp.allocate(scores[0], 0.8) != gp.allocate(scores[1], 0.8)


# --- The exercises ------------------------------------------------------------------------------------------


def test_naive_pruner_has_the_faults_that_the_solution_lists() -> None:
    naive_prune = run_cells("naive-pruner")["naive_prune"]
    generator = small_generator()
    before = copy.deepcopy(generator.state_dict())
    naive_prune(generator, 0.5)
    assert all(value.equal(before[name]) for name, value in generator.state_dict().items())
    with pytest.raises(IndexError):
        naive_prune(generator, 1.0)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_careful_pruner_does_what_prune_does(sparsity: float) -> None:
    careful_prune = run_cells("scratch", "solution-4-code")["careful_prune"]
    ours, theirs = small_generator(), small_generator()
    with torch.no_grad():
        for generator in (ours, theirs):
            generator.layers.deconv2.weight.fill_(0.01)  # ties
    assert careful_prune(ours, sparsity) == gp.prune(theirs, sparsity)
    for name, value in ours.state_dict().items():
        assert value.equal(theirs.state_dict()[name])


@pytest.mark.parametrize("sparsity", [1.0, 1.2, -0.1, float("nan")])
def test_careful_pruner_refuses_bad_sparsities(sparsity: float) -> None:
    careful_prune = run_cells("scratch", "solution-4-code")["careful_prune"]
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        careful_prune(small_generator(), sparsity)


def test_hand_made_keeper_trains_to_the_same_weights_as_keep_mask() -> None:
    gan = gp.dcgan(width=2, latent_dim=8, seed=0, device="cpu")
    cells = run_cells("few-steps", "solution-5-code", pretrained=gan)
    trained = []
    for keep in (cells["hold"], gp.keep_mask):
        generator = copy.deepcopy(gan.generator)
        optimizer = cells["adam"](generator)
        cells["few_steps"](generator, optimizer, steps=2)
        mask = gp.prune(generator, 0.8)
        keep(generator, mask, optimizer)
        cells["few_steps"](generator, optimizer, steps=2)
        assert cells["holds"](generator, mask)
        trained.append(generator)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert one.equal(other)


# --- The recorded experiment --------------------------------------------------------------------------------


def invented_rows(seeds: int) -> list[dict[str, Any]]:
    """Rows as the experiment writes them, with figures that no run gave: only the arithmetic is tested."""
    names = ("ganprune", "torch", "commit", "machine", "threads", "time", "extractor", "split", "samples")
    facts = {**dict.fromkeys(names, "-"), "config": "0" * 8, "digit_fid_floor": 5.0}
    rows = []
    for seed in range(seeds):
        level = 40.0 * (1 + 0.1 * seed)
        arms = [("dense", 0.0, "pruned", 1.0), ("dense", 0.0, "fine-tuned", 1.0)]
        for score, factor in (("magnitude", 1.02), ("random", 3.0)):
            arms += [(score, 0.5, stage, factor * (1 + 0.001 * seed)) for stage in ("pruned", "fine-tuned")]
        rows += [
            {**facts, "seed": seed, "score": s, "sparsity": p, "stage": stage, "digit_fid": level * factor}
            for s, p, stage, factor in arms
        ]
    return rows


RECORDED = ("records", "recorded-values", "recorded-figure", "verdicts", "head-to-head")


@pytest.mark.parametrize(
    ("seeds", "verdicts"), [(3, ["inconclusive (3)", "inconclusive (3)"]), (5, ["matches", "worse"])]
)
def test_verdicts_follow_the_protocol(
    seeds: int, verdicts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    for row in invented_rows(seeds):
        gp.records.append(tmp_path / "magnitude.jsonl", row)
    cells = run_cells(*RECORDED[:-1], plt=plt)
    plt.close("all")
    assert [line["verdict"] for line in cells["lines"]] == verdicts
    assert cells["lines"][0]["ratio to dense"] == pytest.approx(1.02, rel=0.01)
    cells = run_cells(*RECORDED, plt=plt)
    plt.close("all")
    assert cells["lines"][0]["random / magnitude"] == pytest.approx(3 / 1.02)


def test_a_seed_beyond_twelve_floors_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr("ganprune.records.store.SHIPPED", tmp_path)
    for row in invented_rows(6):
        if row["seed"] == 2:  # its control is poor, and its pruned arms look splendid beside it
            row["digit_fid"] = 60.1 if row["score"] == "dense" else 10.0
        gp.records.append(tmp_path / "magnitude.jsonl", row)
    cells = run_cells(*RECORDED, plt=plt)
    plt.close("all")
    assert cells["deciding"] == [0, 1, 3, 4, 5]
    assert cells["lines"][0]["random / magnitude"] == pytest.approx(3 / 1.02)
    cells = run_cells(*RECORDED[:-1], plt=plt)
    plt.close("all")
    assert [line["verdict"] for line in cells["lines"]] == ["matches", "worse"]


def test_the_shipped_record_says_what_the_chapter_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(NOTEBOOK.parent)
    cells = run_cells(*RECORDED[:-1], plt=plt)
    verdicts = {(line["score"], line["sparsity"]): line["verdict"] for line in cells["lines"]}
    assert set(verdicts.values()) == {"worse"}
    assert ("magnitude", "50%") in verdicts
    dense = cells["values"]("dense", 0.0, "pruned", cells["deciding"])
    for sparsity in (0.5, 0.7):
        pruned = cells["values"]("magnitude", sparsity, "pruned", cells["deciding"])
        assert all(a > b for a, b in zip(pruned, dense, strict=True))
    cells = run_cells(*RECORDED, plt=plt)
    plt.close("all")
    assert all(line["above 1 for every seed"] and line["low"] > 1 for line in cells["lines"])


def test_recorded_run_is_complete() -> None:
    rows = gp.records.read("magnitude")
    arms: dict[tuple[str, float, str], set[int]] = {}
    for row in rows:
        arms.setdefault((row["score"], row["sparsity"], row["stage"]), set()).add(row["seed"])
    seeds = arms["dense", 0.0, "fine-tuned"]
    assert len(seeds) >= 3
    assert all(found == seeds for found in arms.values())
    assert {score for score, _, _ in arms} == {"dense", "magnitude", "random"}


# --- Tables -------------------------------------------------------------------------------------------------


def test_table_as_text_and_as_html() -> None:
    table = Table(
        [
            {"arm": "dense <0>", "digit-FID": 1289.31, "kept": 1000},
            {"arm": "random", "digit-FID": 65.25, "kept": None},
        ]
    )
    assert repr(table).splitlines() == [
        "arm        digit-FID   kept",
        "dense <0>      1,289  1,000",
        "random          65.2      –",
    ]
    page = table._repr_html_()
    assert page.count("<tr>") == 3
    assert '<td style="text-align: left">dense &lt;0&gt;</td>' in page
    assert '<td style="text-align: right">1,289</td>' in page
    assert "yes" in repr(Table([{"holds": True}]))


def test_table_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Table([])
    with pytest.raises(ValueError, match=r"row 1 must have the headings \['a'\], got \['b'\]"):
        Table([{"a": 1}, {"b": 2}])
