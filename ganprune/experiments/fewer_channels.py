"""Taking whole channels out of a trained generator, and recovering its quality as that of a pruned one is recovered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ganprune.channels.shrinking import shrink_channels
from ganprune.core.checks import check_number
from ganprune.data.splits import ImageData
from ganprune.experiments.recovery import Recovery
from ganprune.metrics.cost import complexity
from ganprune.networks.gan import GAN
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class FewerChannels(Recovery):
    """A trained generator loses whole channels and is trained on, as long and against the same discriminator as others.

    The channels with the smallest absolute sums of weights go, an equal share in every hidden layer.

    Attributes:
        channel_ratio: share of each hidden layer's channels that is taken out, in [0, 1).
    """

    name: ClassVar[str] = "fewer channels"

    channel_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("channel_ratio", self.channel_ratio, "[0, 1)")

    @property
    def label(self) -> str:
        """The arm in a few words."""
        then = super().label if self.sparsity else f"trained on, {self.steps:,} steps"
        return f"{self.channel_ratio:.0%} of the channels taken out, {then}"

    def reduced(self, gan: GAN) -> GAN:
        """The pair with the smaller generator."""
        return GAN(shrink_channels(gan.generator, self.channel_ratio), gan.discriminator)

    def measure(self, state: TrainState, data: ImageData, shared: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of the stage "recovered", with the sizes of the generator that is left."""
        generator: Any = state.gan.generator
        left = complexity(generator)
        sizes = {"channels": list(generator.spec.channels), "macs": left.macs, "weights": left.prunable}
        yield from super().measure(state, data, {**sizes, **shared})
