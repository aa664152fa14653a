"""What the callbacks of this room share: a look whether training has diverged, and the gradients that masks hide."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ganprune.core.random import step_seed
from ganprune.masks.keep import MaskKeeper
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.weights import weight_slots
from ganprune.pruning import prune
from ganprune.training.loop import DivergenceError
from ganprune.training.state import TrainState


@torch.no_grad()
def check_not_diverged(state: TrainState, network: str, others: Iterable[Tensor] = ()) -> None:
    """Does nothing while a network can be scored.

    The training loop looks at its losses once per ``log_every`` steps. A callback that scores weights in between must
    not take a run that has diverged for a wrong argument.

    Args:
        state: its network and the losses that were not looked at yet.
        network: "generator" or "discriminator".
        others: tensors that must be finite as well.

    Raises:
        DivergenceError: if a loss, a weight or another tensor is NaN or infinite, or so large that its square is.
    """
    model = state.gan.networks()[network]
    tensors = [*state.pending, *model.parameters(), *model.buffers(), *others]
    sums = [tensor.detach().float().square().sum().cpu() for tensor in tensors if tensor.is_floating_point()]
    if not bool(torch.stack(sums).isfinite().all()):
        raise DivergenceError(
            f"training diverged by step {state.step}: weights, gradients or losses of the {network} are NaN, infinite "
            "or too large to be squared; lower learning_rate, or use spectral norm or a penalty"
        )


def draw_first_mask(
    state: TrainState, network: str, sparsity: float, allocation: str, protect: Iterable[str], seed: int
) -> None:
    """Prunes at random a network that is sparse from the start."""
    prune(
        state.gan,
        sparsity,
        which=network,
        score="random",
        allocation=allocation,
        protect=protect,
        seed=step_seed(seed, 0, f"mask {network}"),
    )


def mask_in_force(state: TrainState, network: str) -> Mask:
    """The mask of a network.

    Raises:
        MaskError: if it has none, because the callback was not begun.
    """
    if network not in state.gan.masks:
        raise MaskError(
            f"the {network} has no mask: call begin(state) first, as gp.train does for its callbacks"
        )
    return state.gan.masks[network]


def effective(state: TrainState, network: str) -> dict[str, Tensor]:
    """What the forward pass makes of the weights of a mask, by name."""
    slots = weight_slots(state.gan.networks()[network])
    return {key: slots[key].effective() for key in mask_in_force(state, network)}


def let_gradients_through(state: TrainState, network: str) -> None:
    """From now on gradients are not masked, so that weights can grow by them.

    The mask still holds after each step. For optimisers that treat each weight by itself the kept weights move as they
    would with masked gradients, and moments of weights that come back start at zero.
    """
    state.gan.masks.keeper(network).gradients = "dense"


def dense_gradients(state: TrainState, network: str) -> dict[str, Tensor]:
    """The gradients of the step that was just made, unmasked, by weight.

    Raises:
        MaskError: if they were masked, or a layer has none.
    """
    keeper: MaskKeeper = state.gan.masks.keeper(network)
    if keeper.gradients != "dense":
        raise MaskError(
            f"the gradients of the {network} were masked, so nothing can be grown by them: call begin(state) first, as "
            "gp.train does for its callbacks, and change the layers of its mask before training only"
        )
    slots = weight_slots(keeper.network)
    gradients = {key: slots[key].raw.grad for key in keeper.mask}
    missing = [key for key, gradient in gradients.items() if gradient is None]
    if missing:
        raise MaskError(f"the {network} has no gradient to grow by in {', '.join(missing)}")
    return {key: gradient.detach() for key, gradient in gradients.items() if gradient is not None}
