"""The header of a sparse file: one entry for each layer, checked before anything is made of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ganprune.inference.program import ACTIVATIONS, KINDS, Layer, output_shape, size_of

PAIRS = ("stride", "padding", "output_padding", "dilation")
LEAST = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
MOST = 2**28
"""So many weights, or numbers in one image, are read at most: a small file must not fill the memory."""


def layer_entry(layer: Layer, **places: Any) -> dict[str, Any]:
    """The entry of a layer; ``places`` says where its numbers lie in the payload."""
    slope = {"slope": layer.slope} if layer.activation == "leaky_relu" else {}
    return {
        "name": layer.name,
        "type": layer.kind,
        "weight": list(layer.weight.shape),
        **{name: list(getattr(layer, name)) for name in PAIRS},
        "groups": layer.groups,
        "input": list(layer.input),
        "output": list(layer.output),
        "activation": layer.activation,
        **slope,
        "upsample": layer.upsample,
        **places,
    }


def layer_from(entry: dict[str, Any], source: int, weight: Tensor, bias: Tensor) -> Layer:
    """The layer of a checked entry.

    Raises:
        ValueError: if its output is not the one that follows from its weight, input and options.
    """
    shapes: dict[str, Any] = {name: tuple(entry[name]) for name in (*PAIRS, "input", "output")}
    layer = Layer(
        entry["name"],
        entry["type"],
        weight,
        bias,
        source,
        groups=entry["groups"],
        upsample=entry["upsample"],
        activation=entry["activation"],
        slope=float(entry.get("slope", 0.0)),
        **shapes,
    )
    found = output_shape(layer)
    if found != layer.output or min(found) < 1:
        raise ValueError(f"{layer.name} makes {found} of {layer.input}, and should make {layer.output}")
    return layer


def check_header(header: Any, payload: int) -> None:
    """Does nothing if a header describes layers in one line whose numbers lie in the payload.

    Args:
        header: what the JSON holds.
        payload: the number of bytes behind it.

    Raises:
        ValueError: if it does not; the message says what is wrong.
    """
    _need(isinstance(header, dict), "its header must be an object")
    for key in ("latent", "image"):
        _need(_is_shape(header.get(key)), f"{key} must be a list of sizes, got {header.get(key)!r}")
    _need(isinstance(header.get("metadata"), dict), "metadata must be an object")
    layers = header.get("layers")
    _need(isinstance(layers, list) and bool(layers), "layers must be a list of at least one layer")
    before, end, weights = header["latent"], 0, 0
    for number, entry in enumerate(layers):
        name: Any = entry.get("name") if isinstance(entry, dict) else None
        _need(isinstance(name, str), f"layer {number} must be an object with a name")
        _check_options(name, entry)
        _check_shapes(name, entry)
        weights += size_of(tuple(entry["weight"]))
        _need(weights <= MOST, f"its weights, {weights:,} up to {name}, are more than {MOST:,}")
        _need(
            size_of(tuple(before)) == size_of(tuple(entry["input"])),
            f"{name} reads {entry['input']}, but gets {before}",
        )
        before, end = entry["output"], max(end, _check_places(name, entry, payload))
    _need(
        size_of(tuple(before)) == size_of(tuple(header["image"])),
        f"its last layer makes {before}, and its image is {header['image']}",
    )
    _need(end == payload, f"its payload should have {end} bytes and has {payload}")


def _check_options(name: str, entry: dict[str, Any]) -> None:
    for key, allowed in (("type", KINDS), ("activation", ACTIVATIONS)):
        found = entry.get(key)
        _need(
            isinstance(found, str) and found in allowed,
            f"{key} of {name} must be one of {', '.join(allowed)}, got {found!r}",
        )
    for key, least in LEAST.items():
        pair = entry.get(key)
        good = isinstance(pair, list) and len(pair) == 2 and all(_is_size(one, least) for one in pair)
        _need(good, f"{key} of {name} must be two integers of at least {least}, got {pair!r}")
    _need(entry.get("groups") == 1, f"groups of {name} must be 1, got {entry.get('groups')!r}")
    up = entry.get("upsample")
    _need(
        _is_size(up, 1) and (up == 1 or entry["type"] != "linear"),
        f"upsample of {name} must be an integer of at least 1, and 1 before a linear layer, got {up!r}",
    )
    slope = entry.get("slope", 0.0)
    number = isinstance(slope, (int, float)) and not isinstance(slope, bool) and abs(slope) < float("inf")
    wanted = entry["activation"] != "leaky_relu" or "slope" in entry
    _need(number and wanted, f"slope of {name} must be a finite number, got {entry.get('slope')!r}")


def _check_shapes(name: str, entry: dict[str, Any]) -> None:
    linear, shapes = entry["type"] == "linear", dict[str, Any]()
    for key, length in (
        ("weight", 2 if linear else 4),
        ("input", 1 if linear else 3),
        ("output", 1 if linear else 3),
    ):
        shapes[key] = entry.get(key)
        good = _is_shape(shapes[key]) and len(shapes[key]) == length
        _need(good, f"{key} of {name} must be {length} sizes, got {shapes[key]!r}")
        _need(size_of(tuple(shapes[key])) <= MOST, f"{key} of {name} holds more than {MOST:,} numbers")
    transposed = entry["type"] == "conv_transpose2d"
    inputs = shapes["weight"][0 if transposed else 1]
    _need(
        inputs == shapes["input"][0],
        f"weight of {name} reads {inputs} channels, and its input has {shapes['input'][0]}",
    )
    larger = size_of(tuple(shapes["input"])) * entry["upsample"] ** 2
    _need(larger <= MOST, f"upsample of {name} makes more than {MOST:,} numbers")


def _check_places(name: str, entry: dict[str, Any], payload: int) -> int:
    """Where a layer's numbers end in the payload, which must be inside of it."""
    count, end = entry.get("nonzeros"), 0
    _need(_is_size(count, 0), f"nonzeros of {name} must be an integer of at least 0, got {count!r}")
    outputs = entry["weight"][1 if entry["type"] == "conv_transpose2d" else 0]
    for key, size, wanted in (
        ("positions", "bytes", None),
        ("values", "count", count),
        ("bias", "count", outputs),
    ):
        place: Any = entry.get(key)
        good = isinstance(place, dict) and _is_size(place.get("offset"), 0) and _is_size(place.get(size), 0)
        _need(good, f"{key} of {name} must say its offset and {size}, got {place!r}")
        _need(wanted in (None, place[size]), f"{key} of {name} must be {wanted}, got {place[size]}")
        stop = place["offset"] + place[size] * (1 if size == "bytes" else 4)
        _need(
            place["offset"] % 4 == 0 and stop <= payload,
            f"{key} of {name} must lie at a multiple of 4 inside of the {payload} bytes behind the header",
        )
        end = max(end, stop + -stop % 4)
    return end


def _is_size(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**40


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(_is_size(one, 1) for one in value)


def _need(good: bool, problem: str) -> None:
    if not good:
        raise ValueError(problem)
