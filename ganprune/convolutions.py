"""Convolutions in another form: the layers next to the latent, the image and the logit, and narrow ones.

The first layer of a DCGAN generator sees maps of one pixel, and the last layer of its discriminator leaves
maps of one pixel: there the sum over positions has one term, and the convolution *is* a matrix product. Next
to a grey image there is one channel: a product over patches, added up where they overlap (``fold``), is all
there is to do. And a transposed convolution to few channels, as in a pruned generator, is a convolution to
stride² times as many, each for one of the pixels of a stride (Shi et al. 2016, "Is the deconvolution layer the
same as a convolutional layer?"). On the CPU the general kernels are slow at these shapes, so training steps
and sampling take the other form instead. The result is the same up to rounding.
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
    """Whether a transposed convolution has so few outputs that giving each pixel of a stride its own pays."""
    return (
        isinstance(layer, nn.ConvTranspose2d)
        and layer.out_channels <= min(layer.in_channels, _NARROW)
        and (layer.out_channels > 1 or layer.in_channels <= _NARROW)
        and layer.stride[0] == layer.stride[1] > 1
        and all(k % s == 0 for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    )


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
    elif not torch.is_grad_enabled() and _is_narrow(layer):
        stride = layer.stride[0]
        maps = _sub_pixels(
            x, _reformed(layer, made, partial(_per_pixel, stride=stride)), stride, layer.padding
        )
    elif layer.out_channels == 1:
        sides: Any = zip(x.shape[2:], layer.stride, layer.padding, kernel, strict=True)
        size = [(n - 1) * s - 2 * p + k for n, s, p, k in sides]
        maps = _added_up(x, layer.weight, size, layer.stride, layer.padding)
    else:
        return nn.ConvTranspose2d.forward(layer, x)
    return maps if layer.bias is None else maps + layer.bias[:, None, None]


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


_NARROW = 8
"""Channels, found by timing on one and two threads: beyond, the form per pixel does not pay for every layer."""

_FORMS: dict[Any, Any] = {
    nn.Conv2d.forward: _conv2d,
    nn.ConvTranspose2d.forward: _conv_transpose2d,
}


def _added_up(x: Tensor, weight: Tensor, size: Any, stride: Any, padding: Any) -> Tensor:
    """The transposed convolution of x (N, C, H, W) with weight (C, 1, k, k): grey images of that size.

    Each position of x gives one patch; the patches are added up where they overlap, in float32 at least. The
    images take the place of the channels of ``fold``, which works through channels in parallel.
    """
    patches = weight.flatten(1).T @ x.flatten(2)  # (N, k · k, H · W)
    if patches.dtype == torch.bfloat16:
        patches = patches.float()
    images = functional.fold(
        patches.reshape(1, -1, patches.shape[2]), size, weight.shape[2:], 1, padding, stride
    )
    return images.transpose(0, 1)


def _per_pixel(weight: Tensor, stride: int) -> Tensor:
    """Weight (C, C', k, k') of a transposed convolution as that of a convolution, (C' · s², C, k / s, k' / s).

    Output pixel s · i + r sees the taps s · m + r of the pixels i − m: there is one kernel for each r.
    """
    taps = weight.unflatten(3, (-1, stride)).unflatten(2, (-1, stride)).flip(2, 4)  # (C, C', m, r, m', r')
    return taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)


def _sub_pixels(x: Tensor, kernel: Tensor, stride: int, padding: Any) -> Tensor:
    """The transposed convolution of x with a weight in the form above."""
    if len(kernel) == stride**2:
        x = x.contiguous()  # with one channel there is nothing to keep together
    layout = (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    edge = [side - 1 for side in kernel.shape[2:]]
    maps = functional.pixel_shuffle(functional.conv2d(x, kernel, padding=edge), stride)
    (top, left), (height, width) = padding, maps.shape[2:]
    return maps[:, :, top : height - top, left : width - left].contiguous(memory_format=layout)


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
