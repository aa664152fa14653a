"""Figures say what their rows say."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ganprune as gp

mpl.use("Agg")
plots = gp.plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


ROWS = [
    {"score": score, "sparsity": s, "digit_fid": base * (1 + s) * factor}
    for score, base in (("magnitude", 10.0), ("random", 20.0))
    for s in (0.5, 0.9)
    for factor in (0.9, 1.1)
]


def test_curve_draws_geometric_means_and_bands():
    ax = plots.show_curve(ROWS, floor=3.0, control=[9.0, 11.0])
    line = ax.get_lines()[0]
    assert line.get_xdata() == pytest.approx([0.5, 0.9])
    assert line.get_ydata() == pytest.approx([15 * np.sqrt(0.99), 19 * np.sqrt(0.99)])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["magnitude", "random", "dense, trained just as long", "floor (real images)"]
    assert ax.get_xlabel() == "sparsity (share of zeros)" and ax.get_ylabel() == "digit-FID"
    assert ax.get_yscale() == "log"


def test_samples_show_every_image():
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    ax = plots.show_samples(images, columns=3, title="six")
    shown = ax.get_images()[0].get_array()
    assert (
        shown.shape == (11, 16, 3)
        and shown[2, 2, 0] == pytest.approx(0.0)
        and shown[7, 12, 0] == pytest.approx(1.0)
    )
    with pytest.raises(ValueError, match=r"images must have shape \(N, C, H, W\), got \(4, 4\)"):
        plots.show_samples(torch.zeros(4, 4))


def test_sample_rows_are_labelled():
    figure = plots.show_sample_rows(
        {"before": torch.zeros(3, 1, 8, 8), "after": torch.ones(3, 1, 8, 8)}, title="t"
    )
    assert [ax.get_ylabel() for ax in figure.axes] == ["before", "after"]


def bars(ax):
    """(name under the bar, place within its group) → height."""
    names = [text.get_text() for text in ax.get_xticklabels()]
    found = {}
    for bar in sorted(ax.patches, key=lambda bar: bar.get_x()):
        name = names[round(bar.get_x() + bar.get_width() / 2)]
        found[name, sum(1 for other, _ in found if other == name)] = bar.get_height()
    return found


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1).map(
            lambda report: list(report.items())
        ),
        min_size=1,
        max_size=3,
    ),
    st.randoms(),
)
@settings(max_examples=25)
def test_each_bar_stands_over_the_name_of_its_layer(reports, random):
    """Whatever the order of the layers in a report, and whichever it has."""
    for report in reports:
        random.shuffle(report)
    rows = {
        f"report {number}": [{"name": f"layers.{name}.weight", "sparsity": s} for name, s in report]
        for number, report in enumerate(reports)
    }
    expected = {}
    for report in reports:
        for name, sparsity in report:
            expected.setdefault(name, []).append(1 - sparsity)
    found = bars(plots.show_layer_density(rows))
    plt.close("all")
    assert found == {
        (name, n): height for name, heights in expected.items() for n, height in enumerate(heights)
    }


def test_reports_without_a_row_are_refused():
    for reports in ({}, {"one": []}):
        with pytest.raises(ValueError, match="reports must have at least one row, got none"):
            plots.show_layer_density(reports)


LABELS = ["magnitude", "random", "dense, trained just as long", "a very long label of a third group", "four"]


def draw_curve(ax):
    rows = [{**row, "score": label} for row in ROWS for label in LABELS]
    plots.show_curve(rows, floor=3.0, control=[9.0, 11.0], ax=ax)


def draw_losses(ax):
    history = [{"step": s, "discriminator_loss": 1 / s, "generator_loss": s} for s in range(1, 50)]
    plots.show_losses(history, ax)


def draw_density(ax):
    rows = [{"name": f"layers.deconv{n}.weight", "sparsity": 0.01 * n} for n in range(9)]
    plots.show_layer_density(dict.fromkeys(LABELS, rows), ax)


def draw_weights(ax):
    plots.show_weights({f"layers.deconv{n}.weight": torch.randn(500) for n in range(6)}, 0.5, ax=ax)


@pytest.mark.parametrize("draw", [draw_curve, draw_losses, draw_density, draw_weights])
@pytest.mark.parametrize("layout", ["alone", "two panels"])
def test_no_legend_covers_a_curve_or_a_label(draw, layout):
    columns = 2 if layout == "two panels" else 1
    figure, axes = plt.subplots(1, columns, figsize=(11, 4), layout="constrained", squeeze=False)
    for ax in axes[0]:
        draw(ax)
        ax.set_title("a title")
    figure.draw_without_rendering()
    legends = [ax.get_legend().get_window_extent() for ax in axes[0]]
    for legend in legends:
        assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1 and figure.bbox.y0 <= legend.y0
        for ax in axes[0]:
            texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
            others = [ax.bbox, *(text.get_window_extent() for text in texts if text.get_text())]
            assert not any(legend.overlaps(other) for other in others)
    assert not (len(legends) == 2 and legends[0].overlaps(legends[1]))


def test_a_thing_has_its_colour_in_every_figure():
    def colours(labels):
        rows = [{**ROWS[0], "score": label} for label in labels]
        return {line.get_label(): line.get_color() for line in plots.show_curve(rows).get_lines()}

    both, alone = colours(["something", "random", "magnitude", "else"]), colours(["magnitude", "random"])
    assert both.items() >= alone.items() and len(set(both.values())) == 4
    assert alone["random"] == plots.COLOURS["random"] != plots.COLOURS["magnitude"]
    assert len(colours([f"arm {number}" for number in range(9)])) == 9


@given(
    st.lists(
        st.lists(
            st.one_of(st.text("ab c", max_size=90), st.integers(0, 10**9), st.none()), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.text("xyz ", min_size=1, max_size=50), min_size=3, max_size=3, unique=True),
)
def test_a_table_fits_into_the_book_s_column_and_loses_no_word(rows, headings):
    printed = repr(plots.Table([dict(zip(headings, row, strict=True)) for row in rows]))
    assert all(len(line) <= 76 for line in printed.splitlines())
    letters = "".join(printed.split())
    for value in (*headings, *(cell for row in rows for cell in row if isinstance(cell, str))):
        assert all(word[:37] in letters for word in value.split())


def test_a_wide_table_goes_on_below_under_its_first_column():
    row = {"layer": "deconv1", **{f"a rather long heading, number {n}": n for n in range(4)}}
    assert repr(plots.Table([row])).splitlines() == [
        "layer    a rather long heading, number 0  a rather long heading, number 1",
        "deconv1                                0                                1",
        "",
        "layer    a rather long heading, number 2  a rather long heading, number 3",
        "deconv1                                2                                3",
    ]


def test_losses_and_densities_and_masks():
    history = [{"step": s, "discriminator_loss": 1.0, "generator_loss": 2.0} for s in (50, 100)]
    ax = plots.show_losses(history)
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[1.0, 1.0], [2.0, 2.0]]
    rows = [
        {"name": "layers.deconv1.weight", "sparsity": 0.25},
        {"name": "layers.deconv2.weight", "sparsity": 0.5},
    ]
    ax = plots.show_layer_density({"global": rows, "local": rows})
    assert bars(ax) == {("deconv1", n): 0.75 for n in (0, 1)} | {("deconv2", n): 0.5 for n in (0, 1)}
    ax = plots.show_mask(torch.eye(4, dtype=torch.bool).view(4, 4, 1, 1))
    assert ax.get_images()[0].get_array().shape == (4, 4)
    ax = plots.show_weights({"layers.a.weight": torch.randn(50)}, threshold=0.5)
    assert sorted(line.get_xdata()[0] for line in ax.get_lines()) == [-0.5, 0.5]


def test_the_number_of_seeds_is_never_broken_across_lines_of_the_page() -> None:
    table = gp.plots.Table([{"in words": "1.25 [1.17, 1.34] times, no worse (n = 10)"}])
    space = "\N{NO-BREAK SPACE}"
    assert f"1.25 [1.17, 1.34] times, no worse (n{space}={space}10)" in table._repr_html_()
    assert space not in repr(table)
