"""The generators of the browser page: pruned and trained as the course's recovery, made once, with their figures."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from small_data import small_mnist
from tools.small_gans import equal, weights

import ganprune as gp
from ganprune.experiments import page_files
from ganprune.experiments.page_files import SPARSITIES, page_path, recovered, recovery_at
from ganprune.experiments.recovery import COURSE_RECOVERY, Recovery
from ganprune.experiments.training import FromScratch
from ganprune.inference.sparse_file import load_sparse

SHORT = gp.TrainConfig(steps=3, batch_size=8, precision="float32", log_every=3)
SMALL = FromScratch(SHORT, (8, 4, 2), (2, 4, 8), samples=64)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = small_mnist(64)
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(page_files, "course_data", lambda: data)
    monkeypatch.setattr(
        page_files,
        "recovery_at",
        lambda sparsity: Recovery(sparsity, training=SHORT, dense=SMALL, samples=64),
    )
    return tmp_path


def test_every_sparsity_has_the_course_recovery() -> None:
    for sparsity in SPARSITIES:
        experiment = recovery_at(sparsity)
        assert (experiment.sparsity, experiment.training) == (sparsity, COURSE_RECOVERY)
        assert (experiment.score, experiment.allocation, experiment.schedule) == (
            "magnitude",
            "global",
            "one-shot",
        )
        assert experiment.dense == FromScratch()
    assert SPARSITIES[0] == 0.0
    with pytest.raises(ValueError, match=r"sparsity must be one of 0\.0, .*got 0\.6"):
        recovery_at(0.6)


def test_a_pair_is_pruned_trained_and_measured_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = recovered(0.9)
    assert gan.masks["generator"].sparsity == pytest.approx(0.9, abs=0.01)
    rows = list(page_files.recovery_at(0.9).measure(gp.TrainState(gan, SHORT), page_files.course_data(), {}))
    (test,) = (row for row in rows if (row["network"], row["split"]) == ("generator_ema", "test"))
    for name in page_files.FIGURES:
        assert gan.metadata[name] == test[name], name
    assert (gan.metadata["sparsity"], gan.metadata["steps"], gan.metadata["split"]) == (0.9, 3, "test")
    monkeypatch.setattr(page_files, "_make", lambda *_: pytest.fail("made again"))
    assert equal(weights(recovered(0.9)), weights(gan))


def test_a_pair_is_the_one_that_the_experiment_measures(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganprune.experiments.recovery.course_data", page_files.course_data)
    rows = page_files.recovery_at(0.8).run(page_files.SEED)
    wanted = [
        r for r in rows if (r["stage"], r["network"], r["split"]) == ("recovered", "generator_ema", "test")
    ]
    found = recovered(0.8).metadata
    assert [{name: row[name] for name in page_files.FIGURES} for row in wanted] == [
        {name: found[name] for name in page_files.FIGURES}
    ]


def test_the_dense_pair_has_the_same_training_and_no_mask(small: Path) -> None:
    dense, pruned = recovered(0.0), recovered(0.5)
    assert not dense.masks and dense.metadata["steps"] == pruned.metadata["steps"]
    start, _ = page_files.recovery_at(0.0).start(page_files.SEED, page_files.course_data())
    assert not equal(weights(dense), weights(start))


def test_the_files_hold_the_networks_and_their_figures_and_are_always_the_same(small: Path) -> None:
    paths = page_files.make((0.0, 0.5), small / "files")
    assert [path.name for path in paths] == [
        "dcgan-mnist-000.gps",
        "dcgan-mnist-000.onnx",
        "dcgan-mnist-050.gps",
    ]
    latents = gp.sample_latents(9, 64, device="cpu")
    for sparsity in (0.0, 0.5):
        gan, file = recovered(sparsity), load_sparse(page_path(sparsity, small / "files"))
        assert file.metadata == gan.metadata and file.program.sparsity == pytest.approx(sparsity, abs=0.01)
        with torch.inference_mode():
            expected = gan.generator_ema.eval()(latents)
            assert torch.allclose(file.network(latents), expected, atol=1e-5)
    again = page_files.make((0.0, 0.5), small / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_onnx_file_is_the_dense_network(small: Path) -> None:
    page_files.make((0.0,), small / "files")
    session = onnxruntime.InferenceSession(
        page_files.dense_onnx_path(small / "files"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        latents = gp.sample_latents(count, 64, device="cpu")
        (found,) = session.run(None, {"latents": latents.numpy()})
        with torch.inference_mode():
            expected = recovered(0.0).generator_ema.eval()(latents)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_what_the_page_says_of_precision_holds() -> None:
    """At the highest sparsity precision is no lower than before, while recall has collapsed."""
    before, last = (load_sparse(page_path(sparsity)).metadata for sparsity in page_files.SPARSITIES[-2:])
    assert last["precision"] >= before["precision"]
    assert last["recall"] < before["recall"] / 2
