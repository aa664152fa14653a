"""Convolutions as matrix products: the layers next to the latent, the image and the logit.

The first layer of a DCGAN generator sees maps of one pixel, and the last layer of its discriminator leaves maps of one
pixel: there the sum over positions has one term, and the convolution *is* a matrix product. Next to a grey image there
is one channel, and a product over patches, added where they overlap, is all there is to do. On the CPU the general
kernels are slow at these shapes, so training steps and sampling take the products. The result is the same up to
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations


@contextmanager
def fast_convolutions(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network computes the layers named above as matrix products.

    These are ``nn.Conv2d`` and ``nn.ConvTranspose2d`` on the CPU, without groups, dilation and padding by copies.
    Subclasses and layers whose ``forward`` was replaced may compute something else, and work as ever. Gradients are
    those of the convolution, up to rounding.

    Args:
        network: any module; its layers are as before after the block.
    """
    replaced: list[Any] = []
    for layer in network.modules():
        forward = _FORWARDS.get(type_before_parametrizations(layer))
        if forward is not None and _is_product(layer):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]
            replaced.append(layer)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward


def _is_product(layer: Any) -> bool:
    """Whether the formulas below hold for a convolution and are faster, as far as the layer alone can tell."""
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.output_padding == (0, 0)
        and all(p.device.type == "cpu" for p in layer.parameters())
        and (
            layer.padding == (0, 0)
            or (1 in (layer.in_channels, layer.out_channels) and max(layer.stride) > 1)
        )
        and not {"forward", "_conv_forward"} & vars(layer).keys()
    )


def _conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if x.ndim == 4 and x.shape[2:] == layer.kernel_size and layer.padding == (0, 0):
        return functional.linear(_rows(x), _rows(layer.weight), layer.bias)[:, :, None, None]
    if x.ndim == 4 and layer.in_channels == 1:
        return _ConvolutionOfGreyImages.apply(x, layer.weight, layer.bias, layer.stride, layer.padding)
    return nn.Conv2d.forward(layer, x)


def _conv_transpose2d(layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    if x.ndim != 4 or output_size is not None:
        return nn.ConvTranspose2d.forward(layer, x, output_size)
    kernel = layer.kernel_size
    if x.shape[2:] == (1, 1) and layer.padding == (0, 0):
        maps = (x.flatten(1) @ _rows(layer.weight)).unflatten(1, (*kernel, layer.out_channels))
        maps = maps.permute(0, 3, 1, 2)
    elif layer.out_channels == 1:
        sides: Any = zip(x.shape[2:], layer.stride, layer.padding, kernel, strict=True)
        size = [(n - 1) * s - 2 * p + k for n, s, p, k in sides]
        maps = _overlap_add(x, layer.weight, size, layer.stride, layer.padding)
    else:
        return nn.ConvTranspose2d.forward(layer, x)
    return maps if layer.bias is None else maps + layer.bias[:, None, None].to(maps.dtype)


_FORWARDS: dict[Any, Any] = {nn.Conv2d: _conv2d, nn.ConvTranspose2d: _conv_transpose2d}


class _ConvolutionOfGreyImages(torch.autograd.Function):
    """A convolution whose gradients are products over patches."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any
    ) -> Tensor:
        y = torch.conv2d(x, weight, bias, stride, padding)
        ctx.save_for_backward(x.to(y.dtype), weight.to(y.dtype))
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.stride, ctx.padding = stride, padding
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), kernel = gradients, ctx.saved_tensors, ctx.saved_tensors[1].shape[2:]
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = _overlap_add(gradient, weight, x.shape[2:], ctx.stride, ctx.padding)
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[1]:
            patches = _patches(x, gradient.shape[2:], kernel, ctx.stride, ctx.padding)
            found[1] = (patches @ rows).T.unflatten(1, (1, *kernel))
        if ctx.needs_input_grad[2]:
            found[2] = rows.sum(0)
        found = [g if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)]
        return (*found, None, None)


def _overlap_add(x: Tensor, weight: Tensor, size: Any, stride: Any, padding: Any) -> Tensor:
    """The transposed convolution of x (N, C, H, W) with weight (C, 1, k, k): grey images of that size.

    Each position of x gives one patch; patches are added where they overlap, in float32 at least. ``fold`` adds per
    channel, so the N images take the place of its channels.
    """
    product = weight.flatten(1).T @ x.flatten(2)  # (N, k · k, H · W)
    patches = product.float() if product.element_size() < 4 else product
    images = functional.fold(
        patches.reshape(1, -1, patches.shape[2]), size, weight.shape[2:], 1, padding, stride
    )
    return images.transpose(0, 1).to(product.dtype)


def _patches(x: Tensor, size: Any, kernel: Any, stride: Any, padding: Any) -> Tensor:
    """What each of N × H' × W' positions sees of grey images, (k · k, N · H' · W')."""
    (up, across), (height, width), (down, right) = padding, size, kernel
    padded = functional.pad(x, (across, across, up, up))
    n, _, h, w = padded.stride()
    shape = (down, right, len(x), height, width)
    return padded.as_strided(shape, (h, w, n, h * stride[0], w * stride[1])).reshape(down * right, -1)


def _rows(tensor: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H · W · C): no copy where the memory layout is channels_last."""
    return tensor.permute(0, 2, 3, 1).flatten(1)
