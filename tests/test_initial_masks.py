"""What pruning before training keeps, at a small size."""

from pathlib import Path

import pytest

from ganprune import records
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.experiments.training import FromScratch

SMALL = FromScratch(channels=(16, 8, 4), judge_channels=(4, 8, 16), rounds=10)


@pytest.mark.parametrize("score", ["random", "magnitude", "snip", "grasp", "synflow"])
def test_every_score_keeps_the_same_number_and_rows_tell_starved_layers(score: str, tmp_path: Path) -> None:
    rows = records.run(InitialMasks(score, 0.9, SMALL), [0], tmp_path / "rows.jsonl")
    weights = {
        key: parameter
        for key, parameter in SMALL.initial(0).generator.named_parameters()
        if key.startswith("layers.deconv") and key.endswith("weight")
    }
    total = sum(weight.numel() for weight in weights.values())
    assert {row["layer"]: row["total"] for row in rows} == {k: w.numel() for k, w in weights.items()}
    assert sum(row["kept"] for row in rows) == total - round(0.9 * total)
    assert all(row["starved"] == (row["kept"] < weights[row["layer"]].shape[1]) for row in rows)
