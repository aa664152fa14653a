"""Specs: frozen dataclasses that say what a network is, and the registry by which checkpoints know them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ganprune.core.checks import check_choice


class UntrustedError(ValueError):
    """A network of the user's own would have to be imported where its name is not trusted."""


MODEL_SPECS: dict[str, type] = {}


def register_model_spec(spec_class: type) -> type:
    """Class decorator: makes a spec known to checkpoints under its class name.

    A spec describes a network completely but for its weights. It is a frozen dataclass of plain values, and its method
    ``build()`` gives a freshly initialised network with this spec as its attribute ``spec``.
    """
    MODEL_SPECS[spec_class.__name__] = spec_class
    return spec_class


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain values, with its class name under "model"."""
    return {"model": type(spec).__name__, **dataclasses.asdict(spec)}


def spec_from_dict(values: dict[str, Any]) -> Any:
    """The inverse of :func:`spec_to_dict`.

    Raises:
        ValueError: if the model is not registered or the values do not fit it.
    """
    fields = dict(values)
    name = fields.pop("model", None)
    check_choice("model", name, sorted(MODEL_SPECS))
    try:
        return MODEL_SPECS[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})
    except TypeError as error:
        raise ValueError(f"the spec {values!r} does not fit {name}: {error}") from error
