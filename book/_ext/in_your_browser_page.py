"""Generators that draw in the reader's browser: the directives for them, and their files among the site's.

- ``{generator-in-browser}`` shows slider, seed and digits; ``book/_static/in-your-browser`` has the scripts.
- ``{generator-figures}`` lays out what is known about every network that the slider offers.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from in_your_browser import DIGITS, name_of, prepare
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ganprune.experiments.page_files import SPARSITIES, dense_onnx_path, page_path
from ganprune.inference.sparse_file import SparseFile, load_sparse

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "_build" / "javascript" / "onnxruntime-web"
PERCENTS = {round(100 * sparsity): sparsity for sparsity in SPARSITIES}

WIDGET = """
<div class="gp-generator" data-digits="{digits}" data-percents="{percents}">
  <form class="gp-generator-controls" hidden>
    <label class="gp-generator-slide">Sparsity <span class="gp-generator-percent" aria-hidden="true">{percent}%</span>
      <input class="gp-generator-sparsity" type="range" min="0" max="{last}" step="1" value="{start}">
    </label>
    {seed}
    <button class="gp-generator-live" type="submit">Draw {digits} {what}</button>
  </form>
  <p class="gp-generator-status" role="status">Recorded pictures. With JavaScript, your browser draws its own.</p>
  <div class="gp-generator-pictures">
    <img class="gp-generator-recorded" src="{picture}" alt="{digits} digits, recorded at {percent}% sparsity">
    <canvas class="gp-generator-canvas" role="img" aria-label="{digits} digits" hidden></canvas>
  </div>
  <dl class="gp-generator-figures" hidden>{figures}</dl>
  {compare}
</div>
"""
SEED = """<label class="gp-generator-live">Seed
      <input class="gp-generator-seed" type="number" min="0" max="4294967295" step="1" value="0">
    </label>"""
COMPARE = """<div class="gp-generator-compare gp-generator-live">
    <button class="gp-generator-compare-button" type="button">Compare with the dense generator in ONNX Runtime Web
    (loads {megabytes:.0f} MB)</button>
    <p class="gp-generator-compare-result" role="status"></p>
  </div>"""
FIGURES = {
    "time": "time here",
    "weights": "weights left",
    "bytes": "downloaded: network, kernel",
    "fid": "digit-FID, recorded",
    "precision": "precision, recorded",
    "recall": "recall, recorded",
}


@cache
def network(percent: int) -> SparseFile:
    """What the file of a sparsity holds."""
    return load_sparse(page_path(PERCENTS[percent]))


def megabytes_of_comparison() -> float:
    """What the comparison loads: the runtime, and the dense generator for it."""
    files = [dense_onnx_path(), *(path for path in RUNTIME.iterdir() if path.suffix in (".mjs", ".wasm"))]
    return sum(path.stat().st_size for path in files) / 1e6


class GeneratorInBrowser(SphinxDirective):
    """A generator that draws in the reader's browser; without script it is a recorded picture."""

    option_spec: ClassVar[dict] = {
        "digits": directives.positive_int,
        "percents": directives.positive_int_list,
        "start": directives.nonnegative_int,
        "figures": directives.unchanged,
        "small": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Write its HTML."""
        digits, small = self.options.get("digits", DIGITS[0]), "small" in self.options
        percents = (
            [int(each) for each in self.options["percents"]] if "percents" in self.options else [*PERCENTS]
        )
        percent = self.options.get("start", percents[0])
        names = self.options["figures"].split() if "figures" in self.options else FIGURES
        if (
            digits not in DIGITS
            or not {percent, *percents} <= PERCENTS.keys()
            or not {*names} <= FIGURES.keys()
        ):
            raise self.error(
                f"no pictures of {digits} digits at {percents} with the figures {names} are made"
            )
        root = "../" * self.env.docname.count("/")
        place = f"{root}_static/in-your-browser/{name_of(PERCENTS[percent])}-{digits}.png"
        shown = WIDGET.format(
            digits=digits,
            percents=" ".join(map(str, percents)),
            percent=percent,
            last=len(percents) - 1,
            start=percents.index(percent),
            picture=html.escape(place),
            what="others" if small else "digits",
            seed="" if small else SEED,
            compare="" if small else COMPARE.format(megabytes=megabytes_of_comparison()),
            figures="".join(
                f'<div><dt>{FIGURES[name]}</dt><dd data-figure="{name}"></dd></div>' for name in names
            ),
        )
        return [nodes.raw("", shown, format="html")]


class GeneratorFigures(SphinxDirective):
    """A row for each network of the slider: weights, size and recorded quality, from the file itself."""

    def run(self) -> list[nodes.Node]:
        """Read the files and lay the figures out."""
        from ganprune_site import table

        rows: list[list[nodes.Node | str]] = []
        for percent, sparsity in PERCENTS.items():
            self.env.note_dependency(str(page_path(sparsity)))
            file, size = network(percent), page_path(sparsity).stat().st_size
            quality = [f"{file.metadata[name]:.{places}f}" for name, places in QUALITY.items()]
            rows.append([f"{percent}%", f"{file.program.nonzeros:,}", f"{size / 1000:,.0f} kB", *quality])
        head = ["Sparsity", "Weights left", "File", "digit-FID", "Precision", "Recall"]
        return [table(head, rows, tuple(range(len(head))))]


QUALITY = {"digit_fid": 2, "precision": 3, "recall": 3}


def serve_files(app: Sphinx, config: Any) -> None:
    """Make the files, and serve them beside the scripts."""
    config.html_static_path = [*config.html_static_path, str(prepare())]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_directive("generator-in-browser", GeneratorInBrowser)
    app.add_directive("generator-figures", GeneratorFigures)
    app.connect("config-inited", serve_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
