"""The book's own Sphinx extension: notebook cache, local JavaScript, run times, records as tables."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import hosted  # noqa: E402
import lesson_plan  # noqa: E402
from light_pages import lighten_site  # noqa: E402

from book import digest  # noqa: E402

CACHED_BY = ("ganprune", "constraints.txt")  # records lie inside the package
BENCHMARKS = ROOT / "benchmarks" / "latest.json"
INITIAL_MASKS = ROOT / "ganprune" / "assets" / "records" / "initial_masks.jsonl"
TIMINGS = ROOT / "book" / "timings.jsonl"
KEEP_CACHES = 4
MATHJAX = (  # the parts that the course's formulas need; a macro of another part stops the tests
    *("core", "input/tex-base", "[tex]/ams", "[tex]/boldsymbol", "[tex]/newcommand"),
    *("output/chtml", "a11y/assistive-mml"),
)


# ---------------------------------------------------------------- configuration


def set_cache(app: Sphinx, config: Any) -> None:
    """Key the notebook cache by package, lock and settings, which jupyter-cache itself ignores."""
    settings = ("GANPRUNE_PROFILE", "GANPRUNE_DEVICE", "GANPRUNE_PRECISION")
    key = digest(*CACHED_BY, settings=settings, root=ROOT)[:16]
    caches = ROOT / "_build" / "cache"
    (caches / key).mkdir(parents=True, exist_ok=True)
    os.utime(caches / key)
    newest_first = sorted(caches.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest_first[KEEP_CACHES:]:
        shutil.rmtree(old, ignore_errors=True)
    config.nb_execution_cache_path = str(caches / key)


def set_javascript(app: Sphinx, config: Any) -> None:
    """Serve MathJax and mermaid from the site itself."""
    config.html_static_path = [*config.html_static_path, str(ROOT / "_build" / "javascript")]
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {
        "loader": {"load": [*MATHJAX]},
        "tex": {
            "packages": [
                "base",
                *(name.removeprefix("[tex]/") for name in MATHJAX if name.startswith("[tex]/")),
            ]
        },
    }
    config.mermaid_use_local = "mermaid-module.js"


def drop_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Leave out thebe, which the theme's stack always loads (twice, and from elsewhere)."""

    def wanted(script: Any) -> bool:
        text = (
            f"{getattr(script, 'filename', '')} {getattr(script, 'attributes', {}).get('body', '')} {script}"
        )
        return "thebe" not in text.lower()

    context["script_files"] = [script for script in context.get("script_files", []) if wanted(script)]
    context["css_files"] = [sheet for sheet in context.get("css_files", []) if wanted(sheet)]


# ---------------------------------------------------------------- measured times


def execution_times(env: Any) -> dict[str, float]:
    """Return notebook → seconds of its execution, for every notebook of this build."""
    data = getattr(env, "nb_metadata", {})
    runs = {page: (values.get("exec_data") or {}).get("runtime") for page, values in sorted(data.items())}
    return {page: round(float(seconds), 2) for page, seconds in runs.items() if seconds is not None}


def machine() -> str:
    """Return the processor cores that a notebook of this build could use, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} CPU core{'s' if cores != 1 else ''}"


def in_words(seconds: float) -> str:
    """Return a duration as a reader says it."""
    if seconds < 1:
        return "less than a second"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def recorded_times(page: str) -> list[dict]:
    """Return the last recorded run of a notebook on each other device."""
    if not TIMINGS.is_file():
        return []
    rows = [json.loads(line) for line in TIMINGS.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list({(row["device"], row["profile"]): row for row in rows if row["notebook"] == page}.values())


def profile() -> str:
    """Return the profile of this build."""
    return os.environ.get("GANPRUNE_PROFILE") or "laptop"


def add_chapter_time(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put under a notebook's title how long it took."""
    seconds = execution_times(app.env).get(page)
    title = next(iter(doctree.findall(nodes.title)), None)
    if seconds is None or title is None:
        return
    parts = [f"{in_words(seconds)} on {machine()} (profile {profile()})"]
    parts += [
        f"{in_words(row['seconds'])} on {row['device']} (profile {row['profile']})"
        for row in recorded_times(page)
    ]
    paragraph = nodes.paragraph(
        "", "Measured run time of this page: " + "; ".join(parts) + ".", classes=["chapter-time"]
    )
    title.parent.insert(title.parent.index(title) + 1, paragraph)


def write_timings(app: Sphinx, error: Exception | None) -> None:
    """Leave ``timings.json`` (notebook → seconds) beside the built pages."""
    if error is None and app.builder.format == "html":
        path = Path(app.outdir).parent / "timings.json"
        path.write_text(json.dumps(execution_times(app.env), indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- numbers


def number_by_chapter(app: Sphinx, env: Any) -> None:
    """Number figures, equations and exercises by the chapter in a notebook's file name: Exercise 6.1."""
    for page, kinds in env.toc_fignumbers.items():
        chapter = re.match(r"notebooks/(\d+)_", page)
        for numbers in kinds.values() if chapter else ():
            for place, name in enumerate(sorted(numbers, key=numbers.get), start=1):
                numbers[name] = (int(chapter[1]), place)


# ---------------------------------------------------------------- tables


def table(head: list[str], rows: list[list[nodes.Node | str]], numbers: tuple[int, ...] = ()) -> nodes.table:
    """Return a docutils table; the columns named in ``numbers`` are set flush right."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))

    def line(cells: list[nodes.Node | str]) -> nodes.row:
        entries = []
        for column, cell in enumerate(cells):
            content = cell if isinstance(cell, nodes.Node) else nodes.Text(str(cell))
            classes = ["text-right"] if column in numbers else []
            entries.append(nodes.entry("", nodes.paragraph("", "", content), classes=classes))
        return nodes.row("", *entries)

    group += nodes.thead("", line(list(head)))
    group += nodes.tbody("", *(line(row) for row in rows))
    return nodes.table("", group, classes=["course-table"])


class PendingTimes(nodes.General, nodes.Element):
    """Stands for the table of run times until every notebook has run."""


class ChapterTimes(SphinxDirective):
    """A table of every notebook's run time in this build."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        return [PendingTimes()]


def fill_chapter_times(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Replace the placeholder with the table."""
    for pending in list(doctree.findall(PendingTimes)):
        rows: list[list[nodes.Node | str]] = []
        for name, seconds in execution_times(app.env).items():
            title = app.env.titles[name].astext()
            link = nodes.reference("", title, refuri=app.builder.get_relative_uri(page, name), internal=True)
            elsewhere = "; ".join(
                f"{in_words(row['seconds'])} ({row['device']})" for row in recorded_times(name)
            )
            rows.append([link, in_words(seconds), elsewhere or "not recorded"])
        head = ["Chapter", f"This build: {machine()}, profile {profile()}", "Recorded elsewhere"]
        if all(row[-1] == "not recorded" for row in rows):
            head, rows = head[:-1], [row[:-1] for row in rows]
        pending.replace_self(
            table(head, rows) if rows else nodes.paragraph("", "No notebook is part of this build.")
        )


def number(value: Any) -> str:
    """Return a measured value with three significant digits, zeros at the end too: 1.00, not 1."""
    return f"{value:#.3g}".rstrip(".") if isinstance(value, float) else str(value)


class BenchmarkTable(SphinxDirective):
    """The recorded rows of the benchmarks that its arguments name, and below them what they were measured on."""

    optional_arguments = 99

    def run(self) -> list[nodes.Node]:
        """Read the record and lay it out."""
        self.env.note_dependency(str(BENCHMARKS))
        if not BENCHMARKS.is_file():
            return [nodes.paragraph("", "No benchmark has been recorded yet; run make bench RECORD=1.")]
        record = json.loads(BENCHMARKS.read_text(encoding="utf-8"))
        found = [row for row in record["rows"] if row["benchmark"] in self.arguments]
        if not found:
            return [nodes.paragraph("", f"Not recorded yet: {', '.join(self.arguments)}.")]
        rows: list[list[nodes.Node | str]] = []
        for row in found:
            value = "never reached" if row["value"] is None else f"{number(row['value'])} {row['unit']}"
            if row["value"] is not None and {"low", "high"} <= row["details"].keys():
                value += f" [{number(row['details']['low'])}, {number(row['details']['high'])}]"
            bar = "–" if row["bar"] is None else f"{row['sense']} {number(float(row['bar']))}"
            verdict = {True: "holds", False: "missed", None: "–"}[row["holds"]]
            rows.append([row["name"], value, bar, verdict])
        behind = [f"Measured {what}." for what in conditions(record, self.arguments)]
        return [table(["What", "Measured", "Bar", "Verdict"], rows), nodes.paragraph("", " ".join(behind))]


def conditions(record: dict[str, Any], benchmarks: Iterable[str]) -> list[str]:
    """Return when, on what and with which versions benchmarks were measured; what several share is said once."""
    found: dict[str, list[str]] = {}
    for name in benchmarks:
        if name in record["conditions"]:
            one = record["conditions"][name]
            machine = (
                f"{one['machine']['processor']}, {one['machine']['cores']} cores, {one['machine']['memory']}"
            )
            said = f"on {one['time'][:10]} on {machine}, with PyTorch {one['versions']['torch']}"
            found.setdefault(said, []).append(name)
    return [said if len(found) == 1 else f"{said} ({', '.join(names)})" for said, names in found.items()]


class InitialMasksTable(SphinxDirective):
    """Weights that pruning before training keeps in each layer, by score, from the record."""

    def run(self) -> list[nodes.Node]:
        """Read the record and lay it out."""
        self.env.note_dependency(str(INITIAL_MASKS))
        seeds = [json.loads(line) for line in INITIAL_MASKS.read_text(encoding="utf-8").splitlines()]
        records = [seed | row for seed in seeds for row in seed["rows"]]
        layers = {row["layer"]: row for row in records}
        head = ["Score"] + [
            f"{name.split('.')[-2]} ({row['total']:,} weights, {row['outputs']} outputs)"
            for name, row in layers.items()
        ]
        rows: list[list[nodes.Node | str]] = []
        for score in dict.fromkeys(row["score"] for row in records):
            cells: list[nodes.Node | str] = [score]
            for layer in layers:
                kept = [row["kept"] for row in records if (row["score"], row["layer"]) == (score, layer)]
                cells.append(f"{sum(kept) / len(kept):,.0f} ({min(kept):,} to {max(kept):,})")
            rows.append(cells)
        count = len({row["seed"] for row in records})
        kept_in_all = sum(row["kept"] for row in records) / len(records) * len(layers)
        share = kept_in_all / sum(row["total"] for row in layers.values())
        note = f"Kept in all: {share:.1%} of the weights. {count} seeds; recorded at commit {records[-1]['commit']}."
        return [table(head, rows, tuple(range(1, len(head)))), nodes.paragraph("", note)]


def curves_of(benchmark: str, x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return the recorded curves of a benchmark: row name → values under the keys x and y of its details."""
    record = json.loads(BENCHMARKS.read_text(encoding="utf-8")) if BENCHMARKS.is_file() else {"rows": []}
    return {
        row["name"]: (row["details"][x], row["details"][y])
        for row in record["rows"]
        if row["benchmark"] == benchmark and x in row["details"] and y in row["details"]
    }


def draw_curves(
    curves: dict[str, tuple[list[float], list[float]]], labels: tuple[str, str], log: bool
) -> Figure:
    """Return a figure with one line per curve; the legend has what follows the last comma or colon of a name."""
    figure = Figure(figsize=(7, 3.2 + 0.12 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number // 7 % 4]
        axes.plot(
            x,
            y,
            style,
            marker="osD^v<>"[number % 7],
            color=f"C{number % 7}",
            label=re.split(r"[:,] ", name)[-1],
        )
    if log:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        figure.legend(loc="outside right upper", fontsize="small")
    return figure


class BenchmarkFigure(SphinxDirective):
    """Curves of a recorded benchmark; the content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict] = {
        **dict.fromkeys(("x", "y", "xlabel", "ylabel", "alt"), directives.unchanged_required),
        "log": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Draw the figure below ``_build`` and show it."""
        self.env.note_dependency(str(BENCHMARKS))
        name, options = self.arguments[0], self.options
        curves = curves_of(name, options["x"], options["y"])
        if not curves:
            return [
                nodes.paragraph("", f"No curve of {name} has been recorded yet; run make bench RECORD=1.")
            ]
        path = ROOT / "_build" / "figures" / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure = draw_curves(curves, (options["xlabel"], options["ylabel"]), "log" in options)
        figure.savefig(path, metadata={"Date": None})
        image = nodes.image(uri=f"/{path.relative_to(ROOT).as_posix()}", alt=options["alt"])
        text, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        return [nodes.figure("", image, nodes.caption("", "", *text)), *messages]


# ---------------------------------------------------------------- references


def drop_pages_without_source(app: Sphinx) -> list:
    """Keep modules that have no source, such as ``builtins``, out of the list of modules, where they are dead links."""
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, entry in modules.items() if not entry]:
        del modules[name]
    return []


def documented_at(target: str) -> str | None:
    """Return where a re-exported name (such as ``ganprune.pruning.score``) is documented, else None."""
    package, _, name = target.rpartition(".")
    try:
        value = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, ValueError):
        return None
    found = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return found if found.startswith("ganprune.") and found != target else None


def resolve_public_name(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Node | None:
    """Resolve a reference to a public name in the module that defines it."""
    target = re.sub(r"^gp\.", "ganprune.", node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("ganprune."):
        return None
    found = documented_at(target)
    if found is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node.get("reftype"), found, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_node(PendingTimes)
    app.add_directive("chapter-times", ChapterTimes)
    app.add_directive("benchmark-table", BenchmarkTable)
    app.add_directive("benchmark-figure", BenchmarkFigure)
    app.add_directive("initial-masks-table", InitialMasksTable)
    for hook in (set_cache, set_javascript):
        app.connect("config-inited", hook)
    app.connect("doctree-read", lesson_plan.add_box)
    app.connect("env-check-consistency", number_by_chapter)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-collect-pages", drop_pages_without_source, priority=100)
    app.connect("doctree-resolved", add_chapter_time)
    app.connect("doctree-resolved", fill_chapter_times)
    app.connect("missing-reference", resolve_public_name)
    app.connect("build-finished", write_timings)
    hosted.connect(app)
    app.connect("build-finished", lighten_site)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
