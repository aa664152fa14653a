"""Figures say what their rows say."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

import ganprune as gp

mpl.use("Agg")
plots = gp.plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

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


def test_losses_and_densities_and_masks():
    history = [{"step": s, "discriminator_loss": 1.0, "generator_loss": 2.0} for s in (50, 100)]
    ax = plots.show_losses(history)
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[1.0, 1.0], [2.0, 2.0]]
    rows = [
        {"name": "layers.deconv1.weight", "sparsity": 0.25},
        {"name": "layers.deconv2.weight", "sparsity": 0.5},
    ]
    ax = plots.show_layer_density({"global": rows, "local": rows})
    assert [bar.get_height() for bar in ax.patches] == [0.75, 0.5] * 2
    assert [text.get_text() for text in ax.get_xticklabels()] == ["deconv1", "deconv2"]
    ax = plots.show_mask(torch.eye(4, dtype=torch.bool).view(4, 4, 1, 1))
    assert ax.get_images()[0].get_array().shape == (4, 4)
    ax = plots.show_weights({"layers.a.weight": torch.randn(50)}, threshold=0.5)
    assert sorted(line.get_xdata()[0] for line in ax.get_lines()) == [-0.5, 0.5]


def test_pareto_front_is_a_staircase_with_the_dense_network_marked():
    rows = [
        {"effective_macs": 100, "digit_fid": 8.0, "sparsity": 0.0, "pareto": True},
        {"effective_macs": 60, "digit_fid": 40.0, "sparsity": 0.4, "pareto": False},
        {"effective_macs": 10, "digit_fid": 30.0, "sparsity": 0.9, "pareto": True},
    ]
    ax = plots.pareto_front(rows, floor=3.0)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == ["other trials", "Pareto front", "dense", "floor (real images)"]
    assert list(lines["Pareto front"].get_xdata()) == [10, 100]
    assert list(lines["Pareto front"].get_ydata()) == [30, 8]
    assert lines["Pareto front"].get_drawstyle() == "steps-post"
    assert (list(lines["dense"].get_xdata()), list(lines["dense"].get_ydata())) == ([100], [8])
    assert list(lines["other trials"].get_ydata()) == [40]
    assert ax.get_xlabel() == "effective multiply-accumulates per image" and ax.get_ylabel() == "digit-FID"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_rows_of_a_front_alone_need_no_mark_and_an_empty_front_is_refused():
    rows = [{"effective_macs": 5, "test_fid": 2.0, "sparsity": 0.5}]
    ax = plots.pareto_front(rows, y="test_fid", log=False)
    assert [line.get_label() for line in ax.get_lines()] == ["Pareto front"]
    assert (ax.get_xscale(), ax.get_ylabel()) == ("linear", "test_fid")
    with pytest.raises(ValueError, match="at least one on the Pareto front, got none"):
        plots.pareto_front([{**rows[0], "pareto": False}], y="test_fid")
