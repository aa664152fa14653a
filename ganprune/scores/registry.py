"""What a score is, the registry of scores, and the two that look at no data: magnitude and random.

A score gives every prunable weight a number; the weights with the *smallest* numbers are pruned. Scores of
the other families are in ``gradient_scores`` and ``activation_scores``; which weights a score means for
pruning is decided in ``allocation``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_choice
from ganprune.masks.weights import effective_weights, prunable_slots, prunable_weights

ScoreFunction = Callable[..., Mapping[str, Tensor]]


class Scores(dict[str, Tensor]):
    """Weight name → tensor of scores in the shape of the weight; a large score means keep.

    Attributes:
        output_dims: per weight, the dimension that counts outputs: 1 for transposed convolutions, (in, out,
            …), else 0. Allocations that compare within an output, or along the inputs, need it.
    """

    def __init__(self, values: Mapping[str, Tensor], output_dims: Mapping[str, int]) -> None:
        super().__init__(values)
        self.output_dims = dict(output_dims)


@dataclass(frozen=True)
class RegisteredScore:
    """A score with its name and the allocation that its paper uses."""

    name: str
    function: ScoreFunction
    allocation: str

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that the function understands, besides the model."""
        return {k: p for k, p in inspect.signature(self.function).parameters.items() if k != "model"}


SCORES: dict[str, RegisteredScore] = {}


def register_score(name: str, allocation: str = "global") -> Callable[[ScoreFunction], ScoreFunction]:
    """Decorator that adds a score to the registry, so that :func:`score`, ``prune`` and the command line know
    it.

    The function is called with the model and those of ``loss_fn``, ``inputs``, ``seed``, ``sparsity`` and
    ``protect`` that it names, with options of its own beside them. It returns one tensor per prunable weight
    and leaves the model as it was.

    Args:
        name: as users write it.
        allocation: the allocation that ``prune`` uses when none is asked for.
    """

    def register(function: ScoreFunction) -> ScoreFunction:
        SCORES[name] = RegisteredScore(name, function, allocation)
        return function

    return register


def get_score(name: str) -> RegisteredScore:
    """The registered score of that name.

    Raises:
        ValueError: if there is none.
    """
    if name == "movement":
        raise ValueError(
            "score 'movement' is gathered while training: use MovementPruning with train, or MovementPhase in a "
            "loop of your own"
        )
    check_choice("score", name, sorted(SCORES))
    return SCORES[name]


def score(
    model: nn.Module,
    name: str,
    loss_fn: Any = None,
    inputs: Any = None,
    *,
    protect: Iterable[str] = (),
    seed: int = 0,
    sparsity: float | None = None,
    **options: Any,
) -> Scores:
    """Scores every prunable weight of a network. The network is left as it was, buffers and modes included.

    Args:
        model: the network that is scored, a generator or a discriminator.
        name: one of ``SCORES``.
        loss_fn: for scores by gradients, a closure ``loss_fn(model)`` that yields one scalar loss per batch,
            such as ``generator_loss(gan)`` for a generator, whose gradient goes through the discriminator.
        inputs: for scores by activations, inputs of the model: a tensor, a tuple (several arguments), or an
            iterable of these (batches).
        protect: layers to leave out.
        seed: for scores that draw random numbers.
        sparsity: for scores that are computed in rounds towards a sparsity (SynFlow).
        options: further arguments of that score.

    Returns:
        The scores; the weights with the smallest are to be pruned.

    Raises:
        ValueError: if the name is unknown, something that the score needs is missing, or a score or a weight
            is not finite.
        TypeError: if the score does not know an option.
    """
    chosen = get_score(name)
    known = chosen.parameters
    given = {"loss_fn": loss_fn, "inputs": inputs, "sparsity": sparsity, "seed": seed}
    arguments = {key: value for key, value in given.items() if key in known and value is not None}
    needed = [
        k for k, p in known.items() if p.default is p.empty and k not in (*arguments, *options, "protect")
    ]
    if needed:
        raise ValueError(f"score {name!r} needs {', '.join(needed)}")
    own = [key for key in known if key not in (*given, "protect")]
    unknown = [key for key in options if key not in own]
    if unknown:
        raise TypeError(
            f"score {name!r} knows no option {', '.join(unknown)}; its options: {', '.join(own) or 'none'}"
        )
    slots = prunable_slots(model, protect)
    _check_finite({key: slot.raw.detach() for key, slot in slots.items()}, "weights")
    values = chosen.function(
        model, protect=tuple([protect] if isinstance(protect, str) else protect), **arguments, **options
    )
    _check_finite(values, f"scores {name!r}")
    return Scores(
        {key: values[key].detach() for key in slots}, {key: slot.output_dim for key, slot in slots.items()}
    )


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    flags = torch.stack([torch.isfinite(value).all().cpu() for value in tensors.values()]).tolist()
    bad = [key for key, finite in zip(tensors, flags, strict=True) if not finite]
    if bad:
        raise ValueError(f"{what} must be finite, got NaN or infinity in {', '.join(bad)}")


@register_score("magnitude")
def magnitude(model: nn.Module, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|w|`` (Han et al. 2015, "Learning both weights and connections"); w is the effective weight under a
    norm."""
    return {key: weight.abs() for key, weight in effective_weights(model, protect).items()}


@register_score("random")
def random(model: nn.Module, seed: int = 0, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """Uniform in [0, 1): the control. Drawn on the CPU, so that a seed gives the same mask on every
    device."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(weight.shape, generator=generator).to(weight.device)
        for key, weight in prunable_weights(model, protect).items()
    }
