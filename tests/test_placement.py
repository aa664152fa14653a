"""Devices: where tensors come to lie, without a GPU by fake tensors, and for real where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unseen_networks import UNSEEN, build

import ganprune as gp
from ganprune import losses, metrics
from ganprune import networks as models
from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.data.splits import ImageData, Split
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import effective_weights, prunable_weights
from ganprune.scores.registry import SCORES, get_score, score
from ganprune.training.config import TrainConfig
from ganprune.training.state import TrainState


class Watch(TorchDispatchMode):
    """Notes every operation that makes a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(result)):
            self.on_cpu.add(str(function))
        return result


def on_cuda(function, draws=frozenset()):
    """What a function returns; all of it must lie on the CUDA device, and so must everything on the way.

    But for seeded draws, which are made on the CPU and moved, so that all devices draw the same numbers.
    """
    with Watch() as watch:
        result = function()
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert watch.on_cpu == set(draws)
    return result


@pytest.fixture
def fake():
    """Tensors without values, on devices that need not exist; a tensor with values is an error."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


NETWORKS = {
    "dcgan generator 28": (models.DCGANGeneratorSpec(8, (16, 8, 4)), (8,)),
    "dcgan generator 32": (models.DCGANGeneratorSpec(8, (16, 8, 4), (3, 32, 32)), (8,)),
    "dcgan discriminator spectral": (models.DCGANDiscriminatorSpec((4, 8, 16), norm="spectral"), (1, 28, 28)),
    "dcgan discriminator batch": (models.DCGANDiscriminatorSpec((4, 8, 16), norm="batch"), (1, 28, 28)),
    "dcgan discriminator none": (models.DCGANDiscriminatorSpec((4, 8, 16), norm="none"), (1, 28, 28)),
    "mlp generator": (models.MLPGeneratorSpec(8, (16, 12)), (8,)),
    "mlp generator of points": (models.MLPGeneratorSpec(8, (16,), (2,)), (8,)),
    "mlp discriminator none": (models.MLPDiscriminatorSpec((12, 8)), (1, 28, 28)),
    "mlp discriminator spectral": (models.MLPDiscriminatorSpec((12, 8), norm="spectral"), (1, 28, 28)),
}


def moved(network):
    """The network with fresh parameters and buffers where tensors are made now; a fake tensor cannot be moved there."""
    for part in network.modules():
        for name, value in part._parameters.items():
            part._parameters[name] = value if value is None else torch.nn.Parameter(torch.empty(value.shape))
        for name, value in part._buffers.items():
            part._buffers[name] = value if value is None else torch.zeros(value.shape, dtype=value.dtype)
    return network


def built(name):
    """A network of the course with weights on a CUDA device, and the shape of one input."""
    if name == "digit classifier":
        with torch.device("cuda"):
            return moved(metrics.ImageClassifier((1, 28, 28), 10)), (1, 28, 28)
    spec, shape = NETWORKS[name]
    with torch.device("cuda"):
        return spec.build(), shape


def small_gan(norm="spectral"):
    """A GAN on a CUDA device; its EMA generator is given, because a fake tensor cannot be copied deeply."""
    spec = models.DCGANGeneratorSpec(8, (16, 8, 4))
    with torch.device("cuda"):
        return gp.GAN(
            spec.build(), models.DCGANDiscriminatorSpec((4, 8, 16), norm=norm).build(), spec.build()
        )


class TestFakeCuda:
    """Forward passes only: a backward pass and a CUDA generator want a device that exists."""

    @pytest.fixture(autouse=True)
    def _fake(self, fake):
        pass

    def test_the_watch_sees_what_is_made_on_the_cpu(self):
        z = torch.empty(3, device="cuda")
        on_cuda(lambda: z + 1)
        with pytest.raises(AssertionError):
            on_cuda(lambda: z + torch.ones(3).to("cuda"))
        with pytest.raises(AssertionError):
            on_cuda(lambda: torch.ones(3))

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("name", [*NETWORKS, "digit classifier"])
    def test_networks_of_the_course(self, name, training):
        network, shape = built(name)
        network.train(training)
        on_cuda(lambda: network(torch.empty(4, *shape, device="cuda")))

    @pytest.mark.parametrize("name", UNSEEN)
    def test_networks_of_ones_own(self, name):
        with torch.device("cuda"):
            network, inputs = build(name)
        on_cuda(lambda: network(*inputs))

    @pytest.mark.parametrize("name", [*NETWORKS, "digit classifier"])
    def test_inputs_on_another_device_than_the_weights_raise(self, name):
        network, shape = built(name)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            network(torch.empty(4, *shape))

    @pytest.mark.parametrize("name", UNSEEN)
    def test_so_they_do_for_networks_of_ones_own(self, name):
        with torch.device("cuda"):
            network, inputs = build(name)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            network(*[value.to("cpu") for value in inputs])

    @pytest.mark.parametrize("name", losses.LOSSES)
    def test_losses(self, name):
        real, generated = torch.empty(4, device="cuda"), torch.empty(6, device="cuda")
        loss = losses.get_loss(name)
        on_cuda(lambda: (loss.discriminator(real, generated), loss.generator(generated)))
        gan = small_gan(norm="none")  # whether a spectral norm is stale is a number that has to be read
        closure = losses.generator_loss(gan, batches=2, batch_size=4, loss=name)
        on_cuda(lambda: list(closure(gan.generator)), draws={"aten.randn.generator"})

    def test_batches_of_real_images_and_the_loss_of_a_discriminator_on_them(self):
        images = torch.empty(9, 1, 28, 28, dtype=torch.uint8, device="cuda")
        split = Split("train", images, torch.empty(9, dtype=torch.int64, device="cuda"), "mnist")
        on_cuda(lambda: split.float_images(2, 5))
        on_cuda(lambda: split.batch(4, 0, 0), draws={"aten.randint.generator"})
        gan = small_gan()
        closure = losses.discriminator_loss(gan, split, batches=1, batch_size=4)
        draws = {"aten.randn.generator", "aten.randint.generator"}
        on_cuda(lambda: list(closure(gan.discriminator)), draws)

    @pytest.fixture
    def without_reading(self, monkeypatch):
        """Whether samples are finite is a number that has to be read."""
        monkeypatch.setattr("ganprune.networks.sampling.check_finite", lambda *_: None)

    @pytest.mark.usefixtures("without_reading")
    def test_sampling_with_noise_passed_in(self):
        generator = small_gan().generator
        noise = torch.empty(5, 8, device="cuda")
        images = on_cuda(lambda: gp.sample(generator, latents=noise, batch_size=2))
        assert images.shape == (5, 1, 28, 28) and generator.training
        assert gp.sample(generator, latents=torch.empty(5, 8)).device.type == "cuda"

    @pytest.mark.usefixtures("without_reading")
    def test_sampling_by_seed(self):
        generator = small_gan().generator
        on_cuda(lambda: gp.sample(generator, 5), draws={"aten.randn.generator"})
        on_cuda(lambda: gp.sample_latents(5, 8, 0, "cuda"), draws={"aten.randn.generator"})

    def test_features_of_images(self):
        network, shape = built("digit classifier")
        on_cuda(lambda: network.features(torch.empty(4, *shape, device="cuda")))

    def test_masks(self):
        gan = small_gan()
        dense = Mask.dense(gan.generator)
        on_cuda(lambda: dict(dense))
        on_cuda(lambda: dict(Mask.nonzero(gan.discriminator)))
        on_cuda(lambda: (dict(dense & dense), dict(dense | dense)))
        on_cuda(lambda: dict(dense.shuffled(0)), draws={"aten.randperm.generator"})
        here = Mask({key: torch.ones(kept.shape, dtype=torch.bool) for key, kept in dense.items()})
        assert {kept.device.type for kept in here.values()} == {"cpu"}
        copies = {"aten.clone.default"}  # a mask gives copies of its values, where they lie
        on_cuda(lambda: dict(here.to("cuda")), copies)
        on_cuda(lambda: dict(dense & here), copies)

    def test_effective_weights(self):
        gan = small_gan()
        on_cuda(lambda: (effective_weights(gan.generator), effective_weights(gan.discriminator)))

    @pytest.mark.parametrize("name", ["magnitude", "mean-activation", "wanda"])
    def test_scores_that_need_a_forward_pass_at_most(self, name):
        generator, chosen = small_gan().generator, get_score(name)
        options = {} if name == "magnitude" else {"inputs": torch.empty(4, 8, device="cuda")}
        on_cuda(lambda: dict(chosen.function(generator, **options)))

    def test_random_scores(self):
        generator = small_gan().generator
        on_cuda(lambda: dict(get_score("random").function(generator)), draws={"aten.rand.generator"})


# --- Real devices ---------------------------------------------------------------------------------

HAS_CUDA = torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device: untested here")),
]


@pytest.fixture(scope="module")
def mnist():
    return gp.mnist("cpu")


def first_images(mnist, device, count=64):
    splits = [
        Split(
            name,
            getattr(mnist, name).images[:count].to(device),
            getattr(mnist, name).labels[:count].to(device),
            "mnist",
        )
        for name in ("train", "validation", "test")
    ]
    data = ImageData("mnist", *splits)
    for split in splits:
        object.__setattr__(split, "parent", data)
    return data


def devices_of(state):
    """Where everything that training moves lies."""
    tensors = [value for network in state.gan.networks().values() for value in network.state_dict().values()]
    tensors += [kept for mask in state.masks.values() for kept in mask.values()]
    for optimizer in state.optimizers.values():
        for entries in optimizer.state.values():
            tensors += [value for value in entries.values() if value.ndim]
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("device", DEVICES)
def test_training_under_a_mask_evaluating_and_resuming(device, mnist, tmp_path):
    data = first_images(mnist, device)
    gan = gp.dcgan(width=4, latent_dim=8, device=device)
    mask = gp.prune(gan, 0.8)
    config = TrainConfig(steps=4, batch_size=8, log_every=2, precision="float32")
    state = TrainState(gan, config)

    def save(state):
        if state.step == 2:
            state.save(tmp_path / "state.safetensors")

    gp.train(state, data.train, [save], show_progress=False)
    assert devices_of(state) == {device}
    state.gan.masks.check()
    resumed = TrainState.load(tmp_path / "state.safetensors", device)
    assert resumed.step == 2
    gp.train(resumed, data.train, show_progress=False)
    assert devices_of(resumed) == {device}
    check_mask(resumed.gan.generator, mask)
    for key, value in state.gan.generator_ema.state_dict().items():
        other = resumed.gan.generator_ema.state_dict()[key]
        assert torch.equal(value, other) if device == "cpu" else torch.allclose(value, other, atol=1e-2)
    before = {key: value.clone() for key, value in gan.generator_ema.state_dict().items()}
    report = gp.evaluate(gan.generator_ema, data.validation, samples=40, mask=mask)
    assert 0 < report.digit_fid < float("inf")
    assert all(torch.equal(value, before[key]) for key, value in gan.generator_ema.state_dict().items())


@pytest.mark.parametrize("device", DEVICES)
def test_a_hand_written_loop_under_autocast(device):
    gan = gp.dcgan(width=4, latent_dim=8, device=device)
    mask = gp.prune(gan, 0.8)
    optimizer = torch.optim.Adam(gan.generator.parameters(), 1e-3)
    with gp.keep_mask(gan.generator, mask, optimizer, ema=gan.generator_ema):
        for step in range(3):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = gan.discriminator(gan.generator(gp.sample_latents(8, 8, step, device)))
            nn.functional.softplus(-logits.float()).mean().backward()
            optimizer.step()
            check_mask(gan.generator, mask)


@pytest.mark.parametrize("name", sorted(SCORES))
@pytest.mark.parametrize("device", DEVICES)
def test_scores_lie_where_the_weights_do(device, name):
    gan = gp.dcgan(width=4, latent_dim=8, device=device)
    found = score(
        gan.generator,
        name,
        loss_fn=gp.generator_loss(gan, batches=2, batch_size=4),
        inputs=gp.sample_latents(8, 8, 0, device),
        protect=["layers.deconv4"],  # APoZ means nothing before its Tanh
        sparsity=0.5,
    )
    assert {values.device.type for values in found.values()} == {device}
    mask = allocate(found, 0.5)
    assert mask.pruned == round(0.5 * mask.total)
    assert {kept.device.type for kept in mask.values()} == {device}
    if name in ("magnitude", "random"):
        twin = gp.dcgan(width=4, latent_dim=8, device="cpu")
        assert mask == allocate(score(twin.generator, name, protect=["layers.deconv4"]), 0.5)


@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_ties_are_broken_alike_on_every_device(device, allocation):
    generator = torch.Generator().manual_seed(0)
    scores = {
        key: torch.randint(4, shape, generator=generator).float()
        for key, shape in (("a", (8, 16)), ("b", (12, 8)))
    }
    options = {"allocation": allocation, "output_dims": {"a": 0, "b": 1}}
    if ":" not in allocation:
        options["sparsity"] = 0.6
    there = allocate({key: values.to(device) for key, values in scores.items()}, **options)
    assert {kept.device.type for kept in there.values()} == {device}
    assert there == allocate(scores, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_one_seed_gives_the_same_weights_latents_and_batches_everywhere(device, mnist):
    here, there = (gp.dcgan(width=4, latent_dim=8, device=place) for place in ("cpu", device))
    for key, weight in prunable_weights(there.generator).items():
        assert torch.equal(weight.cpu(), prunable_weights(here.generator)[key])
    assert torch.equal(gp.sample_latents(5, 8, 3, device).cpu(), gp.sample_latents(5, 8, 3))
    data = first_images(mnist, device)
    batches = [images.train.batch(5, 0, 1).cpu() for images in (data, first_images(mnist, "cpu"))]
    assert torch.allclose(*batches, rtol=0, atol=1e-6)
    images = gp.sample(there.generator, 5)
    assert images.device.type == device
    assert torch.allclose(images.cpu(), gp.sample(here.generator, 5), atol=1e-2)
