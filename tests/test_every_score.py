"""What every registered score promises, on networks that the package has not seen."""

import copy

import pytest
import torch
from torch import nn
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune.masks.weights import prunable_slots, prunable_weights
from ganprune.scores.registry import SCORES, score

NAMES = sorted(SCORES)


def loss_of(inputs):
    def loss_fn(network):
        for _ in range(2):
            yield network(*inputs).float().square().mean()

    return loss_fn


def arguments_for(name, inputs, **more):
    """Everything that a score can need; SynFlow with few rounds."""
    return {
        "loss_fn": loss_of(inputs),
        "inputs": inputs,
        **({"rounds": 3} if name == "synflow" else {}),
        **more,
    }


def protected_for(name, network, inputs):
    """The layers that a score refuses: APoZ those that no ReLU follows."""
    if name != "apoz":
        return []
    found = []
    for key in prunable_weights(network):
        try:
            others = [other for other in prunable_weights(network) if other != key]
            score(network, name, inputs=inputs, protect=others)
        except ValueError:
            found.append(key)
    return found


def state_of(network):
    return (
        {key: value.clone() for key, value in network.state_dict().items()},
        [part.training for part in network.modules()],
        [(p.requires_grad, p.grad, p.dtype) for p in network.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        torch.get_rng_state(),
        torch.get_default_dtype(),
    )


def check_unchanged(before, after):
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]


@pytest.mark.filterwarnings("ignore:.*belong to layers that are not pruned:UserWarning")
@pytest.mark.parametrize("network", UNSEEN)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_finite_numbers_and_an_untouched_network(name, network):
    model, inputs = build(network)
    model(*inputs)  # batch norm and spectral norm have seen something
    protect = protected_for(name, model, inputs)
    if len(protect) == len(prunable_weights(model)):  # APoZ has nothing here and says so
        with pytest.raises(ValueError, match="APoZ"):
            score(model, name, inputs=inputs)
        return
    before = state_of(model)
    found = score(model, name, **arguments_for(name, inputs, sparsity=0.5, protect=protect))
    check_unchanged(before, state_of(model))
    slots = prunable_slots(model, protect)
    assert list(found) == list(slots)
    assert found.output_dims == {key: slot.output_dim for key, slot in slots.items()}
    for key, value in found.items():
        assert value.shape == slots[key].raw.shape
        assert value.isfinite().all()
        assert not value.requires_grad
    assert any(value.any() for value in found.values())


class WithDropout(nn.Module):
    """Draws random numbers in both modes: dropout while training, and noise always."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(4, 16), nn.Linear(16, 3), nn.Dropout(0.5)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return torch.relu(self.last(self.dropout(hidden) + torch.rand_like(hidden)))


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_draw_random_numbers_draw_from_the_seed(name):
    torch.manual_seed(0)
    model, inputs = WithDropout(), (torch.randn(8, 4),)
    one, again = (score(model, name, **arguments_for(name, inputs, seed=3)) for _ in range(2))
    torch.rand(5)
    later = score(model, name, **arguments_for(name, inputs, seed=3))
    for key, value in one.items():
        assert torch.equal(value, again[key])
        assert torch.equal(value, later[key])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_another_precision(name, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.ReLU()).to(dtype)
    found = score(model, name, **arguments_for(name, (torch.randn(4, 2, 4, 4).to(dtype),), sparsity=0.5))
    assert {key: value.shape for key, value in found.items()} == {
        key: weight.shape for key, weight in prunable_weights(model).items()
    }
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert gp.allocate(found, 0.5).pruned == (72 + 48) // 2


@pytest.mark.parametrize("name", NAMES)
def test_global_defaults_do_not_leak_in(name):
    torch.manual_seed(0)
    model, inputs = (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU()),
        (torch.randn(8, 4),),
    )
    expected = score(model, name, **arguments_for(name, inputs))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = score(model, name, **arguments_for(name, inputs))
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in found.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_protected_layers_have_no_score_and_a_bare_name_is_one_name(name):
    model, inputs = (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU()),
        (torch.randn(8, 4),),
    )
    for protect in ("0", ["0"], ("0.weight",), iter(["0"])):
        assert list(score(model, name, **arguments_for(name, inputs, protect=protect))) == ["2.weight"]
    with pytest.raises(ValueError, match="protect names 7"):
        score(model, name, **arguments_for(name, inputs, protect="7"))


@pytest.mark.parametrize("name", NAMES)
def test_layers_called_by_keyword(name):
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return torch.relu(self.last(input=torch.relu(self.first(input=x))))

    torch.manual_seed(0)
    model, inputs = ByKeyword(), (torch.randn(5, 3),)
    plain = nn.Sequential(model.first, nn.ReLU(), model.last, nn.ReLU())
    found = score(model, name, **arguments_for(name, inputs))
    expected = score(plain, name, **arguments_for(name, inputs))
    for value, other in zip(found.values(), expected.values(), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_comes_back_after_an_error_too(name):
    class Broken(nn.Sequential):
        def forward(self, x):
            self.train(not self.training)
            super().forward(x)
            raise RuntimeError("own error")

    model, inputs = Broken(nn.Linear(3, 3), nn.BatchNorm1d(3)), (torch.randn(4, 3),)
    before = state_of(model)
    runs = SCORES[name].needs & {"loss_fn", "inputs"} or name == "synflow"
    with pytest.raises((RuntimeError, ValueError) if runs else TypeError):
        score(model, name, **arguments_for(name, inputs), **({} if runs else {"width": 1}))
    check_unchanged(before, state_of(model))


@pytest.mark.parametrize("name", NAMES)
def test_what_every_score_refuses(name):
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.randn(8, 4),)
    arguments = arguments_for(name, inputs)
    for need in SCORES[name].needs & {"loss_fn", "inputs"}:
        with pytest.raises(ValueError, match=need):
            score(model, name, **{**arguments, need: None})
    with pytest.raises(TypeError, match="width"):
        score(model, name, **arguments, width=3)
    spoilt = copy.deepcopy(model)
    spoilt[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weights must be finite.* 0\.weight"):
        score(spoilt, name, **arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_scores_that_are_all_zero_are_refused(name):
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.zeros(8, 4),)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)  # the ReLU lets nothing through
    with pytest.raises(ValueError, match="all 0|flow of 0"):
        score(model, name, **arguments_for(name, inputs))


def test_every_docstring_says_what_it_computes():
    assert all(len(entry.function.__doc__ or "") > 60 for entry in SCORES.values())
