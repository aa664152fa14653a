"""Convolutions in another form: the layers next to the latent, the image and the logit, and narrow ones.

The first layer of a DCGAN generator sees maps of one pixel, and the last layer of its discriminator leaves
maps of one pixel: there the sum over positions has one term, and the convolution *is* a matrix product. Next
to a grey image there is one channel: a product over patches, added up where they overlap (``fold``), is all
there is to do. And a transposed convolution to few channels, as in a pruned generator, is a convolution to more
channels, each for one pixel of a block (Shi et al. 2016, "Is the deconvolution layer the same as a
convolutional layer?"). On the CPU the general kernels are slow at these shapes, so training steps and sampling
take the other form instead. The result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def fast_convolutions(network: nn.Module) -> Iterator[None]:
    """Inside, the network's 2-D convolutions of the kinds above are computed in their faster form.

    Only layers on the CPU without groups and dilation are; all others, and everything outside, work as ever.
    Gradients are those of the convolution, up to rounding; where none are recorded, narrow layers change their
    form too.

    Args:
        network: any module; its layers forward differently inside and are as before afterwards.
    """
    replaced: list[Any] = []
    for layer in network.modules():
        forward = _FORMS.get(type(layer).forward)
        if forward is not None and _is_plain(layer):
            layer.forward = partial(forward, layer, {})  # type: ignore[method-assign]
            replaced.append(layer)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    """Whether the formulas below hold for the layer at all."""
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(p.device.type == "cpu" for p in layer.parameters())
        and (
            layer.padding == (0, 0)
            or (1 in (layer.in_channels, layer.out_channels) and max(layer.stride) > 1)
            or _is_narrow(layer)
        )
        and "forward" not in vars(layer)
    )


def _is_narrow(layer: Any) -> bool:
    """Whether a transposed convolution has so few channels that giving each pixel of a block its own pays."""
    return (
        isinstance(layer, nn.ConvTranspose2d)
        and layer.out_channels <= min(layer.in_channels, _NARROW)
        and (layer.out_channels > 1 or layer.in_channels <= _NARROW)
        and layer.stride[0] == layer.stride[1] > 1
        and all(k % s == 0 for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    )


def _splits_into_blocks(layer: Any, x: Tensor) -> bool:
    """Whether a layer is narrow, and if it makes grey images, each is whole blocks and they are enough to pay."""
    sides = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, strict=True)
    whole = all(n % 2 == 0 and k == s + 2 * p for n, k, s, p in sides)
    return _is_narrow(layer) and (layer.out_channels > 1 or (whole and len(x) >= _MANY))


def _reformed(layer: Any, made: dict[str, Any], form: Callable[[Tensor], Tensor]) -> Tensor:
    """The layer's weight in another form, made once as long as it does not change and no gradient is wanted."""
    weight = layer.weight
    if torch.is_grad_enabled() or not isinstance(weight, nn.Parameter) or weight.is_inference():
        return form(weight)
    state = weight.data_ptr(), weight._version, weight.dtype
    if made.get("state") != state:
        made.update(state=state, weight=form(weight.detach()))
    return made["weight"]


def _conv2d(layer: nn.Conv2d, made: dict[str, Any], x: Tensor) -> Tensor:
    if x.ndim == 4 and x.shape[2:] == layer.kernel_size and layer.padding == (0, 0):
        return functional.linear(_rows(x), _reformed(layer, made, _rows), layer.bias)[:, :, None, None]
    if x.ndim == 4 and layer.in_channels == 1:
        return _ConvolutionOfGreyImages.apply(x, layer.weight, layer.bias, layer.stride, layer.padding)
    return nn.Conv2d.forward(layer, x)


def _conv_transpose2d(
    layer: nn.ConvTranspose2d, made: dict[str, Any], x: Tensor, output_size: list[int] | None = None
) -> Tensor:
    if x.ndim != 4 or output_size is not None or layer.output_padding != (0, 0):
        return nn.ConvTranspose2d.forward(layer, x, output_size)
    kernel = layer.kernel_size
    if x.shape[2:] == (1, 1) and layer.padding == (0, 0):
        maps = (x.flatten(1) @ _reformed(layer, made, _rows)).unflatten(1, (*kernel, layer.out_channels))
        maps = maps.permute(0, 3, 1, 2)
    elif not torch.is_grad_enabled() and _splits_into_blocks(layer, x):
        return _by_blocks(layer, made, x)
    elif layer.out_channels == 1:
        sides: Any = zip(x.shape[2:], layer.stride, layer.padding, kernel, strict=True)
        size = [(n - 1) * s - 2 * p + k for n, s, p, k in sides]
        maps = _added_up(x, layer.weight, size, layer.stride, layer.padding)
    else:
        return nn.ConvTranspose2d.forward(layer, x)
    return maps if layer.bias is None else maps + layer.bias[:, None, None].to(maps.dtype)


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
            found[0] = _added_up(gradient, weight, x.shape[2:], ctx.stride, ctx.padding)
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[1]:
            patches = _patches(x, gradient.shape[2:], kernel, ctx.stride, ctx.padding)
            found[1] = (patches @ rows).T.unflatten(1, (1, *kernel))
        if ctx.needs_input_grad[2]:
            found[2] = rows.sum(0)
        found = [g if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)]
        return (*found, None, None)


_NARROW, _MANY = 16, 32
"""Channels up to which, and grey images from which on, blocks pay on the CPU (``benchmarks/narrow_layers.py``)."""


_FORMS: dict[Any, Any] = {
    nn.Conv2d.forward: _conv2d,
    nn.ConvTranspose2d.forward: _conv_transpose2d,
}


def _added_up(x: Tensor, weight: Tensor, size: Any, stride: Any, padding: Any) -> Tensor:
    """The transposed convolution of x (N, C, H, W) with weight (C, 1, k, k): grey images of that size.

    Each position of x gives one patch; the patches are added up where they overlap, in float32 at least. The
    images take the place of the channels of ``fold``.
    """
    product = weight.flatten(1).T @ x.flatten(2)  # (N, k · k, H · W)
    patches = product.float() if product.dtype == torch.bfloat16 else product
    images = functional.fold(
        patches.reshape(1, -1, patches.shape[2]), size, weight.shape[2:], 1, padding, stride
    )
    return images.transpose(0, 1).to(product.dtype)


def _by_blocks(layer: Any, made: dict[str, Any], x: Tensor) -> Tensor:
    """A transposed convolution as a convolution whose channels are the pixels of a block of the output.

    A block is one stride in height and width; the outermost begin in the padding, which is cut off. Of a grey
    image a block is two strides, without padding: with so few channels, more of them cost less than a cut.
    """
    stride, padding = layer.stride[0], layer.padding
    group = 1 if layer.out_channels > 1 else 2
    cut = padding if group == 1 else (0, 0)
    left_out = [p - c for p, c in zip(padding, cut, strict=True)]
    kernel = _reformed(layer, made, partial(_per_block, stride=stride, padding=left_out, group=group))
    bias = None if layer.bias is None else layer.bias.repeat((group * stride) ** 2)
    before = [(k - 1 - p) // stride for k, p in zip(layer.kernel_size, left_out, strict=True)]
    blocks = functional.conv2d(x, kernel, bias, group, before).permute(0, 2, 3, 1)
    blocks = blocks.unflatten(3, (group * stride, group * stride, layer.out_channels))
    image = blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (N, H', W', C')
    (top, left), (height, width) = cut, image.shape[1:3]
    return image[:, top : height - top, left : width - left].contiguous().permute(0, 3, 1, 2)


def _per_block(weight: Tensor, stride: Any, padding: Any, group: int) -> Tensor:
    """Weight (C, C', k, k') of a transposed convolution as that of a convolution, (b · b · C', C, m, m').

    A block of b = group · stride pixels begins at every ``group``-th pixel i of the input. Its pixel a sees the
    input pixel i + d through tap a + padding − stride · d, for all d where there is such a tap.
    """
    pixel = torch.arange(group * stride)[:, None]
    for axis in (3, 2):
        pad, size = padding[axis - 2], weight.shape[axis]
        first, last = -((size - 1 - pad) // stride), (group * stride - 1 + pad) // stride
        tap = pixel + pad - stride * torch.arange(first, last + 1)
        weight = weight.movedim(axis, -1)[..., tap.clamp(0, size - 1)]
        weight = weight.masked_fill((tap < 0) | (tap >= size), 0.0)
    kernel = weight.permute(4, 2, 1, 0, 5, 3).flatten(0, 2)  # from (C, C', a', d', a, d)
    return kernel.contiguous(memory_format=torch.channels_last)


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
