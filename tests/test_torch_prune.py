"""Masks taken over from ``torch.nn.utils.prune``."""

import copy

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from ganprune.masks import from_torch_prune
from ganprune.masks.apply import check_mask


def test_remove_takes_the_masks_of_biases_too_and_keeps_their_zeros():
    """A bias mask left behind makes the network one that cannot be copied."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    torch_prune.l1_unstructured(network[0], "weight", 0.5)
    torch_prune.l1_unstructured(network[0], "bias", 0.5)
    torch_prune.l1_unstructured(network[1], "weight", 0.5)
    torch_prune.random_unstructured(network[2], "bias", 1)
    x = torch.randn(3, 4)
    expected = network.eval()(x)
    mask = from_torch_prune(network, remove=True)
    assert list(mask) == ["0.weight"]
    assert [name for name, _ in network.named_buffers() if "mask" in name] == []
    assert torch.equal(network(x), expected)
    twin = copy.deepcopy(network)
    check_mask(twin, mask)
    assert int((twin[0].bias == 0).sum()) == 2


def test_without_remove_nothing_changes():
    network = nn.DataParallel(nn.Linear(4, 4))
    torch_prune.l1_unstructured(network.module, "weight", 0.5)
    torch_prune.l1_unstructured(network.module, "bias", 0.5)
    assert list(from_torch_prune(network)) == ["weight"]
    assert {name for name, _ in network.named_buffers()} == {"module.weight_mask", "module.bias_mask"}
