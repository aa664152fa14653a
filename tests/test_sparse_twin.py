"""Sparse twins: the pictures are the network's, whatever its shape and its zeros, and zeros are not multiplied by."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.channel_networks import COURSE, Do, close, course, evaluated, lively
from tools.inference_networks import Shaped, convolutions, residual, thinned
from torch import Tensor, nn

import ganprune as gp
from ganprune.inference import InferenceError, kernels, trace_program
from ganprune.inference.layout import plan_layout
from ganprune.inference.tables import build_tables


def check(network: nn.Module, n: int = 3, threads: int = 1) -> Any:
    """Fail unless a twin makes the network's images; return it."""
    twin = gp.sparse_twin(network, threads=threads)
    z = torch.randn(n, *twin.program.latent, generator=torch.Generator().manual_seed(n))
    images = twin(z)
    assert images.dtype == torch.float32 and images.shape == (n, *twin.program.image)
    close(images, evaluated(network, z))
    return twin


@settings(max_examples=150)
@given(network=convolutions(), n=st.sampled_from([1, 2, 16, 17]))
def test_any_convolution_with_what_surrounds_it(network: Any, n: int) -> None:
    check(network, n)


@settings(max_examples=40)
@given(
    name=st.sampled_from(COURSE),
    sparsity=st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0]),
    n=st.integers(1, 50),
    threads=st.integers(1, 3),
    norm=st.sampled_from(["spectral", "none"]),
)
def test_the_networks_of_the_course(name: str, sparsity: float, n: int, threads: int, norm: str) -> None:
    network = course(name, norm=norm)
    check(thinned(network, sparsity) if norm == "none" else network, n, threads)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_the_shipped_generator_to_a_hundred_thousandth(sparsity: float) -> None:
    generator = gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema
    if sparsity:
        gp.prune(generator, sparsity=sparsity)
    z = gp.sample_latents(64, 64, seed=5)
    twin = gp.sparse_twin(generator)
    assert float((twin(z) - gp.sample(generator, latents=z)).abs().max()) <= 1e-5
    assert f"sparsity {sparsity:.4f}" in repr(twin)


@pytest.mark.parametrize("seed", range(3))
def test_branches(seed: int) -> None:
    check(thinned(residual(seed), 0.5 * (seed > 0)), 18)


class Branches(nn.Module):
    """Maps that are read by layers with unlike borders, added to features that lie another way, and reshaped."""

    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.features = nn.Linear(4, 36), nn.Linear(4, 36)
        self.wide, self.narrow = nn.Conv2d(4, 4, 5, padding=2), nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.flat, self.last = nn.Linear(36, 36), nn.ConvTranspose2d(2, 1, (2, 3), (2, 3))

    def forward(self, z: Tensor) -> Tensor:
        x = self.maps(z).view(-1, 4, 3, 3)
        y = torch.relu(self.wide(x) + self.narrow(x)) + self.features(z).unflatten(1, (4, 3, 3))
        y = (y + x + self.flat(y.flatten(1)).view_as(x)).sigmoid()
        return self.last(y.reshape(-1, 2, 6, 3))


def test_values_that_are_read_in_several_ways() -> None:
    torch.manual_seed(1)
    check(lively(Branches()), 5)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(1.7), nn.ReLU(), nn.Identity()])
def test_activations_for_numbers_of_every_size(activation: nn.Module) -> None:
    twin = gp.sparse_twin(Shaped((7,), *_passing(7), activation))
    z = torch.cat([torch.linspace(-12, 12, 7 * 4000), torch.tensor([0.0, -0.0, 1e-30, 88, -88, 1e30, -1e30])])
    z = z.view(-1, 7)
    torch.testing.assert_close(twin(z), activation(z), rtol=3e-7, atol=3e-7)


def _passing(size: int) -> tuple[nn.Linear]:
    """Return a layer that passes everything on."""
    layer = nn.Linear(size, size, bias=False)
    nn.init.eye_(layer.weight)
    return (layer,)


def test_zeros_are_not_multiplied_by() -> None:
    network = course("generator", norm="none")
    mask = gp.prune(network, sparsity=0.9)
    assert len(build_tables(trace_program(network)).weights) == mask.kept
    clipped = Shaped((2, 1, 1), nn.ConvTranspose2d(2, 3, 3, padding=1))  # eight of nine taps fall outside
    assert len(build_tables(trace_program(clipped)).weights) == 2 * 3


def test_nothing_but_its_own_border_lies_around_a_value() -> None:
    layout = plan_layout(trace_program(residual()))
    taken = [*layout.values, *layout.staged.values()]
    for before, after in itertools.pairwise(taken):
        assert before.end == after.base
    assert taken[-1].end == layout.pixels
    assert all(len(np.unique(buffer.addresses())) == np.prod(buffer.shape) for buffer in taken)


def test_a_mask_is_applied_to_a_copy_and_the_twin_stands_alone() -> None:
    network = course("generator")
    mask = gp.prune(copy.deepcopy(network), sparsity=0.75)
    twin = gp.sparse_twin(network, mask)
    masked = copy.deepcopy(network)
    gp.apply_mask(masked, mask)
    expected = evaluated(masked, network.batch)
    close(twin(network.batch), expected)
    nn.init.zeros_(network.layers.deconv1.weight)
    close(twin(network.batch), expected)


def test_arrays_doubles_and_other_layouts_are_latents_too() -> None:
    network = course("generator")
    twin, z = gp.sparse_twin(network), network.batch
    expected = twin(z)
    for same in (z.numpy(), z.tolist(), z.double(), z.T.contiguous().T, z.clone().requires_grad_()):
        assert torch.equal(twin(same), expected)
    assert twin(torch.empty(0, 6)).shape == (0, 1, 28, 28)
    assert not twin(z).requires_grad


def test_images_do_not_depend_on_their_neighbours_or_on_threads() -> None:
    network = course("generator")
    z = torch.randn(70, 6)
    images = gp.sparse_twin(network)(z)
    assert torch.equal(gp.sparse_twin(network, threads=4)(z), images)
    twin = gp.sparse_twin(network)
    assert torch.equal(torch.cat([twin(z[n : n + 1]) for n in range(20)]), images[:20])
    huge = torch.cat([torch.full((3, 6), torch.inf), z[:5]])
    assert torch.equal(twin(huge)[3:], images[:5])  # what one call leaves behind does not reach the next


def test_one_twin_serves_several_threads_at_once() -> None:
    network = course("generator")
    twin, z = gp.sparse_twin(network, threads=2), torch.randn(40, 6)
    expected, wrong = twin(z), []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(twin(z), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_nobody_elses_threads_change_and_one_kernel_serves_all_networks() -> None:
    before = torch.get_num_threads()
    check(course("generator"), 40, threads=3)
    assert torch.get_num_threads() == before
    assert len(kernels.run_block.signatures) == 1


def test_a_sparse_file_makes_a_twin(tmp_path: Any) -> None:
    network = thinned(course("generator", norm="none"), 0.9)
    gp.inference.save_sparse(tmp_path / "file.gps", network)
    twin = gp.sparse_twin(gp.inference.load_sparse(tmp_path / "file.gps").program)
    close(twin(network.batch), evaluated(network, network.batch))


def test_wrong_arguments_are_refused() -> None:
    network = course("generator")
    for threads in (0, 1.5, True):
        with pytest.raises(ValueError, match="threads must be an integer of at least 1"):
            gp.sparse_twin(network, threads=threads)  # type: ignore[arg-type]
    twin = gp.sparse_twin(network)
    for bad in (torch.zeros(3, 5), torch.zeros(6), torch.zeros(3, 6, 1, 1)):
        with pytest.raises(ValueError, match=r"latents must have shape \(N, 6\), got"):
            twin(bad)
    for complex_valued in (torch.zeros(3, 6, dtype=torch.complex64), np.zeros((3, 6), complex)):
        with pytest.raises(TypeError, match="latents must be real numbers, got .*complex"):
            twin(complex_valued)
    with pytest.raises(ValueError, match="mask must be None for a program"):
        gp.sparse_twin(twin.program, gp.Mask.dense(network))
    with pytest.raises(InferenceError, match="layers.0 computes permute"):
        gp.sparse_twin(Shaped((2, 3, 3), Do(lambda x: x.permute(0, 2, 1, 3))))


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    network = course("generator")
    monkeypatch.delitem(sys.modules, "ganprune.inference.kernels")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(InferenceError, match=r"pip install 'ganprune\[sparse\]'"):
        gp.sparse_twin(network)


def test_a_sparse_file_and_latents_of_any_float_are_taken(tmp_path: Path) -> None:
    network = gp.dcgan(width=4, device="cpu").generator
    gp.inference.save_sparse(tmp_path / "a.gps", network)
    found = gp.inference.load_sparse(tmp_path / "a.gps")
    assert repr(found).startswith("SparseFile(4 operations, ") and repr(found).count("\n") == 0
    z = gp.sample_latents(3, 64).bfloat16()
    expected = gp.sample(network, latents=z.float())
    torch.testing.assert_close(gp.sparse_twin(found)(z), expected, atol=1e-5, rtol=0)
