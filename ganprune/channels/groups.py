"""Coupled channels as values: what a group is, and what goes from each layer when some of its channels go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Cut = dict[tuple[str, str], set[int]]
"""(name of a part, role) → the indices that go."""


@dataclass(frozen=True)
class Member:
    """What a group of coupled channels is in one layer.

    Attributes:
        name: name of the layer, or of a parameter that lies in no layer.
        role: "output" (rows of a layer's weight, with bias), "input" (the slices that read the channels) or
            "both" (normalisation, embeddings, depth-wise convolutions, single parameters).
        indices: for each coupled channel the indices in this layer; several where a reshape follows.
    """

    name: str
    role: str
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    A layer may be in several groups: behind a concatenation some of its channels go with one producer and the
    rest with another.

    Attributes:
        name: the first layer that makes these channels and has given its name to no other group.
        channels: number of coupled channels.
        members: every layer that must change when one of them goes.
        reason: why the group cannot be pruned; empty if it can.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    reason: str = ""

    @property
    def prunable(self) -> bool:
        """Whether channels of this group can be removed."""
        return not self.reason

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose output channels these are."""
        return tuple(member.name for member in self.members if member.role != "input")

    def cut(self, channels: Iterable[int]) -> Cut:
        """The indices that go, by member and role, when these coupled channels go."""
        channels = list(channels)
        return {
            (member.name, member.role): {i for channel in channels for i in member.indices[channel]}
            for member in self.members
        }


def merge_cuts(cuts: Iterable[Cut]) -> Cut:
    """Several cuts as one."""
    total: Cut = {}
    for cut in cuts:
        for key, indices in cut.items():
            total.setdefault(key, set()).update(indices)
    return total
