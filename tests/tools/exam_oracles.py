"""A second way to each answer of the exam bank: autograd, PyTorch's layers, the package, SciPy, or brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from scipy.linalg import sqrtm
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn import functional as F

import ganprune as gp

Oracle = Callable[[dict[str, Any]], dict[str, Any]]
ORACLES: dict[str, Oracle] = {}


def oracle(name: str) -> Callable[[Oracle], Oracle]:
    """Enter the second way to the answers of a question."""

    def enter(way: Oracle) -> Oracle:
        ORACLES[name] = way
        return way

    return enter


def tensor(values: Any, grad: bool = False) -> torch.Tensor:
    """Numbers in double precision."""
    return torch.tensor(np.asarray(values, dtype=float).tolist(), dtype=torch.float64, requires_grad=grad)


def floats(values: Any) -> list[float]:
    """Fractions as numbers."""
    return [float(value) for value in values]


# ---------------------------------------------------------------- chapter 1


@oracle("01-best-judge")
def _(given: dict) -> dict:
    p, q = tensor(floats(given["p"])), tensor(floats(given["q"]))
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * F.softplus(-logits) + q * F.softplus(logits)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    right = sum(a if d > 0 else b for a, b, d in zip(p, q, logits, strict=True)) / 2
    return {
        "probabilities": logits.sigmoid().tolist(),
        "logit": logits[given["asked"]].item(),
        "right": float(right),
    }


@oracle("01-divergence-by-hand")
def _(given: dict) -> dict:
    jsd = jensenshannon(floats(given["p"]), floats(given["q"])) ** 2
    return {
        "divergence": jsd,
        "value": 2 * jsd - 2 * math.log(2),
        "loss": 2 * math.log(2) - 2 * jsd,
        "share": jensenshannon(floats(given["p"]), floats(given["q"]), base=2) ** 2,
    }


@oracle("01-two-intervals")
def _(given: dict) -> dict:
    a, b, start = (float(given[name]) for name in ("a", "b", "start"))

    def divergence(shift: float) -> float:
        edges = sorted({0.0, a, shift, shift + b})
        total = 0.0
        for low, high in itertools.pairwise(edges):
            middle = (low + high) / 2
            p, q = (1 / a if middle < a else 0), (1 / b if shift < middle < shift + b else 0)
            total += (high - low) / 2 * sum(c * math.log(2 * c / (p + q)) for c in (p, q) if c)
        return total

    assert divergence(a) == np.float64(divergence(a + 1)) or abs(divergence(a) - divergence(a + 1)) < 1e-12
    return {
        "logit": math.log(1 / a) - math.log(1 / b),
        "divergence": divergence(start),
        "constant": divergence(a + 0.5),
    }


@oracle("01-slopes")
def _(given: dict) -> dict:
    a = tensor(given["a"], grad=True)
    minimax = torch.autograd.grad(torch.log1p(-a.sigmoid()), a)[0].item()
    other = torch.autograd.grad(-F.logsigmoid(a), a)[0].item()
    found = optimize.brentq(lambda x: (1 / (1 + math.exp(x))) * (1 + math.exp(-x)) - given["times"], -20, 5)
    return {"minimax": minimax, "non-saturating": other, "ratio": other / minimax, "logit": found}


@oracle("01-smoothed")
def _(given: dict) -> dict:
    def best(a: float, b: float, alpha: float, beta: float) -> float:
        def loss(s: float) -> float:
            data = alpha * math.log(s) + (1 - alpha) * math.log(1 - s)
            return -a * data - b * (beta * math.log(s) + (1 - beta) * math.log(1 - s))

        return optimize.minimize_scalar(loss, bounds=(1e-9, 1 - 1e-9), options={"xatol": 1e-12}).x

    numbers = given["a"], given["b"], given["alpha"]
    return {
        "one-sided": best(*numbers, 0),
        "two-sided": best(*numbers, given["beta"]),
        "without data": best(0, given["b"], given["alpha"], given["beta"]),
    }


@oracle("01-revealed")
def _(given: dict) -> dict:
    p, q = floats(given["p"]), floats(given["q"])
    says = tensor(given["says"])
    loss = F.binary_cross_entropy(says, torch.ones_like(says), weight=tensor(p), reduction="sum")
    loss = loss + F.binary_cross_entropy(says, torch.zeros_like(says), weight=tensor(q), reduction="sum")
    jsd = jensenshannon(p, q) ** 2
    bound = (2 * math.log(2) - loss.item()) / 2
    return {"loss": loss.item(), "bound": bound, "divergence": jsd, "room": 2 * (jsd - bound)}


@oracle("01-modes")
def _(given: dict) -> dict:
    points, centres = tensor(given["samples"])[:, None], tensor(given["centres"])[:, None]
    nearest = torch.cdist(points, centres).min(dim=1)
    good = nearest.values < given["reach"]
    counts = Counter(nearest.indices[good].tolist())
    covered = [given["centres"][i] for i in range(5) if counts[i] >= given["least"]]
    return {
        "counts": [counts[i] for i in range(5)],
        "good": good.double().mean().item(),
        "covered": covered,
    }


# ---------------------------------------------------------------- chapter 2


@oracle("02-three-layers")
def _(given: dict) -> dict:
    maps, sides, weights, shapes = (
        torch.zeros(1, given["channels"][0], given["side"], given["side"]),
        [],
        [],
        [],
    )
    for (k, s, p), a, b in zip(given["layers"], given["channels"], given["channels"][1:], strict=False):
        layer = nn.ConvTranspose2d(a, b, k, s, p, bias=False)
        maps = layer(maps)
        sides.append(maps.shape[-1])
        weights.append(layer.weight.numel())
        shapes.append(tuple(layer.weight.shape))
    return {"sides": sides, "weights": weights, "shape": shapes[1]}


def _counts(n: int, k: int, s: int, p: int) -> torch.Tensor:
    """Stamps on each pixel."""
    return F.conv_transpose2d(torch.ones(1, 1, n, n), torch.ones(1, 1, k, k), stride=s, padding=p)[0, 0]


@oracle("02-kernel-for-size")
def _(given: dict) -> dict:
    s, n, found, even = given["s"], given["n"], [], []
    for k in range(given["least"], given["most"] + 1):
        for p in range(k):
            if (
                F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, k), stride=s, padding=p).shape[-1]
                == (given["target"])
            ):
                found.append((k, p))
                inner = _counts(n + 20, k, s, p)[2 * k : -2 * k, 2 * k : -2 * k]
                if inner.min() == inner.max():
                    even.append((k, p))
    inner = _counts(n + 20, *((found[-1][0], s, found[-1][1])))
    k = found[-1][0]
    inner = inner[2 * k : -2 * k, 2 * k : -2 * k]
    canvas = F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, k), stride=s).shape[-1]
    return {
        "pairs": found,
        "even": even,
        "canvas": canvas,
        "fewest": int(inner.min()),
        "most": int(inner.max()),
    }


@oracle("02-stamping")
def _(given: dict) -> dict:
    y, w = tensor(given["y"])[None, None], tensor(given["w"])[None, None]
    whole = F.conv_transpose1d(y, w, stride=given["s"])[0, 0]
    output = F.conv_transpose1d(y, w, stride=given["s"], padding=given["p"])[0, 0]
    return {
        "canvas": len(whole),
        "places": len(output),
        "output": output.tolist(),
        "sum": whole.sum().item(),
    }


@oracle("02-which-stamps")
def _(given: dict) -> dict:
    n, k, s, p = (given[name] for name in "nksp")
    image = torch.zeros(1, 1, n, n, requires_grad=True)
    out = F.conv_transpose2d(image, torch.ones(1, 1, k, k), stride=s, padding=p)[0, 0]
    touched = torch.autograd.grad(out[given["row"], given["column"]], image)[0][0, 0]
    rows, columns = touched.any(1).nonzero()[:, 0].tolist(), touched.any(0).nonzero()[:, 0].tolist()
    line = F.conv_transpose1d(torch.ones(1, 1, 60), torch.ones(1, 1, k), stride=s)[0, 0, 30 : 30 + 12 * s]
    return {
        "rows": rows,
        "columns": columns,
        "stamps": int(touched.sum()),
        "share": (line == line.max()).double().mean().item(),
    }


@oracle("02-adjoint")
def _(given: dict) -> dict:
    w, x, y = (tensor(given[name])[None, None] for name in "wxy")
    forward, back = F.conv1d(x, w, stride=2), F.conv_transpose1d(y, w, stride=2)
    both = (forward * y).sum().item()
    assert both == (back * x).sum().item()
    return {"Ax": forward[0, 0].tolist(), "transposed": back[0, 0].tolist(), "both": both}


@oracle("02-dirac-step")
def _(given: dict) -> dict:
    theta, psi = tensor(given["theta"], grad=True), tensor(given["psi"], grad=True)
    before = (theta**2 + psi**2).item()
    loss = math.log(2) + F.softplus(psi * theta) + given["gamma"] / 2 * psi**2
    new = (psi - given["eta"] * torch.autograd.grad(loss, psi)[0]).detach()
    moved = theta - given["eta"] * torch.autograd.grad(F.softplus(-new * theta), theta)[0]
    after = (moved**2 + new**2).item()
    return {"psi": new.item(), "theta": moved.item(), "before": before, "after": after}


@oracle("02-friction")
def _(given: dict) -> dict:
    f, h, lazy = 1 - given["eta"] * given["gamma"], given["eta"] / 2, given["lazy"]
    together, turns = np.array([[1, h], [-h, f]]), np.array([[1 - h * h, f * h], [-h, f]])
    moduli = [np.abs(np.linalg.eigvals(m)).max() for m in (together, turns)]
    steps = next(t for t in range(1, 5000) if moduli[1] ** t < 1e-3)

    def damped(gamma: float) -> float:
        return np.abs(np.linalg.eigvals([[1, h], [-h, 1 - given["eta"] * gamma]])).max() - 1

    psi = 1.0
    for _ in range(lazy):
        psi -= given["eta"] * given["gamma"] * psi
    return {
        "simultaneous": moduli[0],
        "alternating": moduli[1],
        "bound": optimize.brentq(damped, 0, given["gamma"] + 0.2),
        "steps": steps,
        "every": psi,
        "lazy": 1 - given["eta"] * lazy * given["gamma"],
    }


# ---------------------------------------------------------------- chapter 3


@oracle("03-on-a-line")
def _(given: dict) -> dict:
    real, made = given["real"], given["made"]
    best = min(
        sum(abs(a - b) for a, b in zip(real, order, strict=True)) for order in itertools.permutations(made)
    )
    moved = [x + given["shift"] for x in made]
    return {"distance": best / 5, "after": stats.wasserstein_distance(real, moved)}


@oracle("03-masses")
def _(given: dict) -> dict:
    p, q = np.array(given["p"]) / 20, np.array(given["q"]) / 20
    rows = np.array([[i == k for i in range(6) for _ in range(6)] for k in range(6)], dtype=float)
    columns = np.array([[j == k for _ in range(6) for j in range(6)] for k in range(6)], dtype=float)
    price = [abs(i - j) for i in range(6) for j in range(6)]
    plan = optimize.linprog(price, A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q]))
    slopes = [
        row
        for i in range(5)
        for row in ([0] * i + [-1, 1] + [0] * (4 - i), [0] * i + [1, -1] + [0] * (4 - i))
    ]
    best = optimize.linprog(-(p - q), A_ub=slopes, b_ub=np.ones(10), bounds=[(0, 0)] + [(None, None)] * 5)
    assert abs(plan.fun + best.fun) < 1e-9
    return {"distance": plan.fun, "critic": np.round(best.x, 9).tolist()}


@oracle("03-penalised")
def _(given: dict) -> dict:
    shift, weight = given["shift"], given["weight"]

    def loss(b: float) -> float:
        return -(b * shift - weight * (abs(b) - 1) ** 2)

    found = optimize.minimize_scalar(loss, bounds=(0.001, 60), options={"xatol": 1e-11}).x
    wrong = optimize.minimize_scalar(loss, bounds=(-5, -1e-9), options={"xatol": 1e-11}).x
    trapped = wrong < -1e-6
    return {
        "slope": found,
        "estimate": found * shift,
        "per cent": 100 * (found - 1),
        "stuck at": wrong if trapped else "nowhere",
    }


@oracle("03-clipped")
def _(given: dict) -> dict:
    def bound(c: float) -> float:
        widths = given["widths"]
        layers = [torch.full((b, a), c, dtype=torch.float64) for a, b in itertools.pairwise(widths)]
        return math.prod(torch.linalg.matrix_norm(layer, 2).item() for layer in layers)

    return {
        "bound": bound(given["c"]),
        "halved": bound(given["c"] / 2) / bound(given["c"]),
        "c": optimize.brentq(lambda c: bound(c) - 1, 1e-4, 10),
    }


@oracle("03-power-iteration")
def _(given: dict) -> dict:
    w = np.array(given["w"], dtype=float)
    values = np.linalg.svd(w, compute_uv=False)
    v, estimates = np.array([1.0, 0.0]), []
    for _ in range(2):
        estimates.append(np.linalg.norm(w @ v))
        v = w.T @ (w @ v)
        v /= np.linalg.norm(v)
    return {
        "first": estimates[0],
        "second": estimates[1],
        "norm": values[0],
        "factor": (values[1] / values[0]) ** 2,
    }


@oracle("03-kernel-norm")
def _(given: dict) -> dict:
    w, stride, n = given["w"], given["stride"], 96
    matrix = np.zeros((n // stride, n))
    for i in range(n // stride):
        for c, weight in enumerate(w):
            matrix[i, (stride * i + c) % n] += weight
    kernel, operator = np.linalg.norm(w), np.linalg.norm(matrix, 2)
    patches = int((matrix != 0).sum(0).max())
    return {
        "kernel": kernel,
        "patches": patches,
        "bound": math.sqrt(patches) * kernel,
        "operator": operator,
        "stretch": np.linalg.norm(matrix / kernel, 2),
    }


# ---------------------------------------------------------------- chapter 4


def _frechet(m1: Any, s1: Any, m2: Any, s2: Any) -> float:
    """The distance by SciPy's matrix root."""
    m1, m2, s1, s2 = (np.atleast_1d(np.asarray(x, dtype=float)) for x in (m1, m2, s1, s2))
    s1, s2 = np.atleast_2d(s1), np.atleast_2d(s2)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2))))


@oracle("04-three-generators")
def _(given: dict) -> dict:
    mean, spread = given["real"]
    found = [_frechet(mean, spread**2, m, s**2) for m, s in given["others"]]
    best = optimize.minimize_scalar(lambda c: (c - mean) ** 2 + spread**2)
    values = {"A": found[0], "B": found[1], "C": best.fun}
    return values | {"C at": best.x, "smallest": min(values, key=values.__getitem__)}


@oracle("04-two-clouds")
def _(given: dict) -> dict:
    first, second = given["first"], given["second"]
    root = float(np.trace(np.real(sqrtm(np.array(first) @ np.array(second)))))
    distance = _frechet([0, 0], first, given["shift"], second)
    return {"root": root, "distance": distance, "covariances": _frechet([0, 0], first, [0, 0], second)}


@oracle("04-to-infinity")
def _(given: dict) -> dict:
    slope, limit = np.polyfit([1 / given["few"], 1 / given["many"]], given["values"], 1)
    needed = next(
        n
        for n in range(int(slope / given["tolerance"]) - 3, 10**6)
        if slope / n <= given["tolerance"] + 1e-12
    )
    return {"slope": slope, "infinity": limit, "at": limit + slope / given["other"], "needed": needed}


@oracle("04-kid-by-hand")
def _(given: dict) -> dict:
    real, made = (torch.tensor(given[name], dtype=torch.float32)[:, None] for name in ("real", "made"))
    kernel = lambda a, b: (a @ b.T + 1) ** 3
    biased = kernel(real, real).mean() + kernel(made, made).mean() - 2 * kernel(real, made).mean()
    return {"unbiased": gp.metrics.kid(made, real), "biased": biased.item()}


@oracle("04-fidelity")
def _(given: dict) -> dict:
    real, made = tensor(given["real"])[:, None], tensor(given["made"])[:, None]
    precision, recall = gp.metrics.precision_recall(made, real, neighbours=1)
    return {"precision": precision, "recall": recall}


@oracle("04-variety")
def _(given: dict) -> dict:
    real, made = tensor(given["real"])[:, None], tensor(given["made"])[:, None]
    density, coverage = gp.metrics.density_coverage(made, real, neighbours=2)
    copies = tensor([given["copied"]] * 4)[:, None]
    other, less = gp.metrics.density_coverage(copies, real, neighbours=2)
    radii = torch.cdist(real, real).kthvalue(3, dim=1).values  # itself, the nearest, the second nearest
    return {
        "radii": radii.tolist(),
        "density": density,
        "coverage": coverage,
        "density of copies": other,
        "coverage of copies": less,
    }


@oracle("04-perfect")
def _(given: dict) -> dict:
    m, n, k = given["m"], given["n"], given["k"]
    empty = stats.hypergeom(m - 1 + n, m - 1, k).pmf(k)
    needed = next(x for x in range(1, 10**6) if 1 - (m / (m + x)) ** k >= given["wish"] - 1e-12)
    return {"empty": empty, "coverage": 1 - empty, "needed": needed}


@oracle("04-classes")
def _(given: dict) -> dict:
    q = np.array(given["q"])
    without = q.copy()
    without[given["lost"]] = 0
    return {
        "divergence": stats.entropy(given["p"], q),
        "lost": stats.entropy(without / without.sum(), q),
    }
