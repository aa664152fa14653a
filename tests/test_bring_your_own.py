"""The page "Bring your own generator" runs from top to bottom: its files are written, its commands are called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ganprune as gp
from ganprune.__main__ import main
from ganprune.networks import trust

PAGE = (Path(__file__).resolve().parents[1] / "book" / "bring-your-own.md").read_text(encoding="utf-8")
FEWER = {
    "width=32": "width=4",
    "--steps 2000": "--steps 2 --batch-size 8 --samples 8",
    "theirs/weights.pt --data folder:photos\n": "theirs/weights.pt --data folder:photos --samples 8\n",
    "--split test": "--split test --samples 8",
    "recalibrate_batchnorm(small)": "recalibrate_batchnorm(small, batches=2, batch_size=8)",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the page begins with: pictures of three kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    random = np.random.default_rng(0)
    for number in range(66):
        pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 120
        kind = tmp_path / "photos" / "abc"[number % 3]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(kind / f"{number}.png")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name == "networks" or name.startswith("mine_"):
            del sys.modules[name]


def publish(folder: Path) -> None:
    """Save weights as people do, beside those of other networks."""
    sys.path.insert(0, str(folder / "theirs"))
    from networks import Generator  # type: ignore[import-not-found]

    torch.manual_seed(0)
    saved = {"g_ema": {f"module.{k}": v for k, v in Generator().state_dict().items()}, "step": 3}
    torch.save(
        saved | {"d": {"weight": torch.ones(2, 2)}, "optim": {"state": {}}}, folder / "theirs" / "weights.pt"
    )


def test_the_page_runs_from_top_to_bottom(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE
    for long, short in FEWER.items():
        assert long in page, f"the page no longer says {long}"
        page = page.replace(long, short)
    found: dict = {}
    commands = 0
    said = ""
    for language, code in re.findall(
        r"^```(python|bash|text)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE
    ):
        if language == "text":
            assert set(code.splitlines()) <= set(said.splitlines())
            continue
        capsys.readouterr()
        file = re.match(r"# (\S+\.py)\n", code)
        if file is not None:
            Path(file[1]).parent.mkdir(exist_ok=True)
            Path(file[1]).write_text(code)
            if file[1] == "theirs/networks.py":
                publish(folder)
        elif language == "python":
            exec(compile(code, "book/bring-your-own.md", "exec"), found)
        else:
            for line in code.splitlines():
                assert line.startswith("ganprune ")
                assert main(line.split()[1:]) == 0, capsys.readouterr().err
                commands += 1
        said = capsys.readouterr().out
    assert commands == 9
    averaged = found["pruned"].generator_ema
    expected = gp.sample(averaged, latents=gp.sample_latents(8, 64), labels=2)
    torch.testing.assert_close(found["drawn"], expected, rtol=0, atol=1e-4)
    assert np.abs(found["images"]).max() <= 1
    assert Path("second-class.gps").stat().st_size == found["size"]
    with torch.inference_mode():
        same = found["file"].network(gp.sample_latents(8, 64))
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-4)
    assert found["after"].macs < 0.5 * found["before"].macs
    assert found["mask"].sparsity == pytest.approx(0.5, abs=0.01)
    assert found["halved"][0].out_features == 8
    with trust("mine.py:generator"):
        pruned, final = gp.load("pruned.safetensors"), gp.load("final.safetensors")
    assert pruned.masks["generator"].sparsity == pytest.approx(0.8, abs=1e-3)
    assert final.masks["generator"].sparsity == pytest.approx(0.5, abs=1e-3)
    assert final.generator.network.body[2].out_channels == 4
    assert {"before.png", "after.png"} <= {path.name for path in folder.iterdir()}


def test_what_the_page_says_of_the_options_is_so() -> None:
    """Each option of the table is one of the function."""
    import inspect

    known = inspect.signature(gp.adapt).parameters
    table = PAGE.split("| The generator … | say |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)=", table))
    assert named == set(known) - {"network"}
