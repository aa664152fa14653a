"""The recorded experiments at a small size: what pruning before training keeps, and the dense runs they share."""

import dataclasses
from pathlib import Path

import pytest
import torch

import ganprune as gp
from ganprune.experiments import magnitude
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.networks.build import dcgan
from ganprune.records import statistics as results

ROOT = Path(__file__).resolve().parents[1]


def test_every_score_keeps_the_same_number_and_rows_tell_starved_layers(tmp_path: Path) -> None:
    experiment = InitialMasks(width=4, sparsity=0.9, batches=1, rounds=10)
    rows = results.run(experiment, [0], tmp_path / "rows.jsonl")
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
    rows = results.read(ROOT / "results" / "initial_masks.jsonl")
    experiment = InitialMasks()
    assert {row["config"] for row in rows} == {results.config_hash(experiment)}
    assert len({row["seed"] for row in rows}) >= 5
    assert {row["score"] for row in rows} == set(experiment.scores)
    assert len(rows) == len({(row["seed"], row["score"], row["layer"]) for row in rows})


def test_a_dense_run_is_kept_and_resumed_but_never_that_of_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setenv("GANPRUNE_PRECISION", "float32")
    steps, data = [], gp.mnist("cpu")
    train = magnitude.train

    def counted(state: gp.TrainState, *arguments: object) -> gp.TrainState:
        steps.append(state.config.steps - state.step)
        return train(state, *arguments)

    monkeypatch.setattr(magnitude, "train", counted)
    first = magnitude.dense_gan(2, 2, 0, data)
    again = magnitude.dense_gan(2, 2, 0, data)
    assert steps == [2, 0]
    (kept,) = tmp_path.iterdir()
    state = gp.TrainState.load(kept, "cpu")
    other = gp.TrainState(
        gp.dcgan(width=2, device="cpu"), dataclasses.replace(state.config, learning_rate=0.5)
    )
    train(other, data.train).save(kept)
    anew = magnitude.dense_gan(2, 2, 0, data)
    assert steps == [2, 0, 2]
    for gan in (again, anew):
        pairs = zip(gan.generator.parameters(), first.generator.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
