"""Second ways to the answers of the exam bank, chapters 5 to 13."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from exam_oracles import floats, oracle, tensor
from scipy import integrate, optimize, sparse, stats
from torch import nn
from torch.nn import functional as F

import ganprune as gp
from ganprune.dynamic.schedules import geometric

# ---------------------------------------------------------------- chapter 5


def _generator(channels: list[int], kernels: list[int]) -> nn.Sequential:
    """A generator of transposed convolutions with batch norm between them."""
    layers: list[nn.Module] = []
    last = len(kernels) - 1
    for place, (a, b, k) in enumerate(zip(channels, channels[1:], kernels, strict=False)):
        layers.append(nn.ConvTranspose2d(a, b, k, bias=place == last))
        if place < last:
            layers.append(nn.BatchNorm2d(b))
            layers[-1].bias.data.fill_(1)  # no parameter but pruned ones is zero
    return nn.Sequential(*layers)


@oracle("05-two-sparsities")
def _(given: dict) -> dict:
    network = _generator(given["channels"], given["kernels"])
    prunable = gp.prunable_weights(network)
    n, parameters = sum(w.numel() for w in prunable.values()), sum(p.numel() for p in network.parameters())
    mask = gp.prune(network, given["sparsity"])
    whole = gp.complexity(network, mask, batch_size=None, inputs=torch.zeros(1, given["channels"][0], 1, 1))
    first = next(iter(prunable.values())).numel()
    return {
        "prunable": n,
        "parameters": parameters,
        "whole": whole.network_sparsity,
        "tool": round(given["sparsity"] * (n - first)) / n,
    }


@oracle("05-macs-and-bytes")
def _(given: dict) -> dict:
    macs = effective = size = kept = 0
    for place, (a, b, k, side) in enumerate(
        zip(given["channels"], given["channels"][1:], given["kernels"], given["sides"], strict=False)
    ):
        layer = nn.ConvTranspose2d(a, b, k, bias=False).double()
        with torch.no_grad():
            layer.weight.fill_(1)
            layer.weight.view(-1)[given["kept"][place] :] = 0
            used = layer(torch.ones(1, a, side, side, dtype=torch.float64)).sum().item()
            layer.weight.fill_(1)
            macs += round(layer(torch.ones(1, a, side, side, dtype=torch.float64)).sum().item())
        effective += round(used)
        kept += given["kept"][place]
        size += layer.weight.numel()
    return {
        "MACs": macs,
        "effective": effective,
        "factor": macs / effective,
        "suggested": size / kept,
        "bytes": size * torch.float32.itemsize,
    }


@oracle("05-channels-out")
def _(given: dict) -> dict:
    whole = _generator(given["width"], given["kernels"])
    small = [given["width"][0], *(int(w * (1 - given["share"])) for w in given["width"][1:-1]), 1]
    pairs = [
        (old.weight.numel(), new.weight.numel())
        for old, new in zip(whole, _generator(small, given["kernels"]), strict=True)
        if isinstance(old, nn.ConvTranspose2d)
    ]
    return {"shares": [b / a for a, b in pairs], "left": sum(b for _, b in pairs) / sum(a for a, _ in pairs)}


@oracle("05-index-cost")
def _(given: dict) -> dict:
    rows, columns = given["shape"]
    flat = np.zeros(rows * columns, dtype=f"float{given['bits']}" if given["bits"] == 32 else np.int16)
    flat[: given["kept"]] = 1
    found = sparse.csr_matrix(flat.reshape(rows, columns))
    index = found.indices.astype(f"int{given['index']}")
    compressed = found.data.nbytes + index.nbytes + found.indptr.astype(np.int32).nbytes
    bitmap = found.data.nbytes + np.packbits(flat != 0).nbytes
    each, fixed = given["bits"] + given["index"], (rows + 1) * 32
    most = max(k for k in range(rows * columns + 1) if k * each + fixed < rows * columns * given["bits"])
    return {
        "dense": flat.nbytes,
        "CSR": compressed,
        "bitmap": bitmap,
        "at most": most,
        "smaller": "CSR" if compressed < bitmap else "bitmap",
    }


@oracle("05-two-of-four")
def _(given: dict) -> dict:
    w = tensor(given["rows"])
    total = (w**2).sum()
    scores = {"layer": w.abs()}
    pattern = gp.allocate(scores, allocation="2:4", output_dims={"layer": 0})["layer"]
    free = gp.allocate(scores, 0.5)["layer"]
    return {
        "2:4": ((w[pattern] ** 2).sum() / total).item(),
        "unstructured": ((w[free] ** 2).sum() / total).item(),
        "outputs": ((w**2).sum(1).max() / total).item(),
    }


@oracle("05-memory")
def _(given: dict) -> dict:
    def places(make: Any, steps: int) -> list[float]:
        w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer, found, last = make([w]), [], 0.0
        for number in range(12_000 + steps):
            before = w.item()
            if number == 12_000:
                w.data.zero_()
            w.grad = torch.full_like(w, float(number < 12_000))
            optimizer.step()
            if number < 12_000:
                last = w.item() - before
            else:
                found.append(w.item() / last * given["last"])
        return found

    plain = places(lambda w: torch.optim.SGD(w, lr=0.01, momentum=given["beta"]), 500)
    betas = (given["beta"], given["second"])
    adam = places(lambda w: torch.optim.Adam(w, lr=0.01, betas=betas, eps=1e-300), 200)
    near = next(
        t for t, x in enumerate(plain, start=1) if abs(x - plain[-1]) <= 0.01 * abs(plain[-1]) + 1e-12
    )
    return {"after": plain[given["t"] - 1], "end": plain[-1], "Adam": adam[-1], "steps": near}


@oracle("05-shortest-file")
def _(given: dict) -> dict:
    d, bits, position = given["density"], given["bits"], given["position"]
    entropy = float(stats.entropy([d, 1 - d], base=2))
    formats = [d * (bits + position), d * bits + 1, d * bits + entropy]
    even = optimize.brentq(lambda x: x * position - 1, 1e-6, 1)
    other = optimize.brentq(lambda x: x * bits + 1 - bits, 1e-6, 1)
    return {
        "formats": formats,
        "bytes": given["n"] * (d * bits + entropy) / 8,
        "positions below": even,
        "bits below": other,
    }


@oracle("05-model-of-time")
def _(given: dict) -> dict:
    terms = np.array([given["macs"] / given["speed"], given["moved"] / given["width"]])
    dense, small = terms.max() + given["overhead"], (given["left"] * terms).max() + given["overhead"]
    nothing = (1e-12 * terms).max() + given["overhead"]
    return {
        "dense, ms": dense * 1e3,
        "limit": ("arithmetic", "memory")[int(terms.argmax())],
        "speed-up": dense / small,
        "at most": dense / nothing,
    }


# ---------------------------------------------------------------- chapter 6


@oracle("06-target")
def _(given: dict) -> dict:
    sizes = np.abs(given["weights"])
    reached = {int((sizes < tau).sum()) for tau in np.arange(0, 1.2, 0.0005)}
    counts = {tau: int((sizes < tau).sum()) for tau in np.round(np.arange(0, 1.2, 0.01), 2)}
    right = [tau for tau, count in counts.items() if count == given["k"]]
    return {
        "up to": max(right),
        "above": min(right) - 0.01,
        "never": [k for k in range(13) if k not in reached],
        "at": int((sizes < given["tied"]).sum()),
        "beyond": int((sizes < given["tied"] + 1e-9).sum()),
    }


def _kept(layers: dict[str, torch.Tensor], sparsity: float, how: str) -> list[int]:
    """Kept weights of each layer, by the package."""
    mask = gp.allocate({name: w.abs() for name, w in layers.items()}, sparsity, how)
    return [int(mask[name].sum()) for name in layers]


@oracle("06-one-or-two")
def _(given: dict) -> dict:
    one, two = tensor(given["one"]), tensor(given["two"])
    return {
        "global": _kept({"a": one, "b": two}, 0.5, "global"),
        "uniform": _kept({"a": one, "b": two}, 0.5, "uniform"),
        "rescaled": _kept({"a": one, "b": given["factor"] * two}, 0.5, "global"),
    }


@oracle("06-lamp-by-hand")
def _(given: dict) -> dict:
    layers = {"a": tensor(given["one"]), "b": tensor(given["two"])}
    scores = gp.allocation.lamp_scores({name: w.abs() for name, w in layers.items()})
    share = given["go"] / 8
    return {
        "first": scores["a"].tolist(),
        "second": scores["b"].tolist(),
        "LAMP": _kept(layers, share, "lamp"),
        "magnitude": _kept(layers, share, "global"),
    }


@oracle("06-erk-by-hand")
def _(given: dict) -> dict:
    draws = torch.Generator().manual_seed(0)
    layers = {str(i): torch.rand(shape, generator=draws) for i, shape in enumerate(given["shapes"])}
    kept = _kept(layers, 1 - given["density"], "erk")
    shares = [k / math.prod(s) for k, s in zip(kept, given["shapes"], strict=True)]
    return {"densities": shares, "times": shares[2] / given["density"], "within": 2e-3}


@oracle("06-normal-layers")
def _(given: dict) -> dict:
    keeps = [2 * stats.norm(0, s).sf(given["tau"]) for s in given["spreads"]]
    density = np.average(keeps, weights=given["sizes"])
    own = stats.norm(0, given["spreads"][1]).isf(keeps[0] / 2)
    return {"densities": keeps, "sparsity": 1 - density, "threshold": own}


@oracle("06-price")
def _(given: dict) -> dict:
    h, w = np.array(given["hessian"], dtype=float), np.array(given["w"])

    def loss(x: Any) -> float:
        v = np.asarray(x) - w
        return float(v @ h @ v / 2)

    prices = [loss([0, w[1]]), loss([w[0], 0])]
    best = optimize.minimize_scalar(lambda y: loss([0, y]))
    obs = w[0] ** 2 / (2 * np.linalg.inv(h)[0, 0])  # Hassibi and Stork's formula
    assert abs(obs - best.fun) < 1e-9
    return {
        "prices": prices,
        "magnitude removes": int(np.argmin(np.abs(w))) + 1,
        "OBD removes": int(np.argmin(prices)) + 1,
        "both": loss([0, 0]),
        "lowest": best.fun,
        "moves by": best.x - w[1],
    }


@oracle("06-statistics")
def _(given: dict) -> dict:
    rho, a, delta = given["rho"], given["a"], given["delta"]
    x = np.array([1.0, 1.0, -1.0, -1.0])  # mean 0, variance 1, as is y, and both are uncorrelated
    y = np.array([1.0, -1.0, 1.0, -1.0])
    pruned = delta + a * (rho * x + math.sqrt(1 - rho**2) * y)
    fresh = (pruned - pruned.mean()) / pruned.std()
    stale, anew = ((pruned - x) ** 2).mean(), ((fresh - x) ** 2).mean()
    return {"stale": stale, "fresh": anew, "anew": bool(anew < stale)}


# ---------------------------------------------------------------- chapter 7


@oracle("07-orders")
def _(given: dict) -> dict:
    a, b, c, d, e = given["coefficients"]

    def loss(w: torch.Tensor) -> torch.Tensor:
        return a * w[0] ** 2 + b * w[0] * w[1] + c * w[1] ** 2 + d * w[0] ** 3 + e * w[1]

    w = tensor(given["w"], grad=True)
    g = torch.autograd.grad(loss(w), w)[0]
    h = torch.autograd.functional.hessian(loss, w.detach())
    one, both = tensor([-given["w"][0], 0]), -w.detach()
    predict = lambda v: (g @ v + v @ h @ v / 2).item()
    return {
        "first": (g @ one).item(),
        "second": predict(one),
        "exact": (loss(w + one) - loss(w)).item(),
        "pair": predict(both),
        "truth": (loss(w + both) - loss(w)).item(),
    }


@oracle("07-sums")
def _(given: dict) -> dict:
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data = tensor([given["w"]])
    losses = lambda network: (network(tensor([row])).sum() for row in given["g"])
    snip = gp.score(layer, "snip", losses)["weight"][0]
    taylor = gp.score(layer, "taylor", losses)["weight"][0]
    i = int(snip.argmin())
    column = np.array(given["g"])[:, i]
    return {
        "SNIP": snip.tolist(),
        "Taylor": taylor.tolist(),
        "first": [i + 1, int(taylor.argmin()) + 1],
        "mean": column.mean(),
        "variance": column.var(),
    }


@oracle("07-grasp")
def _(given: dict) -> dict:
    h, v = tensor(given["hessian"]), tensor(given["shift"])

    def loss(w: torch.Tensor) -> torch.Tensor:
        return w @ h @ w / 2 - v @ w

    def speed(w: torch.Tensor) -> torch.Tensor:
        g = torch.autograd.grad(loss(w), w, create_graph=True)[0]
        return g @ g / 2

    w = tensor(given["w"], grad=True)
    g = torch.autograd.grad(loss(w), w)[0]
    scores = w.detach() * torch.autograd.grad(speed(w), w)[0]
    first = int(scores.argmin())
    gone = w.detach().clone()
    gone[first] = 0
    return {
        "gradient": g.tolist(),
        "scores": scores.tolist(),
        "first": first + 1,
        "by absolute values": int(scores.abs().argmin()) + 1,
        "before": speed(w).item(),
        "after": speed(gone.requires_grad_()).item(),
    }


@oracle("07-flow")
def _(given: dict) -> dict:
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    network[0].weight.data, network[2].weight.data = tensor(given["first"]), tensor([given["second"]])
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.abs_()
    weights = [layer.weight for layer in (network[0], network[2])]
    total = network(torch.ones(1, 2, dtype=torch.float64)).sum()
    scores = [w * g for w, g in zip(weights, torch.autograd.grad(total, weights), strict=True)]
    least = min(q.min().item() for q in scores)
    with torch.no_grad():
        for w, q in zip(weights, scores, strict=True):
            w[q == least] = 0
        left = network(torch.ones(1, 2, dtype=torch.float64)).sum().item()
    return {
        "R": total.item(),
        "first layer": scores[0].flatten().tolist(),
        "second layer": scores[1].flatten().tolist(),
        "left": left,
    }


@oracle("07-rounds")
def _(given: dict) -> dict:
    layers, d = len(given["sizes"]), given["density"]
    least = next(r for r in range(1, 10_000) if 1 - d ** (1 / r) < 1 / layers)
    left = 1.0
    for _ in range(given["rounds"]):
        left *= d ** (1 / given["rounds"])
    assert abs(left - d) < 1e-9
    order = np.argsort([1 / n for n in given["sizes"]])
    return {
        "share": 1 - math.exp(math.log(d) / given["rounds"]),
        "least": least,
        "layer": int(order[0]) + 1,
        "times": given["sizes"][order[0]] / given["sizes"][order[-1]],
    }


@oracle("07-movement")
def _(given: dict) -> dict:
    w = nn.Parameter(tensor(given["start"]))
    scores = torch.zeros(3, dtype=torch.float64)
    optimizer = torch.optim.SGD([w], lr=given["eta"])
    for row in given["g"]:
        before = w.detach().clone()
        w.grad = tensor(row)
        optimizer.step()
        scores += before * (w.detach() - before)  # the weight times its step
    return {
        "end": w.tolist(),
        "scores": scores.tolist(),
        "movement": int(scores.argmin()) + 1,
        "magnitude": int(w.abs().argmin()) + 1,
    }


@oracle("07-fisher")
def _(given: dict) -> dict:
    x, share = float(given["x"]), given["share"]
    losses = lambda w: (F.softplus(-w * x), F.softplus(w * x))  # outcomes 1 and 0
    w = tensor(given["w"], grad=True)
    one, zero = (torch.autograd.grad(loss, w)[0].item() for loss in losses(w))
    mean = lambda w: share * losses(w)[0] + (1 - share) * losses(w)[1]
    best = optimize.minimize_scalar(
        lambda v: mean(tensor(v)).item(), bounds=(-40, 40), options={"xatol": 1e-12}
    )
    return {
        "squared": share * one**2 + (1 - share) * zero**2,
        "curvature": torch.autograd.functional.hessian(mean, w.detach()).item(),
        "share": torch.sigmoid(w * x).item(),
        "w": best.x,
        "within": 2e-6,
    }


# ---------------------------------------------------------------- chapter 10


@oracle("10-cubic")
def _(given: dict) -> dict:
    first, last = given["ends"]
    end = given["start"] + given["length"]
    schedule = gp.dynamic.Cubic(last, start=given["start"], end=end, initial=first)
    sparsity = schedule(given["step"])
    slope = (schedule(given["start"] + 1) - schedule(given["start"])) / (1 - 1 / given["length"]) ** 1
    return {"sparsity": sparsity, "pruned": round(sparsity * given["weights"])} | (
        {} if abs(slope) < 0 else {"per step": 3 * (last - first) / given["length"] * given["weights"]}
    )


@oracle("10-half-gone")
def _(given: dict) -> dict:
    last, share, h = given["last"], given["share"], given["h"]
    at = optimize.brentq(lambda p: last * (1 - (1 - p) ** 3) - share * last, 0, 1, xtol=1e-13)
    keep = optimize.brentq(lambda k: k**h - (1 - last), 0.01, 1, xtol=1e-14)
    rounds = optimize.brentq(lambda k: 1 - keep**k - share * last, 0, h, xtol=1e-12)
    whole = next(k for k in range(h + 1) if 1 - keep**k >= share * last - 1e-12)
    return {"cubic": at, "keeps": keep, "rounds": rounds, "whole": whole}


@oracle("10-cost")
def _(given: dict) -> dict:
    last, begin, end = given["last"], given["begin"], given["end"]
    schedule = gp.dynamic.Cubic(last, start=round(begin * 10**6), end=round(end * 10**6))
    during = integrate.quad(lambda x: 1 - schedule(round(x * 10**6)), 0, 1, points=[begin, end], limit=400)[0]
    after = given["when"] + (1 - given["when"]) * (1 - last)
    return {
        "before": 1 - last,
        "during": during,
        "after": after,
        "steps": given["steps"] * during / (1 - last),
        "within": 1e-4,
    }


@oracle("10-stack")
def _(given: dict) -> dict:
    densities, count = given["densities"], len(given["densities"])
    squares, signal = [0.0] * count, 0.0
    for mask in itertools.product((0, 1), repeat=count):  # one path through the stack, all its masks
        chance = math.prod(d if m else 1 - d for d, m in zip(densities, mask, strict=True))
        signal += chance * math.prod(mask)
        for layer in range(count):
            if mask[layer]:
                squares[layer] += chance / densities[layer] * math.prod(mask)
    return {
        "signal": signal,
        "gradients": squares,
        "smallest": int(np.argmin(squares)) + 1,
        "size": math.sqrt(given["uniform"] ** (count - 1)),
        "scale": 1 / math.sqrt(densities[0]),
    }


@oracle("10-balance")
def _(given: dict) -> dict:
    real, before, after = (tensor(given[name]) for name in ("real", "before", "after"))
    lead, gain = (real.mean() - before.mean()).item(), (after - before).mean().item()
    rate = optimize.brentq(lambda r: gain * r / given["rate"] / lead - 0.5, 0, 1, xtol=1e-15)
    return {"lead": lead, "gain": gain, "ratio": gain / lead, "rate": rate}


# ---------------------------------------------------------------- chapter 13


@oracle("13-rounds")
def _(given: dict) -> dict:
    density, count, steps = 1.0, 0, given["steps"]
    while density > given["target"] + 1e-12:
        density *= given["keep"]
        count += 1
        steps += given["steps"] - given["late"]
    return {
        "rounds": count,
        "density": density,
        "pruned": round(geometric(count, given["keep"]) * given["n"]),
        "steps": steps,
    }


@oracle("13-barrier")
def _(given: dict) -> dict:
    places, values = np.linspace(0, 1, 5), np.array(given["values"])
    gaps = values - np.interp(places, [0, 1], values[[0, -1]])
    return {
        "barrier": gaps.max(),
        "at": places[gaps.argmax()],
        "naive": values.max() - max(values[0], values[-1]),
    }


@oracle("13-two-rounds")
def _(given: dict) -> dict:
    start, trained, again = (tensor(given[name]) for name in ("start", "trained", "again"))
    first = gp.allocate({"w": trained.abs()}, 0.25)
    second = gp.allocate({"w": again.abs() + 1e-9}, 0.5, within=first)["w"]
    shot = gp.allocate({"w": trained.abs()}, 0.5)["w"]
    number = lambda kept: (kept.nonzero()[:, 0] + 1).tolist()
    return {
        "round 1": number(first["w"]),
        "IMP": number(second),
        "one-shot": number(shot),
        "shared": int((second & shot).sum()),
        "ticket": (start * second).tolist(),
    }


@oracle("13-holm")
def _(given: dict) -> dict:
    adjusted = gp.records.holm(given["p"])
    p = sorted(given["p"])
    steps = next((i for i, x in enumerate(p) if x >= 0.05 / (4 - i)), 4)  # Holm's own procedure
    return {
        "plain": sum(x < 0.05 for x in p),
        "Bonferroni": sum(x < 0.0125 for x in p),
        "Holm": steps,
        "adjusted": adjusted,
    }


@oracle("13-five-seeds")
def _(given: dict) -> dict:
    logs = np.log(given["ticket"]) - np.log(given["control"])
    found = stats.ttest_1samp(logs, 0)
    wide, narrow = found.confidence_interval(0.95), found.confidence_interval(0.90)
    ours = gp.records.contrast(given["ticket"], given["control"])
    assert ours.matches() == (narrow.low > -math.log(1.1) and narrow.high < math.log(1.1))
    return {
        "ratio": math.exp(logs.mean()),
        "95%": floats(np.exp([wide.low, wide.high])),
        "beats": bool(wide.high < 0),
        "90%": floats(np.exp([narrow.low, narrow.high])),
        "matches": ours.matches(),
    }
