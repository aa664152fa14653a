"""Sixteen images in one register: the innermost loop of the sparse kernels, in the compiler's own terms.

Numba turns Python loops into machine code, but it will not keep a sum over non-zero weights in registers for several
pixels at once. These functions say so to LLVM, which numba compiles with: a value is a vector of 16 floats, one for
each image, and the processor's own registers hold as much of it as they can.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Images that are computed side by side."""
BYTES = 4 * LANES
VECTOR = ir.VectorType(ir.FloatType(), LANES)
ALIGN = 4
FAST = ("contract", "nsz")
"""A product and a sum may become one instruction, which rounds once."""


def _splat(builder: Any, scalar: Any) -> Any:
    """A vector with the same number in every lane."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(VECTOR, ir.Undefined), zeros)


def _at(builder: Any, base: Any, pixel: Any) -> Any:
    """The address of a pixel's vector: base + 64 · pixel."""
    pixel = builder.sext(pixel, ir.IntType(64)) if pixel.type.width < 64 else pixel
    offset = builder.mul(pixel, ir.Constant(ir.IntType(64), BYTES))
    address = builder.gep(builder.bitcast(base, ir.IntType(8).as_pointer()), [offset])
    return builder.bitcast(address, VECTOR.as_pointer())


def gather(pixels: int, chains: int) -> Any:
    """A function for jitted code that sums over the non-zero weights of one output channel, at several pixels.

    It computes ``memory[to + step_out[q]] = bent(bias + Σₖ weights[k] · memory[offsets[k] + step_in[q]])`` for q in
    ``first … first + pixels - 1`` and k in ``begin … end - 1``, where ``bent`` multiplies what is negative by
    ``slope``: 1 is no activation, 0 is ReLU.

    Args:
        pixels: computed at once; each takes a register (two on processors with 8 floats in one).
        chains: so many sums run side by side for each pixel and are added at the end; a processor adds faster to
            several sums in turn than to one.
    """

    @intrinsic
    def function(
        typing: Any,
        memory: Any,
        weights: Any,
        offsets: Any,
        begin: Any,
        end: Any,
        bias: Any,
        slope: Any,
        step_in: Any,
        step_out: Any,
        first: Any,
        to: Any,
    ) -> Any:
        arrays = (memory, weights, offsets, step_in, step_out)
        signature = types.void(
            memory, weights, offsets, types.intp, types.intp, types.float32, types.float32, step_in, step_out,
            types.intp, types.intp,
        )  # fmt: skip
        assert all(isinstance(one, types.Array) for one in arrays)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = {
                number: cgutils.create_struct_proxy(sig.args[number])(context, builder, args[number]).data
                for number in (0, 1, 2, 7, 8)
            }
            _emit_gather(builder, data, args, pixels, chains)
            return context.get_dummy_value()

        return signature, generate

    return function


def _emit_gather(builder: Any, data: dict[int, Any], args: Any, pixels: int, chains: int) -> None:
    """The instructions of :func:`gather`."""
    begin, end, bias, slope, first, to = (args[number] for number in (3, 4, 5, 6, 9, 10))
    index = ir.IntType(64)
    slots = [builder.add(first, ir.Constant(index, q)) for q in range(pixels)]
    bases = [_at(builder, data[0], builder.load(builder.gep(data[7], [slot]))) for slot in slots]
    zero = _splat(builder, ir.Constant(ir.FloatType(), 0.0))
    sums = [
        [
            cgutils.alloca_once_value(builder, zero if chain else _splat(builder, bias))
            for chain in range(chains)
        ]
        for _ in range(pixels)
    ]

    def add(k: Any, chain: int) -> None:
        weight = _splat(builder, builder.load(builder.gep(data[1], [k])))
        offset = builder.load(builder.gep(data[2], [k]))
        for base, cells in zip(bases, sums, strict=True):
            x = builder.load(_at(builder, base, offset), align=ALIGN)
            product = builder.fmul(weight, x, flags=FAST)
            builder.store(builder.fadd(builder.load(cells[chain]), product, flags=FAST), cells[chain])

    count = builder.sub(end, begin)
    whole = builder.sub(end, builder.srem(count, ir.Constant(index, chains)))
    with cgutils.for_range_slice(builder, begin, whole, ir.Constant(index, chains), index) as (k, _):
        for chain in range(chains):
            add(builder.add(k, ir.Constant(index, chain)), chain)
    if chains > 1:
        with cgutils.for_range_slice(builder, whole, end, ir.Constant(index, 1), index) as (k, _):
            add(k, 0)
    out = _at(builder, data[0], to)
    for slot, cells in zip(slots, sums, strict=True):
        total = builder.load(cells[0])
        for other in cells[1:]:
            total = builder.fadd(total, builder.load(other), flags=FAST)
        negative = builder.fmul(total, _splat(builder, slope))
        bent = builder.select(builder.fcmp_ordered(">", total, zero), total, negative)
        target = _at(builder, out, builder.load(builder.gep(data[8], [slot])))
        builder.store(bent, target, align=ALIGN)
