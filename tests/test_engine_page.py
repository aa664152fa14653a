"""The code of the page on the pruning engine runs, with fewer steps, and its tables name what there is."""

import re
from pathlib import Path

import pytest

import ganprune as gp
from ganprune.allocation.shares import ALLOCATION_NAMES

PAGE = (Path(__file__).resolve().parents[1] / "book" / "engine.md").read_text(encoding="utf-8")
FEWER = {
    "steps=1_000": "steps=6",
    "start=100, end=800)": "start=1, end=5)",
    "every=100": "every=2",
    "every=200": "every=3",
    '"rewind_step": 100': '"rewind_step": 2',
    "gp.mnist()": 'gp.mnist("cpu")',
    'load_pretrained("dcgan-mnist")': 'load_pretrained("dcgan-mnist", "cpu")',
    "gp.dcgan(width=8)": 'gp.dcgan(width=4, device="cpu")',
}


@pytest.mark.filterwarnings("ignore:layers whose inputs are no multiple of 4 stay dense")
def test_the_code_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks)
    for long, short in FEWER.items():
        assert long in code
        code = code.replace(long, short)
    found: dict = {}
    exec(compile(code, "book/engine.md", "exec"), found)
    assert found["state"].masks["generator"].sparsity == pytest.approx(0.8, abs=1e-4)
    assert found["moving"].masks["generator"].sparsity == pytest.approx(0.8, abs=1e-4)
    assert found["ticket"].sparsity == pytest.approx(1 - 0.8**2, abs=1e-3)
    assert (
        gp.complexity(found["small"], batch_size=None).macs
        < gp.complexity(found["gan"].generator, batch_size=None).macs
    )


def test_every_score_and_allocation_is_named() -> None:
    for name in (*gp.scores.SCORES, *ALLOCATION_NAMES):
        assert f"`{name}`" in PAGE or f'"{name}"' in PAGE or f"({name}:" in PAGE or f"# {name}:" in PAGE, name
