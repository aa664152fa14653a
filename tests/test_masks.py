"""Masks: which weights, how zeros are kept through training, and how a broken keeper is noticed."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.masks.apply import apply_mask, check_mask
from ganprune.masks.keep import keep_mask
from ganprune.masks.mask import Mask, MaskError, check_sparsity
from ganprune.masks.torch_prune import from_torch_prune, to_torch_prune
from ganprune.masks.weights import canonical_name, effective_weights, prunable_weights
from ganprune.pruning import prune
from ganprune.scores.registry import score


def small_network(seed=0, norm=None):
    """Conv → BN → ReLU → transposed conv → Linear; 8 × 8 images in, 3 numbers out."""
    torch.manual_seed(seed)
    wrap = norm or (lambda layer: layer)
    return nn.Sequential(
        wrap(nn.Conv2d(2, 8, 3, padding=1)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        wrap(nn.ConvTranspose2d(8, 4, 4, 2, 1)),
        nn.Tanh(),
        nn.Flatten(),
        wrap(nn.Linear(4 * 16 * 16, 3)),
    )


def batch(seed=0):
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def magnitude_mask(model, sparsity=0.8):
    return allocate(score(model, "magnitude"), sparsity, "uniform")


def train(model, optimizer, steps=3, after_backward=None, after_step=None, autocast=False):
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(batch(step)).float().square().mean()
        loss.backward()
        if after_backward:
            after_backward()
        optimizer.step()
        if after_step:
            after_step()


def negative_zeros(model, mask):
    weights = prunable_weights(model)
    return sum(int(torch.signbit(weights[key].detach()[~kept]).sum()) for key, kept in mask.items())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam amsgrad foreach": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


class TestPrunableWeights:
    def test_convolutions_transposed_convolutions_and_linear_layers_in_order(self):
        layers = nn.Sequential(
            nn.Conv1d(2, 2, 3),
            nn.Conv2d(2, 2, 3),
            nn.Conv3d(2, 2, 3),
            nn.BatchNorm2d(2),
            nn.ConvTranspose1d(2, 2, 3),
            nn.ConvTranspose2d(2, 2, 3, groups=2),
            nn.ConvTranspose3d(2, 2, 3),
            nn.Linear(2, 2),
            nn.Embedding(3, 2),
        )
        assert list(prunable_weights(layers)) == [f"{n}.weight" for n in (0, 1, 2, 4, 5, 6, 7)]

    def test_a_single_layer_is_a_model_too(self):
        assert list(prunable_weights(nn.Linear(2, 3))) == ["weight"]

    def test_tied_weights_count_once(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        assert list(prunable_weights(model)) == ["0.weight"]
        mask = prune(model, 0.5)
        check_mask(model, mask)
        assert mask.total == 16

    def test_frozen_layers_are_left_out_unless_all_are(self):
        model = small_network()
        model[0].requires_grad_(False)
        assert list(prunable_weights(model)) == ["3.weight", "6.weight"]
        model.requires_grad_(False)
        assert list(prunable_weights(model)) == ["0.weight", "3.weight", "6.weight"]

    def test_protection_by_weight_layer_or_submodule(self):
        model = nn.ModuleDict({"first": small_network(), "second": nn.Linear(2, 2)})
        assert list(prunable_weights(model, "first")) == ["second.weight"]
        assert list(prunable_weights(model, ["first.0", "second.weight"])) == [
            "first.3.weight",
            "first.6.weight",
        ]
        with pytest.raises(ValueError, match="protect names third"):
            prunable_weights(model, ["third"])

    def test_nothing_to_prune(self):
        with pytest.raises(ValueError, match="BatchNorm2d has no prunable weight"):
            prunable_weights(nn.BatchNorm2d(3))
        with pytest.raises(ValueError, match="1 such weights are frozen, protected or empty"):
            prunable_weights(nn.Linear(2, 2), "weight")
        with pytest.raises(ValueError, match="no prunable weight"):
            prune(nn.Sequential(nn.ReLU()), 0.5)

    def test_lazy_layers_and_torch_masks_are_refused(self):
        with pytest.raises(ValueError, match="not initialised yet"):
            prunable_weights(nn.LazyLinear(3))
        layer = nn.Linear(3, 3)
        torch_prune.random_unstructured(layer, "weight", 0.5)
        with pytest.raises(ValueError, match=r"from_torch_prune\(model, remove=True\)"):
            prunable_weights(layer)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("layers.conv1.weight", "layers.conv1.weight"),
            ("_orig_mod.layers.conv1.weight", "layers.conv1.weight"),
            ("conv1.parametrizations.weight.original", "conv1.weight"),
            ("conv1.parametrizations.weight.original1", "conv1.weight"),
            ("parametrizations.weight.original", "weight"),
            ("conv1.weight_orig", "conv1.weight"),
            ("weight_v", "weight"),
            ("block.module.conv.weight", "block.module.conv.weight"),
        ],
    )
    def test_canonical_names(self, name, expected):
        assert canonical_name(name) == expected

    def test_two_names_that_become_one_are_refused(self):
        with pytest.raises(ValueError, match="two entries"):
            Mask({"a.weight": torch.ones(2) > 0, "_orig_mod.a.weight": torch.ones(2) > 0})

    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_effective_weights_under_spectral_norm_have_norm_one_and_change_no_state(self, norm):
        model = small_network(norm=lambda layer: norm(layer, n_power_iterations=30))
        model(batch())
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found = effective_weights(model)
        for key, weight in found.items():
            rows = weight.movedim(1, 0) if key == "3.weight" else weight
            assert torch.linalg.matrix_norm(rows.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert model.training

    @pytest.mark.parametrize("norm", [parametrizations.weight_norm, torch.nn.utils.weight_norm])
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_effective_weights_under_weight_norm(self, norm):
        model = small_network(norm=norm)
        for key, weight in effective_weights(model).items():
            layer = model[int(key[0])]
            assert torch.allclose(weight, layer.weight.detach())


class TestMask:
    def test_is_a_checked_mapping(self):
        mask = Mask(
            {"_orig_mod.a.weight": torch.tensor([True, False]), "b.weight": torch.tensor([True, True])}
        )
        assert dict(mask).keys() == {"a.weight", "b.weight"}
        assert (mask.total, mask.kept, mask.pruned, mask.sparsity, mask.density) == (4, 3, 1, 0.25, 0.75)
        assert repr(mask) == "Mask(2 layers, 3 of 4 weights kept, sparsity 0.2500)"
        assert mask.layers()[0] == {
            "name": "a.weight",
            "shape": (2,),
            "total": 2,
            "kept": 1,
            "sparsity": 0.5,
        }

    def test_what_it_refuses(self):
        with pytest.raises(TypeError, match="must be a bool tensor"):
            Mask({"a": torch.ones(2)})
        with pytest.raises(TypeError, match="must be a bool tensor"):
            Mask({"a": [True]})
        with pytest.raises(ValueError, match="at least one layer"):
            Mask({})

    def test_is_immutable_by_what_it_was_made_of(self):
        kept = torch.tensor([True, False])
        mask = Mask({"a": kept})
        kept.fill_(False)
        assert mask.kept == 1

    def test_algebra(self):
        a, b = Mask({"w": torch.tensor([True, True, False])}), Mask({"w": torch.tensor([True, False, False])})
        assert (a & b) == b
        assert (a | b) == a
        assert a.covers(b)
        assert not b.covers(a)
        assert a.distance(b) == pytest.approx(1 / 3)
        assert a != b
        assert a != "mask"
        with pytest.raises(ValueError, match="same layers and shapes"):
            a & Mask({"v": torch.tensor([True, True, False])})
        with pytest.raises(TypeError, match="other must be a Mask"):
            a | {"w": torch.tensor([True])}

    def test_shuffling_keeps_the_density_of_each_layer(self):
        model = small_network()
        mask = magnitude_mask(model)
        moved = mask.shuffled(seed=1)
        assert [row["kept"] for row in moved.layers()] == [row["kept"] for row in mask.layers()]
        assert moved != mask
        assert moved == mask.shuffled(seed=1)

    def test_dense_and_nonzero(self):
        model = small_network()
        assert Mask.dense(model).sparsity == 0
        mask = prune(model, 0.7)
        assert Mask.nonzero(model) == mask

    def test_pickles(self):
        mask = magnitude_mask(small_network())
        assert pickle.loads(pickle.dumps(mask)) == mask

    @pytest.mark.parametrize("value", [1.0, -0.1, 2, float("nan"), float("inf")])
    def test_sparsity_out_of_range(self, value):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
            check_sparsity(value)

    @pytest.mark.parametrize("value", ["0.5", None, True, [0.5]])
    def test_sparsity_of_another_type(self, value):
        with pytest.raises(TypeError, match=r"sparsity must be a number in \[0, 1\), got"):
            check_sparsity(value)


class TestApplyAndCheck:
    def test_zeros_are_positive_and_the_rest_is_untouched(self):
        model = small_network()
        mask = magnitude_mask(model)
        before = {key: weight.detach().clone() for key, weight in prunable_weights(model).items()}
        apply_mask(model, mask)
        for key, weight in prunable_weights(model).items():
            assert torch.equal(weight.detach(), torch.where(mask[key], before[key], 0.0))
        assert negative_zeros(model, mask) == 0

    def test_negative_zeros_that_were_there_become_positive(self):
        layer = nn.Linear(2, 1)
        layer.weight.data = torch.tensor([[-0.0, 1.0]])
        apply_mask(layer, Mask({"weight": torch.tensor([[False, True]])}))
        assert not torch.signbit(layer.weight.detach()).any()

    def test_the_ema_copy_is_masked_too(self):
        model = small_network()
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        mask = magnitude_mask(model)
        apply_mask(model, mask, ema=ema)
        check_mask(ema, mask)
        assert torch.equal(ema[0].weight, model[0].weight)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(self, bad):
        model = small_network()
        mask = magnitude_mask(model)
        model[6].weight.data[0, 0] = bad
        before = model[0].weight.detach().clone()
        with pytest.raises(ValueError, match=r"NaN or infinity in: 6\.weight"):
            apply_mask(model, mask)
        assert torch.equal(model[0].weight.detach(), before)
        with pytest.raises(ValueError, match=r"weights must be finite, got NaN or infinity in 6\.weight"):
            prune(model, 0.5)

    def test_a_mask_of_another_network_is_refused_with_all_reasons(self):
        mask = magnitude_mask(small_network())
        other = nn.Sequential(nn.Conv2d(2, 4, 3))
        with pytest.raises(
            ValueError, match=r"3\.weight is missing; 6\.weight is missing; 0\.weight has shape"
        ):
            apply_mask(other, mask)
        with pytest.raises(TypeError, match="mask must be a Mask, got dict"):
            apply_mask(other, dict(mask))
        with pytest.raises(ValueError, match="does not fit the EMA copy"):
            apply_mask(small_network(), mask, ema=other)

    def test_check_finds_what_is_not_zero_or_not_finite(self):
        model = small_network()
        mask = prune(model, 0.5)
        check_mask(model, mask)
        key, kept = next(iter(mask.items()))
        with torch.no_grad():
            model[0].weight[~kept] = 1e-30
        with pytest.raises(
            MaskError, match=f"{key} has {int((~kept).sum())} non-zero weights under its mask"
        ):
            check_mask(model, mask)
        apply_mask(model, mask)
        with torch.no_grad():
            model[0].weight[kept] = float("nan")
        with pytest.raises(MaskError, match="NaN or infinite"):
            check_mask(model, mask)

    def test_spectral_norm_is_one_again_after_pruning(self):
        torch.manual_seed(0)
        model = parametrizations.spectral_norm(nn.Linear(64, 64))
        mask = magnitude_mask(model, 0.9)
        apply_mask(model, mask)
        model.eval()
        assert torch.linalg.matrix_norm(model.weight.detach(), 2).item() == pytest.approx(1, abs=0.03)
        assert float((model.weight.detach()[~mask["weight"]] != 0).sum()) == 0

    def test_spectral_vectors_that_see_only_pruned_weights_are_replaced(self):
        model = parametrizations.spectral_norm(nn.Linear(3, 3))
        with torch.no_grad():
            model.parametrizations.weight.original.copy_(torch.diag(torch.tensor([5.0, 1.0, 2.0])))
            model.parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0.0, 0.0]))
        apply_mask(model, Mask({"weight": torch.diag(torch.tensor([False, True, True]))}))
        assert torch.allclose(model.eval().weight, torch.diag(torch.tensor([0.0, 0.5, 1.0])), atol=1e-4)

    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_an_empty_layer_under_spectral_norm_is_refused(self, norm):
        model = norm(nn.Linear(3, 3))
        with pytest.raises(ValueError, match="0 / 0 .*in: weight"):
            apply_mask(model, Mask({"weight": torch.zeros(3, 3, dtype=torch.bool)}))

    @pytest.mark.parametrize("norm", [parametrizations.weight_norm, torch.nn.utils.weight_norm])
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_an_empty_output_under_weight_norm_is_refused(self, norm):
        model = norm(nn.Linear(3, 3))
        kept = torch.ones(3, 3, dtype=torch.bool)
        kept[0, 1] = False
        apply_mask(model, Mask({"weight": kept}))
        assert model(torch.ones(1, 3)).isfinite().all()
        kept[0] = False
        with pytest.raises(ValueError, match="0 / 0 .*in: weight"):
            apply_mask(model, Mask({"weight": kept}))

    def test_a_parametrisation_that_moves_zeros_is_refused_and_one_that_keeps_them_is_not(self):
        class Shift(nn.Module):
            def forward(self, weight):
                return weight + 1

        class Scale(nn.Module):
            def forward(self, weight):
                return weight * 0.5

        mask = Mask({"weight": torch.eye(3) > 0})
        scaled, shifted = nn.Linear(3, 3), nn.Linear(3, 3)
        parametrize.register_parametrization(scaled, "weight", Scale())
        parametrize.register_parametrization(shifted, "weight", Shift())
        apply_mask(scaled, mask)
        assert (scaled.weight[~mask["weight"]] == 0).all()
        before = shifted.parametrizations.weight.original.detach().clone()
        with pytest.raises(ValueError, match="does not keep zeros in: weight"):
            apply_mask(shifted, mask)
        assert torch.equal(shifted.parametrizations.weight.original.detach(), before)


class TestKeepMask:
    @pytest.mark.parametrize("gradients", ["masked", "dense"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_holds_after_every_step(self, name, gradients):
        model = small_network()
        mask = magnitude_mask(model)
        optimizer = OPTIMIZERS[name](model.parameters())

        def holds():
            check_mask(model, mask)
            assert negative_zeros(model, mask) == 0

        start = model[0].weight.detach().clone()
        with keep_mask(model, mask, optimizer, gradients=gradients) as keeper:
            train(model, optimizer, after_step=holds)
            keeper.check()
        assert not torch.equal(model[0].weight.detach()[mask["0.weight"]], start[mask["0.weight"]])

    @pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
    def test_the_step_is_the_dense_step_then_the_projection(self, name):
        model, dense = small_network(), small_network()
        mask = magnitude_mask(model)
        apply_mask(dense, mask)
        optimizer, plain = (OPTIMIZERS[name](m.parameters()) for m in (model, dense))
        with keep_mask(model, mask, optimizer):
            train(model, optimizer, 4)
        train(dense, plain, 4, after_step=lambda: apply_mask(dense, mask))
        for one, other in zip(model.parameters(), dense.parameters(), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
    def test_with_spectral_norm(self, norm):
        model = small_network(norm=norm)
        mask = magnitude_mask(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, mask, optimizer):
            train(model, optimizer, after_step=lambda: check_mask(model, mask))
        for key, weight in effective_weights(model).items():
            assert (weight[~mask[key]] == 0).all()

    def test_with_weight_norm(self):
        model = small_network(norm=parametrizations.weight_norm)
        mask = allocate(score(model, "magnitude"), 0.5, "per-output")
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, mask, optimizer):
            train(model, optimizer, after_step=lambda: check_mask(model, mask))

    def test_with_an_ema_copy(self):
        model = small_network()
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        mask = magnitude_mask(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)

        def move_average():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 0.1)
            check_mask(ema, mask)

        with keep_mask(model, mask, optimizer, ema=ema) as keeper:
            train(model, optimizer, after_step=move_average)
            keeper.check()
        assert negative_zeros(ema, mask) == 0

    def test_with_channels_last_the_working_copy_has_the_layout_of_the_weight(self):
        model = small_network().to(memory_format=torch.channels_last)
        mask = magnitude_mask(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, mask, optimizer) as keeper:
            for bits, weight in zip(keeper._working, prunable_weights(model).values(), strict=True):
                assert bits.stride() == weight.stride()
            train(model, optimizer, after_step=lambda: check_mask(model, mask))
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)

    def test_follows_a_change_of_layout_or_precision(self):
        model = small_network()
        mask = magnitude_mask(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with keep_mask(model, mask, optimizer):
            model.to(memory_format=torch.channels_last)
            train(model, optimizer, 1)
            check_mask(model, mask)
            model.double()
            optimizer.zero_grad()
            model(batch().double()).square().mean().backward()
            optimizer.step()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_in_other_precisions(self, dtype):
        model = nn.Linear(16, 16).to(dtype)
        mask = prune(model, 0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with keep_mask(model, mask, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(2, 16, dtype=dtype)).square().mean().backward()
                optimizer.step()
                check_mask(model, mask)

    def test_under_autocast(self):
        model = small_network()
        mask = magnitude_mask(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, mask, optimizer):
            train(model, optimizer, autocast=True, after_step=lambda: check_mask(model, mask))

    def test_clipping_by_norm_counts_kept_weights_alone(self):
        model = small_network()
        mask = magnitude_mask(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        norms = {}
        for mode in ("masked", "dense"):
            with keep_mask(model, mask, optimizer, gradients=mode):
                optimizer.zero_grad()
                model(batch()).square().mean().backward()
                expected = (
                    torch.stack(
                        [
                            (p.grad * mask.get(f"{name}", 1)).square().sum()
                            for name, p in model.named_parameters()
                        ]
                    )
                    .sum()
                    .sqrt()
                )
                norms[mode] = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                if mode == "masked":
                    assert norms[mode] == pytest.approx(expected.item(), rel=1e-5)
                optimizer.step()
                check_mask(model, mask)
        assert norms["dense"] > norms["masked"]

    def test_accumulated_gradients_are_masked_and_the_mode_can_change(self):
        model = small_network()
        mask = magnitude_mask(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with keep_mask(model, mask, optimizer) as keeper:
            for number in range(2):
                model(batch(number)).square().mean().backward()
            assert (model[6].weight.grad[~mask["6.weight"]] == 0).all()
            keeper.gradients = "dense"
            optimizer.zero_grad()
            model(batch()).square().mean().backward()
            assert (model[6].weight.grad[~mask["6.weight"]] != 0).any()
            with pytest.raises(ValueError, match="gradients must be one of masked, dense, got 'sparse'"):
                keeper.gradients = "sparse"

    def test_a_network_that_is_frozen_for_a_while_keeps_its_mask(self):
        model = small_network().requires_grad_(False)
        mask = magnitude_mask(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with keep_mask(model, mask, optimizer):
            assert not any(p.requires_grad for p in model.parameters())
            model.requires_grad_(True)
            model(batch()).square().mean().backward()
            assert (model[6].weight.grad[~mask["6.weight"]] == 0).all()
            optimizer.step()
            check_mask(model, mask)

    def test_gradients_that_are_not_finite_do_not_reach_pruned_weights(self):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0, 0.0]])
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        keeper = keep_mask(layer, Mask({"weight": torch.tensor([[True, False]])}), optimizer)
        (layer(torch.ones(1, 2)) * float("nan")).sum().backward()
        optimizer.step()
        with pytest.raises(MaskError, match="NaN or infinite"):  # the kept weight: the keeper notices
            keeper.check()
        assert layer.weight[0, 0].isnan()
        assert layer.weight[0, 1] == 0

    def test_state_dict_round_trip(self):
        model, twin = small_network(), small_network(1)
        mask = magnitude_mask(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, mask, optimizer) as keeper:
            train(model, optimizer)
            stored = io.BytesIO()
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "mask": dict(mask)}, stored
            )
            stored.seek(0)
            loaded = torch.load(stored, weights_only=True)
            model.load_state_dict(loaded["model"])
            optimizer.load_state_dict(loaded["optimizer"])
            train(model, optimizer, after_step=lambda: check_mask(model, mask))
            keeper.check()
        twin.load_state_dict(loaded["model"])
        check_mask(twin, Mask(loaded["mask"]))

    def test_a_copied_network_is_an_ordinary_masked_network(self):
        model = small_network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with keep_mask(model, magnitude_mask(model), optimizer) as keeper:
            train(model, optimizer)
            twin = copy.deepcopy(model)
            check_mask(twin, keeper.mask)
            check_mask(pickle.loads(pickle.dumps(model)), keeper.mask)

    def test_with_torch_compile(self):
        model = small_network()
        compiled = torch.compile(model, backend="eager")
        mask = magnitude_mask(compiled)
        assert list(mask) == ["0.weight", "3.weight", "6.weight"]
        optimizer = torch.optim.Adam(compiled.parameters(), 0.01)
        with keep_mask(compiled, mask, optimizer):
            train(compiled, optimizer, after_step=lambda: check_mask(model, mask))

    def test_names_without_the_wrapper_of_data_parallelism_or_of_an_averaged_model(self):
        model = small_network()
        mask = magnitude_mask(model)
        assert magnitude_mask(nn.DataParallel(model)) == mask
        averaged = torch.optim.swa_utils.AveragedModel(model)
        apply_mask(averaged, mask)
        check_mask(averaged.module, mask)

    def test_every_network_of_a_gan_in_a_loop_of_ones_own(self):
        gan = gp.dcgan(width=4, latent_dim=8, device="cpu")
        mask = prune(gan.generator, 0.8, ema=gan.generator_ema)
        optimizer = torch.optim.Adam(gan.generator.parameters(), 1e-3)
        loss_fn = gp.generator_loss(gan, batches=3, batch_size=4)
        with keep_mask(gan.generator, mask, optimizer, ema=gan.generator_ema):
            for loss in loss_fn(gan.generator):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                check_mask(gan.generator, mask)
        check_mask(gan.generator_ema, mask)

    def test_what_it_refuses(self):
        model = small_network()
        mask = magnitude_mask(model)
        with pytest.raises(ValueError, match="must not be LBFGS"):
            keep_mask(model, mask, torch.optim.LBFGS(model.parameters()))
        with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got list"):
            keep_mask(model, mask, list(model.parameters()))
        with pytest.raises(ValueError, match=r"optimizer does not hold 0\.weight, 3\.weight"):
            keep_mask(model, mask, torch.optim.SGD(model[6].parameters(), 0.1))
        with pytest.raises(ValueError, match="gradients must be one of masked, dense, got 'none'"):
            keep_mask(model, mask, torch.optim.SGD(model.parameters(), 0.1), gradients="none")


class TestUpdate:
    def test_is_in_place_masks_all_and_resets_the_moments_of_regrown_weights(self):
        model = small_network()
        ema = copy.deepcopy(model).requires_grad_(False)
        first = magnitude_mask(model, 0.5)
        second = first.shuffled(seed=3)
        optimizer = torch.optim.Adam(model.parameters(), 0.01, amsgrad=True)
        keeper = keep_mask(model, first, optimizer, ema=ema, gradients="dense")
        train(model, optimizer)
        addresses = [bits.data_ptr() for bits in keeper._working]
        keeper.gradients = "masked"
        keeper.update(second)
        assert [bits.data_ptr() for bits in keeper._working] == addresses
        check_mask(model, second)
        check_mask(ema, second)
        for key, weight in prunable_weights(model).items():
            regrown, state = second[key] & ~first[key], optimizer.state[weight]
            assert regrown.any()
            assert (weight[regrown] == 0).all()
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                assert (state[name][regrown] == 0).all()
                assert (state[name][second[key] & first[key]] != 0).any()
            assert (weight.grad[~second[key]] == 0).all()
        train(model, optimizer, after_step=lambda: check_mask(model, second))
        assert (model[6].weight[second["6.weight"] & ~first["6.weight"]] != 0).any()
        assert keeper.mask == second
        keeper.remove()

    def test_momentum_is_reset_too(self):
        model = small_network()
        first = magnitude_mask(model, 0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        with keep_mask(model, first, optimizer, gradients="dense") as keeper:
            train(model, optimizer)
            keeper.update(Mask.dense(model))
            buffer = optimizer.state[model[6].weight]["momentum_buffer"]
            assert (buffer[~first["6.weight"]] == 0).all()

    def test_other_layers_are_refused(self):
        model = small_network()
        keeper = keep_mask(model, magnitude_mask(model), torch.optim.SGD(model.parameters(), 0.1))
        with pytest.raises(ValueError, match="same layers and shapes"):
            keeper.update(Mask.dense(model, protect=["0"]))


class TestCheck:
    def setup_method(self):
        self.model = small_network()
        self.mask = magnitude_mask(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        self.keeper = keep_mask(self.model, self.mask, self.optimizer)

    def test_passes_while_all_is_well(self):
        self.keeper.check()
        train(self.model, self.optimizer)
        self.keeper.check()
        assert repr(self.keeper).startswith("MaskKeeper(Mask(3 layers")

    def test_a_copied_optimiser_has_no_hook(self):
        with pytest.raises(MaskError, match="lost the hook"):
            self.keeper.check(copy.deepcopy(self.optimizer))
        with pytest.raises(MaskError, match="lost the hook"):
            self.keeper.check(pickle.loads(pickle.dumps(self.optimizer)))

    def test_a_keeper_cannot_be_copied(self):
        with pytest.raises(TypeError, match="call keep_mask for the copy"):
            copy.deepcopy(self.keeper)

    def test_a_second_keeper_is_refused_until_the_first_is_removed(self):
        with pytest.raises(MaskError, match=r"0\.weight.* already kept by another keep_mask"):
            keep_mask(self.model, self.keeper.mask, self.optimizer)
        self.keeper.remove()
        keep_mask(self.model, self.keeper.mask, self.optimizer).remove()

    def test_dropped_with_its_optimiser_it_leaves_nothing_behind(self):
        gone = weakref.ref(self.optimizer)
        del self.optimizer, self.keeper
        gc.collect()
        assert gone() is None
        assert not any(p._post_accumulate_grad_hooks for p in self.model.parameters())

    def test_parameters_replaced_by_assignment(self):
        self.model.load_state_dict(small_network(1).state_dict(), assign=True)
        with pytest.raises(MaskError, match=r"0\.weight was replaced after keep_mask"):
            self.keeper.check()
        with pytest.raises(MaskError, match=r"0\.weight was replaced after keep_mask"):
            train(self.model, self.optimizer, 1)

    def test_a_replaced_module(self):
        self.model[6] = nn.Linear(4 * 16 * 16, 3)
        with pytest.raises(MaskError, match=r"6\.weight was replaced"):
            self.keeper.check()

    def test_a_new_parametrisation(self):
        parametrizations.spectral_norm(self.model[6])
        with pytest.raises(MaskError, match=r"6\.weight was replaced"):
            train(self.model, self.optimizer, 1)

    def test_weights_that_came_back_in_the_model_or_its_ema_copy(self):
        self.keeper.ema = small_network()
        with pytest.raises(MaskError, match="non-zero weights under its mask"):
            self.keeper.check()
        self.keeper.ema = None
        self.model.load_state_dict(small_network(1).state_dict())
        with pytest.raises(MaskError, match="non-zero weights under its mask"):
            self.keeper.check()

    def test_a_removed_keeper(self):
        self.keeper.remove()
        self.keeper.remove()
        with pytest.raises(MaskError, match="was removed"):
            self.keeper.check()
        train(self.model, self.optimizer)
        with pytest.raises(MaskError, match="non-zero"):
            check_mask(self.model, self.mask)
        assert not self.model[6].weight._post_accumulate_grad_hooks

    def test_the_context_manager_checks_at_the_end_and_removes_its_hooks_whatever_happens(self):
        self.keeper.remove()

        def undo_pruning():
            with keep_mask(self.model, self.mask, self.optimizer):
                self.model[6].weight.data.fill_(1.0)

        def fail():
            with keep_mask(self.model, self.mask, self.optimizer):
                raise KeyError("own error")

        with pytest.raises(MaskError, match="non-zero"):
            undo_pruning()
        assert not self.optimizer._optimizer_step_post_hooks
        with pytest.raises(KeyError):
            fail()
        assert not self.optimizer._optimizer_step_post_hooks


class TestExchange:
    def test_from_torch(self):
        model = small_network()
        for number in (0, 6):
            torch_prune.l1_unstructured(model[number], "weight", 0.3)
        mask = from_torch_prune(model, remove=True)
        assert list(mask) == ["0.weight", "6.weight"]
        assert mask.pruned == round(0.3 * 144) + round(0.3 * 3072)
        check_mask(model, mask)
        assert negative_zeros(model, mask) == 0
        with pytest.raises(ValueError, match=r"carries no mask of torch\.nn\.utils\.prune"):
            from_torch_prune(model)

    def test_to_torch_and_back(self):
        model = small_network()
        mask = magnitude_mask(model)
        twin = copy.deepcopy(model)
        apply_mask(twin, mask)
        to_torch_prune(model, mask)
        assert torch_prune.is_pruned(model)
        assert torch.equal(model.eval()(batch()), twin.eval()(batch()))
        assert from_torch_prune(model) == mask

    def test_to_torch_refuses_norms(self):
        model = small_network(norm=parametrizations.spectral_norm)
        with pytest.raises(ValueError, match="cannot mask weights under a parametrisation"):
            to_torch_prune(model, magnitude_mask(model))


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_any_mask_on_any_network_holds(widths, sparsity, seed, momentum):
    torch.manual_seed(seed)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)])
    mask = prune(model, sparsity, score="random", seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=momentum, weight_decay=0.01)
    with keep_mask(model, mask, optimizer) as keeper:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, widths[0])).square().mean().backward()
            optimizer.step()
        keeper.check()
    assert negative_zeros(model, mask) == 0
