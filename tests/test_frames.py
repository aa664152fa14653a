"""A slider of frames: plain HTML that a page, a notebook and a printer understand, and no frame without words."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import ganprune as gp

mpl.use("Agg")
show_frames = gp.plots.show_frames
VOID = {"img", "input"}


class Reader(HTMLParser):
    """Checks that tags are closed in turn, and keeps their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(frames: gp.plots.Frames) -> Reader:
    """Read the HTML of frames."""
    reader = Reader()
    reader.feed(frames._repr_html_())
    assert reader.open == []
    return reader


def images(count: int = 3) -> list[torch.Tensor]:
    """Small images of one grey each, from black to white."""
    return [torch.full((1, 8, 8), value) for value in torch.linspace(-1, 1, count).tolist()]


LABELS, ALTS = ["step 0", "step <1>", "step 2"], ["black", 'grey & "even"', "white"]


def test_the_html_has_a_slider_and_every_frame_with_its_words() -> None:
    frames = show_frames(images(), LABELS, ALTS, title="The <game>")
    reader = read(frames)
    (slider,) = [attrs for tag, attrs in reader.tags if tag == "input"]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "0")
    assert slider["aria-label"] == "The <game>: choose a frame"
    shown = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert [attrs["alt"] for attrs in shown] == ALTS
    assert all(attrs["loading"] == "lazy" for attrs in shown)
    assert {(attrs["width"], attrs["height"]) for attrs in shown} == {("240", "240")}
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", frames._repr_html_())
    assert captions == ["step 0", "step &lt;1&gt;", "step 2"]
    assert len(frames) == 3


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = show_frames(images(), LABELS, ALTS)._repr_html_()
    assert "<script" not in text and "http" not in text and not re.search(r"\bon\w+=", text)


def picture(frames: gp.plots.Frames, number: int) -> np.ndarray:
    """Return the pixels of a frame."""
    data = re.findall(r"base64,([^\"]+)", frames._repr_html_())[number]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_images_are_enlarged_without_smoothing() -> None:
    board = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[None]
    frames = show_frames([board, -board], ["a", "b"], ["a board", "its negative"])
    pixels = picture(frames, 0)
    assert pixels.shape == (240, 240, 3)
    assert (pixels[:120, :120] == 0).all() and (pixels[:120, 120:] == 255).all()
    assert (picture(frames, 1) == 255 - pixels).all()


def test_a_batch_becomes_a_grid() -> None:
    batch = torch.zeros(16, 3, 28, 28)
    width, height = show_frames([batch, batch + 1], ["a", "b"], ["grey", "white"]).size
    assert width == 8 * 29 + 1 + (8 * 29 + 1) * (width > 300) and height * 4 >= width


def test_figures_keep_their_size_and_are_closed() -> None:
    figures = [plt.figure(figsize=(3, 2)) for _ in range(2)]
    frames = show_frames(figures, ["a", "b"], ["empty", "empty too"])
    assert frames.size == (300, 200)
    assert not set(plt.get_fignums()) & {figure.number for figure in figures}


def test_a_notebook_does_not_keep_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    show_frames(images(), LABELS, ALTS)._ipython_display_()
    assert shown[0]["text/plain"] == "Frames(step 0, step <1>, step 2)"
    assert "<input" in shown[0]["text/html"]


@pytest.mark.parametrize(
    ("labels", "alts", "message"),
    [
        (LABELS[:2], ALTS, r"labels must be one per frame \(3\), got 2"),
        (LABELS, [*ALTS, "more"], r"alts must be one per frame \(3\), got 4"),
        (LABELS, "abc", r"alts must be one per frame \(3\), got 'abc'"),
        (LABELS, ["black", " ", "white"], r"alts\[1\] must be a text, got ' '"),
        (["a", None, "c"], ALTS, r"labels\[1\] must be a text, got None"),
        (LABELS, ["a plane"] * 3, "alts must differ from frame to frame"),
    ],
)
def test_words_are_demanded(labels: list[str], alts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_frames(images(), labels, alts)


def test_frames_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="frames must be at least two, got 1"):
        show_frames(images(3)[:1], ["a"], ["black"])
    with pytest.raises(ValueError, match=r"frames\[1\] must have shape .* got \(8, 8\)"):
        show_frames([images()[0], torch.zeros(8, 8)], ["a", "b"], ["x", "y"])
    with pytest.raises(TypeError, match=r"frames\[1\] must be a matplotlib figure or a tensor, got list"):
        show_frames([images()[0], [0.0]], ["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"frames must have one size in pixels, got"):
        show_frames([torch.zeros(1, 8, 8), torch.zeros(1, 8, 16)], ["a", "b"], ["x", "y"])
