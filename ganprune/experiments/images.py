"""What the measures say about real images that were spoilt on purpose: noise, missing classes, few images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ganprune.core.random import seeded, step_seed
from ganprune.experiments.base import Experiment, course_data
from ganprune.metrics.fidelity import evaluate_images


@dataclass(frozen=True)
class SpoiltImages(Experiment):
    """Images of the train split, spoilt, and measured as if a generator had made them.

    Attributes:
        noise: standard deviation of Gaussian noise on images in [-1, 1], which are clipped afterwards.
        dropped: the digits 0 to ``dropped`` − 1 are left out.
        samples: number of images, drawn anew for each seed, without replacement.
    """

    name: ClassVar[str] = "spoilt images"

    noise: float = 0.0
    dropped: int = 0
    samples: int = 10_000

    @property
    def label(self) -> str:
        """The arm in a few words."""
        spoilt = [f"noise {self.noise:g}"] if self.noise else []
        spoilt += [f"{self.dropped} digits missing"] if self.dropped else []
        return f"{self.samples:,} images, {', '.join(spoilt) or 'as they are'}"

    def images(self, seed: int) -> Tensor:
        """The spoilt images, float32 (N, 1, 28, 28) in [-1, 1]; the draw is the same for every kind of spoiling."""
        train = course_data().train
        order = torch.randperm(len(train), generator=seeded(step_seed(seed, 0, "spoilt")))
        order = order[train.labels.cpu()[order] >= self.dropped][: self.samples]
        images = train.float_images()[order.to(train.device)]
        if not self.noise:
            return images
        random = seeded(step_seed(seed, 0, "noise"))
        return (images + self.noise * torch.randn(images.shape, generator=random).to(images.device)).clamp(
            -1, 1
        )

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for validation and one for test."""
        images, data = self.images(seed), course_data()
        for split in (data.validation, data.test):
            report = evaluate_images(images, split).as_dict()
            report.pop("seed")
            yield {"stage": "measured", **{key: value for key, value in report.items() if value is not None}}
