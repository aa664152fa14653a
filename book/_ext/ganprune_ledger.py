"""The claims ledger in the book: a table and a figure made from the records, and verdict words that cannot go stale.

- ``{claims-table}`` lays out every claim, its verdict and its effect.
- ``{claims-figure}`` draws all effects.
- ``{recipes-table}`` and ``{recipes-figure}`` show the search of the training recipe.
- ``{says}`4b supported``` in a sentence gives the word "supported", and is an error in the build when the record says
  something else. So the build names the sentences that a new record has made false.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from ganprune.experiments.arms import arms_of
from ganprune.experiments.claims import shipped_verdicts
from ganprune.experiments.studies import STUDIES, recipe_arms
from ganprune.experiments.verdicts import Verdict
from ganprune.records.store import SHIPPED, read, rows_of

logger = logging.getLogger(__name__)
MARKS = {"supported": "✓", "not supported": "✗", "not decided": "?"}
COLOURS = {"supported": "#0072B2", "not supported": "#D55E00", "not decided": "0.55"}
ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {path.name[:2]: path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}


verdicts = lru_cache(shipped_verdicts)


def effect(verdict: Verdict) -> str:
    """The effect with its interval, as a sentence would give it."""
    if verdict.effect is None or not verdict.n:
        return "–"
    sign = "× " if verdict.scale == "ratio" else ""
    return (
        f"{sign}{verdict.effect:.3g} [{verdict.low:.3g}, {verdict.high:.3g}]"
        if verdict.low is not None
        else "–"
    )


class ClaimsTable(SphinxDirective):
    """A table for each study, a row for each claim: number, sentence and source, verdict, effect, seeds."""

    def run(self) -> list[nodes.Node]:
        """Write the table in MyST and have it parsed, so that citations and links are like any others."""
        for path in SHIPPED.glob("*.jsonl"):
            self.env.note_dependency(str(path))
        lines: list[str] = []
        for name, found in itertools.groupby(verdicts().values(), key=lambda verdict: verdict.study):
            question, number, _ = STUDIES[name]
            chapter = CHAPTERS.get(f"{number:02}")
            where = f" Shown in {{doc}}`chapter {number} </notebooks/{chapter}>`." if chapter else ""
            lines += [f"**{question}**{where} Repeat it: `ganprune experiment run {name}`", ""]
            lines += ["| Claim | In words | Verdict | Effect, 95% interval |", "|---|---|---|---|"]
            for verdict in found:
                words = verdict.text[0].upper() + verdict.text[1:]
                words += f" {{cite:p}}`{verdict.source}`" if verdict.source else ""
                seeds = f"{verdict.n} seeds" if verdict.n else "not measured yet"
                if verdict.detectable is not None:
                    seeds += f"; {verdict.detectable:.3g} would show"
                word = f"{MARKS[verdict.verdict]} {verdict.verdict} ({seeds})"
                mark = " †" if verdict.mixed else ""
                lines.append(f"| {verdict.claim} | {words} | {word} | {effect(verdict)}{mark} |")
            lines.append("")
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, container)
        return list(container.children)


class ClaimsFigure(SphinxDirective):
    """All effects that are ratios, on one logarithmic axis, with their intervals."""

    has_content = True
    option_spec: ClassVar[dict] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Draw the figure, and refer to it."""
        figure = draw([verdict for verdict in verdicts().values() if verdict.scale == "ratio"])
        return shown(self, figure, "claims")


def shown(directive: SphinxDirective, figure: Figure, name: str) -> list[nodes.Node]:
    """Save a figure below ``_build``, and refer to it; the directive's content is the caption."""
    path = ROOT / "_build" / "figures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    image = nodes.image(uri=f"/{path.relative_to(ROOT).as_posix()}", alt=directive.options["alt"])
    text, messages = directive.parse_inline(" ".join(directive.content))
    return [nodes.figure("", image, nodes.caption("", "", *text)), *messages]


def draw(found: list[Verdict]) -> Figure:
    """Effects as dots with intervals, coloured by verdict; what is not measured yet is left out."""
    known = [verdict for verdict in found if verdict.n and verdict.effect and verdict.low and verdict.high]
    figure = Figure(figsize=(7, 1.2 + 0.24 * max(1, len(known))), layout="constrained")
    axes = figure.add_subplot()
    for place, verdict in enumerate(reversed(known)):
        colour = COLOURS[verdict.verdict]
        middle, low, high = (
            min(max(end or 1.0, 0.02), 50.0) for end in (verdict.effect, verdict.low, verdict.high)
        )
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
        axes.plot([middle], [place], "o", color=colour, markersize=4)
    for word, colour in COLOURS.items():
        axes.plot([], [], "o-", color=colour, label=word)
    axes.axvspan(1 / 1.1, 1.1, color="0.9", zorder=0)
    axes.set(xscale="log", xlabel="effect (ratio to the control; grey: counts as a match)")
    axes.set_yticks(range(len(known)), [verdict.claim for verdict in reversed(known)], fontsize=7)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


@lru_cache
def recipes() -> dict[str, list[tuple[float, float, float]]]:
    """Each recipe that was tried → (steps, processor seconds up to there, digit-FID on validation)."""
    rows = [row for path in sorted(SHIPPED.glob("from_scratch.jsonl")) for row in read(path)]
    curves = {}
    for name, arm in recipe_arms(arms_of("laptop")).items():
        own = [row for row in rows_of(rows, arm) if row["split"] == "validation"]
        own = [row for row in own if row["network"] == "generator_ema"]
        if own:
            rate = own[-1]["processor_seconds"] / own[-1]["step"]
            curves[name] = sorted((row["step"], rate * row["step"], row["digit_fid"]) for row in own)
    return curves


class RecipesFigure(SphinxDirective):
    """Quality against processor time for each recipe that was tried."""

    has_content = True
    option_spec: ClassVar[dict] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Draw the figure, or say that nothing is recorded."""
        if not recipes():
            return [nodes.paragraph("", "No search of recipes has been recorded yet.")]
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(recipes().items()):
            _, seconds, distances = zip(*points, strict=True)
            style = {
                "color": f"C{number % 7}",
                "linestyle": ("-", "--")[number // 7],
                "marker": "osD^v<>"[number % 7],
            }
            axes.plot(seconds, distances, label=name, markersize=4, **style)
        axes.set(
            xscale="log", yscale="log", xlabel="processor seconds, one thread", ylabel="digit-FID, validation"
        )
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
        return shown(self, figure, "recipes")


class RecipesTable(SphinxDirective):
    """The last figures of each recipe that was tried."""

    def run(self) -> list[nodes.Node]:
        """Lay them out."""
        lines = ["| Recipe | Steps | Processor seconds | digit-FID |", "|---|---:|---:|---:|"]
        for name, points in recipes().items():
            steps, seconds, distance = points[-1]
            lines.append(f"| {name} | {steps:,} | {seconds:,.0f} | {distance:.2f} |")
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, container)
        return list(container.children)


class Says(SphinxRole):
    """A verdict word in a sentence, checked against the record."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Give the word; report it if the record says something else."""
        claim, _, word = self.text.partition(" ")
        known = verdicts().get(claim)
        if known is None or known.verdict != word:
            found = "there is no such claim" if known is None else f"the record says {known.verdict!r}"
            logger.error(
                "claim %s is said to be %r, but %s", claim, word, found, location=self.get_location()
            )
        return [nodes.emphasis("", word)], []


class Effect(SphinxRole):
    """The effect of a claim with its interval, from the record."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Give the numbers."""
        return [nodes.Text(effect(verdicts()[self.text]))], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("claims-figure", ClaimsFigure)
    app.add_directive("recipes-table", RecipesTable)
    app.add_directive("recipes-figure", RecipesFigure)
    app.add_role("says", Says())
    app.add_role("effect", Effect())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
