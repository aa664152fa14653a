"""Networks of one's own are tried out without a trace, and their arguments stay what they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ganprune.networks.custom import ImportedSpec, check_discriminator, check_generator


class Noisy(nn.Module):
    """Draws random numbers and counts its calls, in evaluation mode too."""

    latent_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 16)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = functional.dropout(self.layer(z.flatten(1)[:, :3]), training=True) + torch.randn(len(z), 16)
        return torch.tanh(h).view(-1, 1, 4, 4)


class Judge(Noisy):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).mean((1, 2, 3))


def test_trying_a_network_out_leaves_no_trace() -> None:
    generator, judge = Noisy(), Judge()
    generator.layer.eval()
    modes = [part.training for network in (generator, judge) for part in network.modules()]
    random_state = torch.random.get_rng_state()
    assert check_generator(generator) == (1, 4, 4)
    check_discriminator(judge, (1, 4, 4))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert generator.calls == judge.calls == 0
    assert modes == [part.training for network in (generator, judge) for part in network.modules()]


@pytest.mark.parametrize("arguments", [{1: 2}, {"table": {1: 2}}, {"rows": [{"a": 1}, ({None: 1},)]}, 3])
def test_keys_that_json_would_turn_into_strings_are_refused(arguments: object) -> None:
    with pytest.raises(ValueError, match="arguments must be a mapping from names to values, got"):
        ImportedSpec("module:Class", arguments)  # type: ignore[arg-type]


def test_arguments_are_held_as_json_holds_them() -> None:
    given = {"sizes": (1, [2, {"a": None}]), "scale": 0.5}
    assert ImportedSpec("module:Class", given).arguments == {"sizes": [1, [2, {"a": None}]], "scale": 0.5}
    for bad in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises(ValueError, match="arguments must be values that JSON can hold"):
            ImportedSpec("module:Class", {"scale": bad})
