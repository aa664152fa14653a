"""What a score is, the registry of scores, and the two that look at no data: magnitude and random.

A score gives every prunable weight a number; the weights with the *smallest* numbers are pruned. The other
families stand in ``gradient``, ``synflow`` and ``activation``. Which weights a score means for pruning is decided
in the room ``allocation``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_choice
from ganprune.core.random import keep_random_state, step_seed
from ganprune.masks.left_out import warn_of_left_out
from ganprune.masks.spectral import settled_spectral_norms
from ganprune.masks.weights import effective_weights, prunable_slots, prunable_weights

ScoreFunction = Callable[..., Mapping[str, Tensor]]

NEEDS = ("loss_fn", "inputs", "seed", "sparsity")
"""What a score can ask for, by the names that :func:`score` gives it."""


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
    """A score as it was registered.

    Attributes:
        name: as users write it.
        function: what computes it.
        allocation: the allocation that ``prune`` uses when none is asked for.
        needs: what :func:`score` passes on to the function: of "loss_fn", "inputs", "seed" and "sparsity". The
            first two must be given by the caller.
        optional: of the same, what may be left out.
        options: the names of further arguments of its own.
    """

    name: str
    function: ScoreFunction
    allocation: str = "global"
    needs: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()

    def check_arguments(self, loss_fn: Any, inputs: Any, options: Iterable[str] = ()) -> None:
        """Does nothing if what the score needs is given, and it knows the options.

        Raises:
            ValueError: if ``loss_fn`` or ``inputs`` is needed and None.
            TypeError: if the score does not know an option.
        """
        given = {"loss_fn": loss_fn, "inputs": inputs}
        missing = [key for key, value in given.items() if key in self.needs and value is None]
        if missing:
            raise ValueError(f"score {self.name!r} needs {', '.join(missing)}")
        unknown = [key for key in options if key not in self.options]
        if unknown:
            known = ", ".join(sorted(self.options)) or "none"
            raise TypeError(f"score {self.name!r} knows no option {', '.join(unknown)}; its options: {known}")


SCORES: dict[str, RegisteredScore] = {}


def register_score(
    name: str,
    allocation: str = "global",
    needs: Iterable[str] = (),
    optional: Iterable[str] = (),
    options: Iterable[str] = (),
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Decorator that adds a score to the registry, so that :func:`score`, ``prune`` and the command line know it.

    The function is called with the network, with ``protect`` (a tuple of names), with what is declared here and
    with options of its own, all but the network by keyword. It returns one tensor per prunable weight, in the
    weight's shape.

    Args:
        name: as users write it.
        allocation: the allocation that ``prune`` uses when none is asked for.
        needs: of "loss_fn", "inputs", "seed" and "sparsity", what the function takes. A score that needs a loss
            or inputs is refused without them.
        optional: of the same, what the function takes if it is given.
        options: names of further arguments of its own.

    Raises:
        ValueError: if something else is needed.
    """
    declared = frozenset(needs), frozenset(optional)
    for need in declared[0] | declared[1]:
        check_choice("needs", need, NEEDS)

    def register(function: ScoreFunction) -> ScoreFunction:
        SCORES[name] = RegisteredScore(name, function, allocation, *declared, frozenset(options))
        return function

    return register


def get_score(name: str) -> RegisteredScore:
    """The registered score of that name.

    Raises:
        ValueError: if there is none.
    """
    if name == "movement":
        raise ValueError(
            "score 'movement' is gathered while training: use gp.dynamic.MovementPruning with gp.train, or "
            "gp.dynamic.MovementScores in a loop of your own"
        )
    check_choice("score", name, sorted(SCORES))
    return SCORES[name]


def score(
    network: nn.Module,
    name: str,
    loss_fn: Any = None,
    inputs: Any = None,
    *,
    protect: Iterable[str] = (),
    seed: int = 0,
    sparsity: float | None = None,
    **options: Any,
) -> Scores:
    """Scores every prunable weight of a network, and leaves the network as it was.

    Weights, buffers, modes, gradients and the global random state are the same afterwards. Layers that draw random
    numbers (dropout, noise) draw from ``seed``, so that two calls give the same scores. Older spectral norms whose
    vectors do not fit their weights, as in an untrained network, are scored with vectors that do.

    What is scored is the weight that the forward pass uses: w / σ under PyTorch's spectral norm, for instance.
    A norm or a multiplier that a layer of one's own applies (equalised learning rate, a spectral norm written by
    hand) is seen by magnitude and Wanda where :func:`ganprune.register_layer` was told of it. Elsewhere they score
    the raw weight; such scores compare well within a layer, and badly between layers. Which weights are scored says
    ``prunable_weights``; if a large part of the network's parameters is not among them, a warning says so.

    Args:
        network: the network that is scored, a generator or a discriminator.
        name: one of ``SCORES``.
        loss_fn: for scores by gradients, a closure ``loss_fn(network)`` that yields one scalar loss per batch,
            such as ``generator_loss(gan)`` for a generator, whose gradient goes through the discriminator.
        inputs: for scores by activations, inputs of the network: a tensor, a tuple (several arguments), or an
            iterable of these (batches).
        protect: names of layers to leave out.
        seed: for scores and layers that draw random numbers.
        sparsity: for scores that are computed in rounds towards a sparsity (SynFlow).
        options: further arguments of that score.

    Returns:
        The scores; the weights with the smallest are to be pruned.

    Raises:
        ValueError: if the name is unknown, something that the score needs is missing, a score or a weight is not
            finite, or all scores are zero.
        TypeError: if the score does not know an option.
    """
    chosen = get_score(name)
    chosen.check_arguments(loss_fn, inputs, options)
    given = {"loss_fn": loss_fn, "inputs": inputs, "sparsity": sparsity, "seed": seed}
    arguments = {
        key: value
        for key, value in given.items()
        if key in chosen.needs or (key in chosen.optional and value is not None)
    }
    slots = prunable_slots(network, protect)
    warn_of_left_out(network)
    _check_finite({key: slot.raw.detach() for key, slot in slots.items()}, "weights")
    protected = (protect,) if isinstance(protect, str) else tuple(protect)
    with undisturbed(network, seed):
        values = chosen.function(network, protect=protected, **arguments, **options)
    _check_finite(values, f"scores {name!r}")
    _check_not_all_zero(values, name)
    return Scores(
        {key: values[key].detach() for key in slots}, {key: slot.output_dim for key, slot in slots.items()}
    )


@contextmanager
def undisturbed(network: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside the block random numbers come from a seed and spectral norms fit their weights.

    Afterwards the network's modes, its buffers, its frozen parameters (in which norms of one's own keep vectors) and
    the global random state are what they were, also after an error.
    """
    modes = [(part, part.training) for part in network.modules()]
    buffers = [(part._buffers, name) for part in network.modules() for name in part._buffers]
    places = [(owner, name, owner[name]) for owner, name in buffers]
    tensors = [tensor for _, _, tensor in places if tensor is not None]
    tensors += [parameter for parameter in network.parameters() if not parameter.requires_grad]
    before = [tensor.detach().clone() for tensor in tensors]
    device = next(iter(network.parameters())).device
    try:
        with keep_random_state(device), settled_spectral_norms(network):
            torch.manual_seed(step_seed(seed, 0, "score"))
            yield
    finally:
        for part, training in modes:
            part.training = training
        for owner, name, tensor in places:
            owner[name] = tensor
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)


def warn_of_idle(keys: Iterable[str], what: str) -> None:
    """Warns of layers that took no part, so that all their scores are zero; does nothing if there are none."""
    idle = list(keys)
    if idle:
        warnings.warn(
            f"these layers took no part in {what}, so all their scores are 0 and they are pruned first; "
            f"leave them out with protect: {', '.join(idle)}",
            UserWarning,
            stacklevel=5,
        )


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    flags = torch.stack([torch.isfinite(value).all().cpu() for value in tensors.values()]).tolist()
    bad = [key for key, finite in zip(tensors, flags, strict=True) if not finite]
    if bad:
        raise ValueError(f"{what} must be finite, got NaN or infinity in {', '.join(bad)}")


def _check_not_all_zero(scores: Mapping[str, Tensor], name: str) -> None:
    if not any(torch.stack([value.any().cpu() for value in scores.values()]).tolist()):
        raise ValueError(
            f"scores {name!r} are all 0, so they cannot say which weights to prune. Where they come from a loss, "
            "look at its gradient: a saturated discriminator (one that ends in a sigmoid, or whose logits are "
            "huge) gives none; train it for a few steps or choose another loss"
        )


@register_score("magnitude")
def magnitude(network: nn.Module, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|w|`` (Han et al. 2015, "Learning both weights and connections"); w is the effective weight under a norm of
    PyTorch's and in registered layers, and the raw weight under another norm or multiplier of one's own."""
    return {key: weight.abs() for key, weight in effective_weights(network, protect).items()}


@register_score("random", needs=("seed",))
def random(network: nn.Module, seed: int = 0, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """Uniform in [0, 1), float32: the control. Drawn on the CPU, so that a seed gives the same mask on every
    device."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu").to(
            weight.device
        )
        for key, weight in prunable_weights(network, protect).items()
    }
