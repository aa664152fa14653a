"""MNIST inside the package, three splits, batches, and what happens when files are missing or damaged."""

import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ganprune as gp
from ganprune.data import splits as data_module


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
    folder = Path(data_module.__file__).parent / "assets" / "mnist"
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
    folder = Path(data_module.__file__).parent / "assets" / "mnist"
    for name, md5 in published.items():
        assert hashlib.md5(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == md5


def test_validation_is_spread_over_the_official_order(mnist):
    """MNIST is ordered by writer: a contiguous validation part would be another distribution."""
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(data_module.SPLIT_SEED))[:10_000]
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


def copy_of_assets(tmp_path, monkeypatch):
    folder = tmp_path / "assets" / "mnist"
    shutil.copytree(Path(data_module.__file__).parent / "assets" / "mnist", folder)
    monkeypatch.setattr(data_module, "__file__", str(tmp_path / "data.py"))
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
    loader = {"fashion-mnist": gp.fashion_mnist, "cifar10": gp.cifar10}[name]
    with pytest.raises(gp.data.DataError, match=f"{name} is not complete at {tmp_path}.*--data-root"):
        loader("cpu", root=tmp_path, download=False)


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
    fashion = gp.load_data("fashion-mnist", root=tmp_path, device="cpu")
    assert fashion.name == "fashion-mnist" and fashion.image_shape == (1, 28, 28)
    assert [len(s) for s in (fashion.train, fashion.validation, fashion.test)] == [50_000, 10_000, 10_000]


def test_partial_fashion_mnist_is_never_taken_for_whole(tmp_path):
    folder = write_fashion(tmp_path)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        gp.data.DataError, match="fashion-mnist file damaged: .*train-images.*is not whole. Delete it"
    ):
        gp.fashion_mnist("cpu", root=tmp_path, download=False)


def test_short_fashion_mnist_is_refused(tmp_path):
    write_fashion(tmp_path, images=1_000)
    with pytest.raises(gp.data.DataError, match="has 1000 \\+ 10000 images"):
        gp.fashion_mnist("cpu", root=tmp_path, download=False)


def test_damaged_archive_is_refused(tmp_path):
    folder = write_fashion(tmp_path)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half a download")
    with pytest.raises(gp.data.DataError, match="fails its MD5 sum. Delete it"):
        gp.fashion_mnist("cpu", root=tmp_path, download=False)


def test_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="data must be one of mnist, fashion-mnist, cifar10, got 'imagenet'"):
        gp.load_data("imagenet")


def test_ring_has_its_modes_where_they_belong():
    points = gp.gaussian_ring(4_000, seed=0, modes=8, radius=2.0, std=0.01)
    angles = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi / 8)
    assert torch.allclose(points.norm(dim=1), torch.tensor(2.0), atol=0.06)
    assert (angles - angles.round()).abs().max() < 0.05
    assert angles.round().remainder(8).long().bincount(minlength=8).min() > 400
    assert torch.equal(points, gp.gaussian_ring(4_000, seed=0, std=0.01))
    with pytest.raises(ValueError, match="modes must be an integer of at least 1"):
        gp.gaussian_ring(10, seed=0, modes=0)
