"""The recorded experiments at a small size: what pruning before training keeps, and the dense runs they share."""

from pathlib import Path

import pytest
from tools.small_data import small_data
from tools.small_gans import equal, weights

import ganprune as gp
from ganprune import records
from ganprune.experiments import magnitude
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.networks.build import dcgan


def test_every_score_keeps_the_same_number_and_rows_tell_starved_layers(tmp_path: Path) -> None:
    experiment = InitialMasks(width=4, sparsity=0.9, batches=1, rounds=10)
    rows = records.run(experiment, [0], tmp_path / "rows.jsonl")
    assert len(rows) == 5 * 4
    weights = {
        key: parameter
        for key, parameter in dcgan(width=4, device="cpu").generator.named_parameters()
        if key.startswith("layers.deconv") and key.endswith("weight")
    }
    total = sum(weight.numel() for weight in weights.values())
    for score in experiment.scores:
        of_score = {row["layer"]: row for row in rows if row["score"] == score}
        assert {key: row["total"] for key, row in of_score.items()} == {
            k: w.numel() for k, w in weights.items()
        }
        assert sum(row["kept"] for row in of_score.values()) == total - round(0.9 * total)
        assert all(row["starved"] == (row["kept"] < weights[key].shape[1]) for key, row in of_score.items())


def test_the_shipped_record_is_complete() -> None:
    rows = records.read("initial_masks")
    experiment = InitialMasks()
    assert {row["config"] for row in rows} == {records.config_hash(experiment)}
    assert len({row["seed"] for row in rows}) >= 5
    assert {row["score"] for row in rows} == set(experiment.scores)
    assert len(rows) == len({(row["seed"], row["score"], row["layer"]) for row in rows})


def test_a_dense_run_is_kept_and_resumed_but_never_that_of_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setenv("GANPRUNE_PRECISION", "float32")
    data = gp.mnist("cpu")
    first = magnitude.dense_gan(2, 2, 0, data)
    (kept,) = tmp_path.glob("*.safetensors")
    written = kept.stat().st_mtime_ns
    finished = magnitude.dense_gan(2, 2, 0, data)
    assert kept.stat().st_mtime_ns == written
    state = gp.TrainState(gp.dcgan(width=2, device="cpu"), gp.TrainState.load(kept, "cpu").config)
    gp.train(state, data.train, until=1).save(kept)  # as if it had been stopped there
    resumed = magnitude.dense_gan(2, 2, 0, data)
    assert equal(weights(finished), weights(first)) and equal(weights(resumed), weights(first))
    others = [magnitude.dense_gan(*changed, data) for changed in ((2, 1, 0), (2, 2, 1), (3, 2, 0))]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert not any(equal(weights(other), weights(first)) for other in others)


def test_the_magnitude_curve_measures_each_arm_at_each_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setenv("GANPRUNE_PRECISION", "float32")
    monkeypatch.setattr(magnitude, "mnist", small_data)
    sizes = {"width": 2, "dense_steps": 1, "finetune_steps": 1, "samples": 40}
    curve = magnitude.MagnitudeCurve(sparsities=(0.5,), **sizes)
    rows = records.run(curve, [0], tmp_path / "rows.jsonl")
    stages = ["pruned, not recalibrated", "pruned", "fine-tuned", "fine-tuned, raw weights"]
    expected = [("dense", stage) for stage in (stages[1], *stages[2:])]
    expected += [(score, stage) for score in curve.scores for stage in stages]
    assert [(row["score"], row["stage"]) for row in rows] == expected
    for row in rows:
        assert row["sparsity"] == (0.0 if row["score"] == "dense" else 0.5)
        if row["score"] != "dense":
            assert row["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
        if row["stage"].startswith("fine-tuned"):
            assert row["arithmetic"] == "float32"
