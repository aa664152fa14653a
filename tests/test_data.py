"""MNIST inside the package, three splits, batches, and what happens when files are missing or damaged."""

import gzip
import hashlib
import inspect
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import datasets

import ganprune as gp
from ganprune.data import sources, splits


@pytest.fixture(scope="module")
def mnist():
    return gp.mnist("cpu")


def fingerprints(split):
    return {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images}


def test_sizes_types_and_shapes(mnist):
    assert [len(s) for s in (mnist.train, mnist.validation, mnist.test)] == [50_000, 10_000, 10_000]
    assert mnist.image_shape == (1, 28, 28)
    for split in (mnist.train, mnist.validation, mnist.test):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.siblings() is mnist


def test_splits_are_disjoint_and_complete(mnist):
    train, validation, test = map(fingerprints, (mnist.train, mnist.validation, mnist.test))
    assert not train & validation and not train & test and not validation & test
    folder = Path(gp.__file__).parent / "assets" / "mnist"
    content = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    assert struct.unpack(">4I", content[:16]) == (2051, 60_000, 28, 28)
    official = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).copy())
    both = torch.cat([mnist.train.images, mnist.validation.images]).squeeze(1)
    assert torch.equal(official.long().sum((1, 2)).sort().values, both.long().sum((1, 2)).sort().values)


def test_official_files_are_the_published_ones():
    published = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    folder = Path(gp.__file__).parent / "assets" / "mnist"
    for name, md5 in published.items():
        assert hashlib.md5(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == md5


def test_validation_is_spread_over_the_official_order(mnist):
    """MNIST is ordered by writer: a contiguous validation part would be another distribution."""
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(splits.SPLIT_SEED))[:10_000]
    counts = torch.histc(order.float(), bins=10, min=0, max=60_000)
    assert counts.min() > 900 and counts.max() < 1_100
    again = gp.mnist("cpu")
    assert torch.equal(again.validation.labels, mnist.validation.labels)


def test_padded_images_keep_their_centre(mnist):
    padded = gp.mnist("cpu", image_size=32)
    assert padded.image_shape == (1, 32, 32)
    assert torch.equal(padded.test.images[..., 2:-2, 2:-2], mnist.test.images)
    assert padded.test.images[..., :2].count_nonzero() == 0
    with pytest.raises(ValueError, match="image_size must be 28 or 32, got 64"):
        gp.mnist("cpu", image_size=64)


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**6), size=st.integers(1, 70))
def test_a_batch_is_a_pure_function_of_seed_and_step(mnist, seed, step, size):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (mnist.test.batch(size, seed, step) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (size, 1, 28, 28) and first.dtype == torch.float32
    assert first.min() >= -1 and first.max() <= 1
    assert torch.equal(before, torch.get_rng_state())


def test_batches_differ_between_steps_and_cover_the_split(mnist):
    assert not torch.equal(mnist.train.batch(64, 0, 0), mnist.train.batch(64, 0, 1))
    assert not torch.equal(mnist.train.batch(64, 0, 0), mnist.train.batch(64, 1, 0))
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        mnist.train.batch(0, 0, 0)


def test_float_images_invert_exactly(mnist):
    images = mnist.test.float_images(10, 20)
    assert torch.equal(((images + 1) * 127.5).round().to(torch.uint8), mnist.test.images[10:20])


def small(images=4, labels=None, dtype=torch.uint8, shape=(1, 2, 2)):
    kept = torch.zeros(images if labels is None else labels, dtype=torch.int64)
    return torch.full((images, *shape), 255).to(dtype), kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_images_that_are_not_bytes_are_refused_and_left_as_they_were(dtype):
    images, labels = small(dtype=dtype)
    before = images.clone()
    with pytest.raises(TypeError, match=f"images must be a uint8 tensor with values 0 to 255, got {dtype}"):
        gp.data.Split("train", images, labels, "mine")
    assert torch.equal(images, before)
    with pytest.raises(TypeError, match="images must be a uint8 tensor with values 0 to 255, got ndarray"):
        gp.data.Split("train", np.zeros((4, 1, 2, 2), np.uint8), labels, "mine")


def test_reading_a_split_leaves_its_images_as_they_are():
    split = gp.data.Split("train", *small(), "mine")
    for _ in range(2):
        assert torch.equal(split.float_images(), torch.ones(4, 1, 2, 2))
        assert torch.equal(split.batch(3, 0, 0), torch.ones(3, 1, 2, 2))
    assert torch.equal(split.images, small()[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (small(20, 5), r"labels must have shape \(N,\), one per image: 20 images, labels \(5,\)"),
        (small(0), "the split 'train' is empty, but needs at least two images"),
        (small(1), "the split 'train' has one image, but needs at least two images"),
        (small(shape=(2, 2)), r"images must have shape \(N, C, H, W\), got \(4, 2, 2\)"),
        (
            (small()[0], torch.zeros(4, 10, dtype=torch.int64)),
            r"labels must have shape \(N,\), one per image",
        ),
    ],
)
def test_splits_that_cannot_be_used_are_refused_when_they_are_made(parts, message):
    with pytest.raises(ValueError, match=message):
        gp.data.Split("train", *parts, "mine")


def test_labels_are_integers_of_one_kind():
    images, labels = small()
    assert gp.data.Split("train", images, labels.to(torch.uint8), "mine").labels.dtype == torch.int64
    with pytest.raises(TypeError, match=r"labels must be a tensor of integers, got torch\.float32"):
        gp.data.Split("train", images, labels.float(), "mine")


def test_global_defaults_do_not_reach_the_data():
    expected = gp.mnist("cpu").test.batch(3, 0, 0), gp.data.gaussian_ring(5, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = gp.mnist("cpu").test.batch(3, 0, 0), gp.data.gaussian_ring(5, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def copy_of_assets(tmp_path, monkeypatch):
    folder = tmp_path / "assets" / "mnist"
    shutil.copytree(Path(gp.__file__).parent / "assets" / "mnist", folder)
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "data" / "sources.py"))
    return folder


def test_missing_mnist_file_says_where_it_should_be(tmp_path, monkeypatch):
    folder = copy_of_assets(tmp_path, monkeypatch)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        gp.data.DataError, match="MNIST file missing: expected .*t10k-labels.*Install the package again"
    ):
        gp.mnist("cpu")


def test_damaged_mnist_file_is_refused(tmp_path, monkeypatch):
    file = copy_of_assets(tmp_path, monkeypatch) / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        gp.data.DataError, match="MNIST file damaged: .*train-labels.*SHA-256.*Install the package again"
    ):
        gp.mnist("cpu")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_absent_download_says_what_to_do(name, tmp_path):
    loader = {"fashion-mnist": gp.data.fashion_mnist, "cifar10": gp.data.cifar10}[name]
    with pytest.raises(gp.data.DataError, match=f"{name} is not complete at {tmp_path}.*--data-root"):
        loader(tmp_path, "cpu", download=False)


def write_fashion(root, images=60_000):
    """Unpacked Fashion-MNIST files of random pixels: torchvision reads such a folder without a network."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("t10k", 10_000)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels.tobytes())
    return folder


def test_fashion_mnist_behind_the_same_interface(tmp_path):
    write_fashion(tmp_path)
    fashion = gp.load_data("fashion-mnist", tmp_path, "cpu")
    assert fashion.name == "fashion-mnist" and fashion.image_shape == (1, 28, 28)
    assert [len(s) for s in (fashion.train, fashion.validation, fashion.test)] == [50_000, 10_000, 10_000]


def test_partial_fashion_mnist_is_never_taken_for_whole(tmp_path):
    folder = write_fashion(tmp_path)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        gp.data.DataError, match="fashion-mnist file damaged: .*train-images.*is not whole. Delete it"
    ):
        gp.data.fashion_mnist(tmp_path, "cpu", download=False)


def test_short_fashion_mnist_is_refused(tmp_path):
    write_fashion(tmp_path, images=1_000)
    with pytest.raises(gp.data.DataError, match="has 1000 \\+ 10000 images"):
        gp.data.fashion_mnist(tmp_path, "cpu", download=False)


def test_damaged_archive_is_refused(tmp_path):
    folder = write_fashion(tmp_path)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half a download")
    with pytest.raises(gp.data.DataError, match="fails its MD5 sum. Delete it"):
        gp.data.fashion_mnist(tmp_path, "cpu", download=False)


def write_cifar(root, monkeypatch):
    """Batches in CIFAR-10's pickle format, whose sums torchvision is told; image i is a constant that depends on i."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name, first):
        numbers = np.arange(first, first + 10_000)
        colours = np.stack([numbers % 251, numbers // 251, numbers % 7], axis=1).astype(np.uint8)
        pixels = colours.repeat(32 * 32, axis=1)
        return write(name, {"data": pixels, "labels": (numbers % 10).tolist()})

    train = [batch(f"data_batch_{number}", 10_000 * (number - 1)) for number in range(1, 6)]
    meta = dict(
        zip(("filename", "md5"), write("batches.meta", {"label_names": list("abcdefghij")}), strict=True)
    )
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", 50_000)])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**meta, "key": "label_names"})


def test_cifar10_behind_the_same_interface(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    data = gp.load_data("cifar10", tmp_path, "cpu")
    assert data.name == "cifar10" and data.image_shape == (3, 32, 32)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40_000, 10_000, 10_000]
    both = torch.cat([data.train.images, data.validation.images]).long()
    numbers = both[:, 0, 5, 9] + 251 * both[:, 1, 31, 0]  # which image of the official order it is
    assert torch.equal(numbers.sort().values, torch.arange(50_000))
    assert torch.equal(numbers % 10, torch.cat([data.train.labels, data.validation.labels]))
    assert torch.equal(both[:, 2], (numbers % 7)[:, None, None].expand(-1, 32, 32))
    assert data.train.batch(4, 0, 0).shape == (4, 3, 32, 32)


def test_all_data_sets_take_their_arguments_in_one_order():
    for load in (gp.load_data, gp.data.fashion_mnist, gp.data.cifar10):
        names = [
            name for name in inspect.signature(load).parameters if name in ("root", "device", "download")
        ]
        assert names[:2] == ["root", "device"]


def test_unknown_data_set_is_refused():
    with pytest.raises(
        ValueError, match="data must be one of mnist, fashion-mnist, cifar10, or folder:DIR, got 'imagenet'"
    ):
        gp.load_data("imagenet")


def test_ring_has_its_modes_where_they_belong():
    points = gp.data.gaussian_ring(4_000, seed=0, modes=8, radius=2.0, std=0.01)
    angles = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi / 8)
    assert torch.allclose(points.norm(dim=1), torch.tensor(2.0), atol=0.06)
    assert (angles - angles.round()).abs().max() < 0.05
    assert angles.round().remainder(8).long().bincount(minlength=8).min() > 400
    assert torch.equal(points, gp.data.gaussian_ring(4_000, seed=0, std=0.01))
    with pytest.raises(ValueError, match="modes must be an integer of at least 1"):
        gp.data.gaussian_ring(10, seed=0, modes=0)
