"""Pictures of one thing at several moments: a slider on a page of the book, a strip elsewhere and on paper."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

_DPI = 100
_SMALLEST = 240  # pixels: smaller images are enlarged by a whole factor, without smoothing


@dataclass(frozen=True)
class Frames:
    """Frames as a notebook and the book show them; ``show_frames`` makes them.

    On a page of the book one frame is seen at a time, and a slider chooses it: by mouse, finger or the arrow keys. On
    paper, in JupyterLab and without JavaScript all frames stand side by side.

    Attributes:
        pictures: one PNG file per frame.
        size: width and height of every frame in pixels.
        labels: what stands under each frame.
        alts: what each frame shows, in words.
        title: what all of them are about; "" for none.
    """

    pictures: tuple[bytes, ...]
    size: tuple[int, int]
    labels: tuple[str, ...]
    alts: tuple[str, ...]
    title: str = ""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"Frames({', '.join(self.labels)})"

    def _repr_html_(self) -> str:
        name = html.escape(self.title or "Frames")
        width, height = self.size
        title = f'<p class="gp-frames-title">{html.escape(self.title)}</p>' if self.title else ""
        shown = "".join(
            f'<figure class="gp-frame" style="flex: 1 1 13em; margin: 0; max-width: {width}px">'
            f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}" width="{width}" '
            f'height="{height}" loading="lazy" decoding="async" style="height: auto; max-width: 100%" '
            f'alt="{html.escape(alt)}"><figcaption>{html.escape(label)}</figcaption></figure>'
            for picture, label, alt in zip(self.pictures, self.labels, self.alts, strict=True)
        )
        return (
            f'<div class="gp-frames" role="group" aria-label="{name}">{title}'
            f'<p class="gp-frames-control" hidden><input type="range" min="0" max="{len(self) - 1}" step="1" '
            f'value="0" autocomplete="off" aria-label="{name}: choose a frame" '
            f'aria-valuetext="{html.escape(self.labels[0])}"></p>'
            f'<div class="gp-frames-strip" style="display: flex; flex-wrap: wrap; gap: 0.75em">{shown}</div></div>'
        )

    def _ipython_display_(self) -> None:
        """Show the frames as a figure is shown, so that no notebook keeps them in its file."""
        from IPython.display import display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)


def show_frames(
    frames: Sequence[Figure | Tensor], labels: Sequence[str], alts: Sequence[str], title: str | None = None
) -> Frames:
    """One thing at several moments, as a slider: training steps, sparsities, rounds.

    Args:
        frames: at least two matplotlib figures, or tensors of images (C, H, W) or (N, C, H, W) with one or three
            channels in [-1, 1]; all of one size. Figures are closed, so that they are not shown twice.
        labels: one per frame, such as "step 200".
        alts: one per frame: what is to be seen in it, for those who do not see it.
        title: what all frames are about.

    Raises:
        TypeError: if a frame is neither a figure nor a tensor.
        ValueError: if there are fewer than two frames, another number of labels or alts, an empty or repeated one, a
            tensor of another shape, or frames of different sizes.
    """
    if len(frames) < 2:
        raise ValueError(f"frames must be at least two, got {len(frames)}")
    for name, texts in (("labels", labels), ("alts", alts)):
        if isinstance(texts, str) or len(texts) != len(frames):
            got = repr(texts) if isinstance(texts, str) else len(texts)
            raise ValueError(f"{name} must be one per frame ({len(frames)}), got {got}")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name}[{number}] must be a text, got {text!r}")
        if len(set(texts)) < len(texts):
            raise ValueError(f"{name} must differ from frame to frame, got {list(texts)}")
    images = [_drawn(frame, f"frames[{number}]") for number, frame in enumerate(frames)]
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"frames must have one size in pixels, got {sorted(sizes)}")
    for frame in frames:
        if isinstance(frame, Figure):
            plt.close(frame)
    pictures = tuple(_as_png(image) for image in images)
    return Frames(pictures, images[0].size, tuple(labels), tuple(alts), title or "")


def _drawn(frame: Figure | Tensor, name: str) -> Image.Image:
    """A frame as an image of few colours, which makes a small file."""
    if isinstance(frame, Figure):
        file = io.BytesIO()
        frame.savefig(file, format="png", dpi=_DPI, facecolor="white")
        return Image.open(file).convert("RGB")
    if not isinstance(frame, Tensor):
        raise TypeError(f"{name} must be a matplotlib figure or a tensor, got {type(frame).__name__}")
    if frame.ndim not in (3, 4) or frame.shape[-3] not in (1, 3):
        raise ValueError(
            f"{name} must have shape (C, H, W) or (N, C, H, W) with 1 or 3 channels, got {tuple(frame.shape)}"
        )
    image = frame.detach().cpu().float()
    if image.ndim == 4:
        image = make_grid(image, nrow=8, padding=1, pad_value=1.0)
    times = -(-_SMALLEST // image.shape[-1])
    values = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(3, -1, -1)
    enlarged = F.interpolate(values[None].float(), scale_factor=float(times))[0]
    return Image.fromarray(enlarged.to(torch.uint8).permute(1, 2, 0).numpy())


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return file.getvalue()
