"""One adapter for networks that this package does not know: what they take, and where in their output the image is.

It is given once, and then understood wherever a generator or discriminator is: by :class:`ganprune.GAN`, sampling,
losses, training, scores, channels and costs. Its parameters keep the names that they have without it, so that one mask
fits both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ganprune.core.checks import check_integer, check_number
from ganprune.core.device import placement_of
from ganprune.core.random import seeded, step_seed
from ganprune.data.splits import Split
from ganprune.networks.checking import check_inputs
from ganprune.networks.registry import MODEL_SPECS, register_model_spec, spec_from_dict, spec_to_dict
from ganprune.networks.sampling import latent_shape_of, sample_latents


@dataclass(frozen=True)
class Inputs:
    """What an adapted generator is called with, all of it determined by a seed.

    Attributes:
        latent: the shape of one latent; None where ``source`` gives the inputs.
        labels: the number of classes; 0 for none.
        one_hot: labels as rows (N, classes) of zeros and a one, instead of integers (N,).
        noise: the shapes of further normal inputs.
        source: images to draw from (a split, or a tensor), or a function (n, seed) → tensor or tuple.
    """

    latent: tuple[int, ...] | None = None
    labels: int = 0
    one_hot: bool = False
    noise: tuple[tuple[int, ...], ...] = ()
    source: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Inputs:
        return self  # copies of a network share the images that they draw from

    def draw(self, n: int, seed: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """The arguments of one call with ``n`` samples."""
        drawn: list[Any] = []
        if self.source is not None:
            found = self._from_source(n, seed)
            drawn += found if isinstance(found, tuple) else (found,)
        if self.latent is not None:
            drawn.append(sample_latents(n, self.latent, seed))
        if self.labels:
            random = seeded(step_seed(seed, 0, "labels"))
            drawn.append(self.encode(torch.randint(self.labels, (n,), generator=random, device="cpu")))
        for number, shape in enumerate(self.noise):
            random = seeded(step_seed(seed, number, "noise input"))
            drawn.append(torch.randn(n, *shape, generator=random, dtype=torch.float32, device="cpu"))

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

        return tree_map(place, tuple(drawn))

    def names(self, count: int) -> tuple[str, ...]:
        """The names of so many arguments: inputs (with numbers, if several), latents, labels, noise_0 and so on."""
        own = [*["latents"] * (self.latent is not None), *["labels"] * bool(self.labels)]
        own += [f"noise_{number}" for number in range(len(self.noise))]
        given = count - len(own)
        return (*(["inputs"] if given == 1 else [f"inputs_{number}" for number in range(given)]), *own)

    def encode(self, labels: Tensor) -> Tensor:
        """Integers (N,) as the network takes them."""
        return nn.functional.one_hot(labels, self.labels).float() if self.one_hot else labels

    def _from_source(self, n: int, seed: int) -> Any:
        if isinstance(self.source, Split):
            return self.source.batch(n, seed, 0)
        if isinstance(self.source, Tensor):
            random = seeded(step_seed(seed, 0, "input rows"))
            rows = torch.randint(len(self.source), (n,), generator=random, device="cpu")
            return self.source[rows.to(self.source.device)]
        return self.source(n, seed)


class Adapter(nn.Module):
    """A network that takes and gives something of its own, as this package wants it; :func:`adapt` makes one.

    Attributes:
        network: the network inside.
        inputs: what a generator is called with; None for a discriminator.
        output: which part of the output is the image or the logit.
        image_range: of the images that the generator makes, or that the discriminator takes.
        clamp: whether images outside of it are cut in evaluation mode.
    """

    wraps = "network"

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs | None,
        output: Any,
        image_range: tuple[float, float],
        clamp: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.inputs, self.output, self.image_range, self.clamp = inputs, output, image_range, clamp
        self.training = network.training
        if inputs is not None and inputs.latent is not None:
            self.latent_shape = inputs.latent
            self.latent_dim = int(torch.Size(inputs.latent).numel())
        spec = _spec_of(self)
        if spec is not None:
            self.spec = spec

    @property
    def draws(self) -> bool:
        """Whether this is a generator, which knows what it is called with."""
        return self.inputs is not None

    def draw_inputs(self, n: int, seed: int = 0) -> tuple[Any, ...]:
        """The arguments of one call, on the network's device; the seed determines all of them."""
        assert self.inputs is not None
        return self.inputs.draw(n, seed, *placement_of(self.network))

    def with_labels(self, arguments: tuple[Any, ...], labels: int | Tensor) -> tuple[Any, ...]:
        """The same arguments with these classes.

        Raises:
            ValueError: if the network takes no labels, they are no classes of it, or there are too few.
        """
        classes = 0 if self.inputs is None else self.inputs.labels
        if self.inputs is None or not classes:
            raise ValueError(
                "labels must be None: the network takes none; gp.adapt(network, labels=...) says it does"
            )
        place = len(arguments) - 1 - len(self.inputs.noise)
        old = arguments[place]
        chosen = torch.as_tensor(labels, device="cpu").long().expand(len(old))
        if int(chosen.min()) < 0 or int(chosen.max()) >= classes:
            raise ValueError(f"labels must be in [0, {classes}), got {labels!r}")
        encoded = self.inputs.encode(chosen).to(old.device, old.dtype)
        return (*arguments[:place], encoded, *arguments[place + 1 :])

    def with_network(self, network: nn.Module) -> Adapter:
        """The same adapter around another network."""
        return Adapter(network, self.inputs, self.output, self.image_range, self.clamp)

    def forward(self, *arguments: Any) -> Tensor:
        """Images in [-1, 1] of a generator; logits (N,) of a discriminator, for images (N, C, H, W) in [-1, 1]."""
        low, high = self.image_range
        plain = (low, high) == (-1.0, 1.0)
        if self.inputs is None:
            (images,) = arguments
            logits = pick(
                self.network(images if plain else (images + 1) * ((high - low) / 2) + low), self.output
            )
            one_each = isinstance(logits, Tensor) and logits.numel() == len(images)
            return logits.reshape(-1) if one_each else logits
        images = pick(self.network(*arguments), self.output)
        if not isinstance(images, Tensor):
            return images  # whoever asked for them says what came instead
        images = images if plain else (images - low) * (2 / (high - low)) - 1
        return images.clamp(-1, 1) if self.clamp and not self.training else images

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        return f"inputs={self.inputs!r}, output={self.output!r}, image_range={self.image_range}"


def pick(found: Any, output: Any) -> Any:
    """A part of what a network gives: all of it (None), an entry, an attribute, or what a function makes of it.

    Raises:
        ValueError: if there is no such part.
    """
    if output is None:
        return found
    if callable(output):
        return output(found)
    try:
        return getattr(found, output) if isinstance(output, str) and hasattr(found, output) else found[output]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        there = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            there = f"a mapping with {', '.join(map(repr, found))}"
        elif isinstance(found, (tuple, list)):
            there += f" of {len(found)}"
        raise ValueError(
            f"output must name a part of what the network gives, {there}; got {output!r}"
        ) from error


def adapt(
    network: nn.Module,
    latent: int | tuple[int, ...] | None = None,
    labels: int = 0,
    *,
    one_hot: bool = False,
    noise: int | Iterable[int] | Iterable[tuple[int, ...]] = (),
    inputs: Split | Tensor | Callable[[int, int], Any] | None = None,
    output: str | int | Callable[[Any], Tensor] | None = None,
    image_range: tuple[float, float] = (-1.0, 1.0),
    clamp: bool = False,
) -> Adapter:
    """A generator or discriminator of any form, as every function of this package takes it.

    The network is called with what is given here, in this order: ``inputs``, a latent, labels, noise. All of it is
    drawn from a seed; training draws it from (seed, step). With neither ``latent`` nor ``inputs``, and where the
    network names no ``latent_dim`` of its own, it is a discriminator and is called with images.

    Args:
        network: any module; it is held, not copied, and may be used on its own as before.
        latent: the shape of one latent, or its length: 128, or (128, 1, 1) for maps of one pixel; standard normal.
        labels: the number of classes, which are drawn uniformly; 0 for a network that takes none.
        one_hot: labels as rows of zeros and a one instead of integers.
        noise: the shape of one further normal input, or its length, or a list of shapes.
        inputs: instead of a latent (or before it), for networks from image to image: images to draw from, as a split
            (in [-1, 1]) or as a tensor (N, C, H, W), or a function (n, seed) that gives a tensor, or a tuple of
            arguments.
        output: where the image, or the logit, stands in what the network gives: a key, an index, or a function of it.
        image_range: the lowest and highest value of the images that the generator makes, or that the discriminator
            takes, such as (0, 1) or (0, 255). They become images in [-1, 1]; without it nothing is guessed.
        clamp: cut what is outside of that range in evaluation mode, for generators without a last tanh.

    Returns:
        The adapter. Its ``network`` is the network that was given. :func:`ganprune.save` can save it if the network has
        a spec (``CustomSpec`` or one of the package's) and the options are plain values; otherwise write a function
        that returns the adapted network and name it by ``CustomSpec("module:function")``.

    Raises:
        TypeError: if ``network`` is no module.
        ValueError: if an option is outside of what is allowed, the network is adapted already, or a generator fails
            when it is called, once and with two samples, with what the options say that it takes.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if isinstance(network, Adapter):
        raise ValueError("network is adapted already; adapt network.network anew")
    if not isinstance(image_range, (tuple, list)) or len(image_range) != 2:
        raise ValueError(f"image_range must be (lowest, highest), got {image_range!r}")
    low, high = (check_number("image_range", end, "(-inf, inf)") for end in image_range)
    if not low < high:
        raise ValueError(f"image_range must be (lowest, highest), got {image_range!r}")
    shape = None if latent is None else _shape("latent", latent)
    named = any(
        getattr(one, name, None) is not None
        for one in (network, getattr(network, "spec", None))
        for name in ("latent_dim", "latent_shape")
    )
    if shape is None and inputs is None and named:
        shape = latent_shape_of(network)
    shapes: tuple[Any, ...] = tuple(noise) if isinstance(noise, Iterable) else (noise,)
    if shapes and not isinstance(shapes[0], (tuple, list)):
        shapes = (shapes,)
    given = Inputs(
        shape,
        check_integer("labels", labels, 0),
        bool(one_hot),
        tuple(_shape("noise", one) for one in shapes),
        inputs,
    )
    generator = shape is not None or inputs is not None
    if not generator and (given.labels or given.noise):
        raise ValueError(
            "latent must be given (or inputs) with labels or noise, which only a generator takes"
        )
    if generator:
        check_inputs(network, given)
    return Adapter(network, given if generator else None, output, (low, high), bool(clamp))


def _shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(check_integer(name, size, 1) for size in sizes)


@register_model_spec
@dataclass(frozen=True)
class AdaptedSpec:
    """The spec of an adapted network: that of the network inside, as plain values, and the options of :func:`adapt`."""

    network: dict[str, Any]
    latent: tuple[int, ...] | None = None
    labels: int = 0
    one_hot: bool = False
    noise: tuple[tuple[int, ...], ...] = ()
    output: str | int | None = None
    image_range: tuple[float, float] = (-1.0, 1.0)
    clamp: bool = False

    def build(self) -> Adapter:
        """The freshly initialised network in its adapter.

        Raises:
            ValueError: if the network inside cannot be built, for instance where its name is not trusted.
        """
        options = {key: value for key, value in asdict(self).items() if key != "network"}
        return adapt(spec_from_dict(self.network).build(), **options)


def _spec_of(adapter: Adapter) -> AdaptedSpec | None:
    """The spec of an adapter whose network has one and whose options are plain values; else None."""
    inside = getattr(adapter.network, "spec", None)
    inputs = adapter.inputs or Inputs()
    if MODEL_SPECS.get(type(inside).__name__) is not type(inside):
        return None
    if inputs.source is not None or not isinstance(adapter.output, (str, int, type(None))):
        return None
    return AdaptedSpec(
        spec_to_dict(inside),
        inputs.latent,
        inputs.labels,
        inputs.one_hot,
        inputs.noise,
        adapter.output,
        adapter.image_range,
        adapter.clamp,
    )
