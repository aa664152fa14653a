"""What pruning before training keeps, at a small size."""

from pathlib import Path

import pytest

from ganprune import records
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.experiments.training import FromScratch

SMALL = FromScratch(channels=(16, 8, 4), judge_channels=(4, 8, 16), rounds=10)


@pytest.mark.parametrize(
    ("score", "cuts"),
    [("random", 1), ("magnitude", 1), ("snip", 1), ("grasp", 1), ("synflow", 1), ("snip", 3)],
)
def test_every_score_keeps_the_same_number_and_rows_tell_starved_layers(
    score: str, cuts: int, tmp_path: Path
) -> None:
    rows = records.run(InitialMasks(score, 0.9, SMALL, cuts), [0], tmp_path / "rows.jsonl")
    weights = {
        key: parameter
        for key, parameter in SMALL.initial(0).generator.named_parameters()
        if key.startswith("layers.deconv") and key.endswith("weight")
    }
    total = sum(weight.numel() for weight in weights.values())
    assert {row["layer"]: row["total"] for row in rows} == {k: w.numel() for k, w in weights.items()}
    assert sum(row["kept"] for row in rows) == total - round(0.9 * total)
    assert all(row["starved"] == (row["kept"] < weights[row["layer"]].shape[1]) for row in rows)


def test_several_cuts_score_anew_what_is_left() -> None:
    once, thrice = (
        {row["layer"]: row["kept"] for row in InitialMasks("snip", 0.9, SMALL, cuts).run(0)}
        for cuts in (1, 3)
    )
    assert once != thrice and sum(once.values()) == sum(thrice.values())
    by_size = [[row["kept"] for row in InitialMasks("magnitude", 0.9, SMALL, cuts).run(0)] for cuts in (1, 3)]
    assert by_size[0] == by_size[1]  # magnitudes do not change when others go
