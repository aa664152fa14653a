"""Questions on chapter 6: thresholds, allocations, prices of weights, and batch statistics."""

from __future__ import annotations

import math
import random

from exam.figures import grid
from exam.question import Draft, listed, matrix, num, plus, question, table


@question("From a target to a threshold", chapter=6, difficulty=1, minutes=5, parts=(1, 2, 2))
def target(draw: random.Random) -> Draft:
    """Twelve weights with a tie → the count of a target, its thresholds, and what a tie does."""
    sizes = draw.sample([x / 100 for x in range(3, 96)], 9)
    tied = draw.choice(sorted(sizes)[3:6])
    magnitudes = [*sizes, tied, tied, tied]
    draw.shuffle(magnitudes)
    weights = [draw.choice([-1, 1]) * x for x in magnitudes]
    ordered = sorted(magnitudes)
    below, upto = sum(x < tied for x in ordered), sum(x <= tied for x in ordered)
    k = draw.choice([i for i in range(2, 11) if not below < i < upto])
    inside = below + draw.choice([1, 2, 3])
    low, high = ordered[k - 1], ordered[k]
    text = rf"""The picture shows the twelve weights of a layer. A weight is pruned if $|w| < \tau$.

(a) A target prunes exactly {k} of them. Which thresholds $\tau$ do that? (b) Which sparsities can *no* threshold reach, and why? (c) Exactly {inside} weights shall go. How many go with
$\tau = {num(tied)}$, and how many with a threshold just above it?"""
    never = list(range(below + 1, upto))
    solution = rf"""Sorted magnitudes: ${listed(ordered)}$.
(a) From number {k} to the next one: ${num(low)} < \tau \le {num(high)}$.
(b) Four weights have the magnitude ${num(tied)}$, and a threshold cannot part them: ${listed([i / 12 for i in never])}$, that is {", ".join(map(str, never))} of 12.
(c) With $\tau = {num(tied)}$ only what is smaller goes, ${below}$; just above it ${upto}$. Counting instead of comparing gives exactly {inside}."""
    answer = {"above": low, "up to": high, "never": never, "at": below, "beyond": upto}
    given = {"weights": weights, "k": k, "tied": tied}
    return Draft(text, solution, answer, given, grid([weights[:6], weights[6:]]))


def two_layers(draw: random.Random, first: int, second: int) -> tuple[list[float], list[float]]:
    """Draw two layers of weights without ties, the second with smaller ones."""
    values = draw.sample([x / 100 for x in range(20, 140)], first)
    others = draw.sample([x / 100 for x in range(5, 90) if x / 100 not in values], second)
    return [draw.choice([-1, 1]) * x for x in values], [draw.choice([-1, 1]) * x for x in others]


@question("One threshold or two", chapter=6, difficulty=2, minutes=7, parts=(3, 1, 3))
def one_or_two(draw: random.Random) -> Draft:
    """Two layers → densities by global and by uniform selection, and after a change of units."""
    one, two = two_layers(draw, 6, 4)
    everything = sorted([abs(x) for x in one + two])
    tau = everything[5]  # five go
    kept = [sum(abs(x) >= tau for x in layer) for layer in (one, two)]
    factor = draw.choice([2, 3, 4, 5])
    scaled = sorted([abs(x) for x in one] + [factor * abs(x) for x in two])
    if scaled[4] == scaled[5] or kept[0] == 3:
        return one_or_two(draw)
    moved = [sum(abs(x) >= scaled[5] for x in one), sum(factor * abs(x) >= scaled[5] for x in two)]
    text = rf"""The picture shows two layers of six and of four weights. Half of all weights shall go.

(a) How many weights does each layer keep by one global threshold, and which thresholds do it? (b) How many by uniform selection? (c) The second layer's weights are multiplied by {factor}, and the batch
normalisation behind it undoes that. How many does each layer keep now, globally? What has changed in the function that the network computes?"""
    solution = rf"""(a) All magnitudes in order: ${listed(everything)}$. Five go, with ${num(everything[4])} < \tau \le {num(tau)}$; the layers keep ${kept[0]}$ of 6 and ${kept[1]}$ of 4.
(b) 3 of 6 and 2 of 4.
(c) In order: ${listed(scaled)}$. Now ${moved[0]}$ of 6 and ${moved[1]}$ of 4, although the function is the same (up to the norm's small $\varepsilon$): relative sizes of such layers are a
convention."""
    answer = {
        "global": kept,
        "uniform": [3, 2],
        "rescaled": moved,
        "from": everything[4],
        "up to": tau,
    }
    figure = grid([one, two], ["layer 1", "layer 2"])
    return Draft(text, solution, answer, {"one": one, "two": two, "factor": factor}, figure)


def lamp(layer: list[float]) -> list[float]:
    """LAMP's scores of a layer without ties."""
    return [w * w / sum(v * v for v in layer if abs(v) >= abs(w)) for w in layer]


@question("LAMP by hand", chapter=6, difficulty=2, minutes=8, parts=(3, 3, 2))
def lamp_by_hand(draw: random.Random) -> Draft:
    """Two small layers → LAMP's scores, and the mask beside that of magnitude."""
    one, two = two_layers(draw, 4, 4)
    scores = [lamp(one), lamp(two)]
    order = sorted(q for layer in scores for q in layer)
    go = draw.choice([3, 4, 5])
    kept = [sum(q >= order[go] for q in layer) for layer in scores]
    sizes = sorted(abs(x) for x in one + two)
    plain = [sum(abs(x) >= sizes[go] for x in layer) for layer in (one, two)]
    if order[go] - order[go - 1] < 0.01 or kept == plain or len(set(sizes)) < 8:
        return lamp_by_hand(draw)
    text = f"""The picture shows two layers of four weights. {go} of the eight weights shall go.

(a) Compute all LAMP scores. (b) How many weights does each layer keep by LAMP, and how many by global magnitude? (c) Which score has the largest weight of a layer always, and what follows for the layer?"""
    solution = rf"""(a) Each squared weight is divided by the sum of all squares that are at least as large, in its layer. In the order of the picture: ${listed(scores[0], 3)}$ and ${listed(scores[1], 3)}$.
(b) The {go} smallest scores go: ${listed(order[:go], 3)}$. LAMP keeps ${kept[0]}$ and ${kept[1]}$; global magnitude, whose threshold is ${num(sizes[go])}$, keeps ${plain[0]}$ and ${plain[1]}$.
(c) It is divided by itself: 1. So no layer is emptied as long as at least as many weights as layers stay."""
    answer = {"first": scores[0], "second": scores[1], "LAMP": kept, "magnitude": plain}
    figure = grid([one, two], ["layer 1", "layer 2"])
    return Draft(text, solution, answer, {"one": one, "two": two, "go": go}, figure)


@question("ERK by hand", chapter=6, difficulty=3, minutes=9, parts=(2, 5, 2))
def erk_by_hand(draw: random.Random) -> Draft:
    """Three layers and a density → ERK's densities, with a layer that stays dense."""
    shapes = [
        (64, draw.randint(80, 128), 4, 4),
        (draw.choice([96, 128]), draw.choice([32, 48, 64]), draw.choice([3, 4]), 4),
        (draw.choice([24, 32, 40]), draw.choice([1, 2, 3]), 4, 4),
    ]
    density = draw.randint(8, 35) / 100
    sizes, ratios = [math.prod(s) for s in shapes], [sum(s) / math.prod(s) for s in shapes]
    dense: list[int] = []
    while True:
        free = [i for i in range(3) if i not in dense]
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = budget / sum(ratios[i] * sizes[i] for i in free)
        over = [i for i in free if scale * ratios[i] > 1]
        if not over:
            break
        dense += over
    found = [1.0 if i in dense else scale * ratios[i] for i in range(3)]
    rows = [[str(i + 1), "$" + r" \times ".join(map(str, s)) + "$", sizes[i]] for i, s in enumerate(shapes)]
    text = rf"""ERK gives layer $l$ a density proportional to $\sum \text{{dims}} / \prod \text{{dims}}$, at most 1, such that the total is met. Three layers:

{table(["layer", "shape", "weights"], rows)}

The density of all weights shall be ${density}$. (a) Compute the three ratios. (b) Which densities do the layers get? Check whether one of them would exceed 1, and what is done then. (c) Compare with
uniform selection: how many times as many weights does the last layer keep by ERK?"""
    first = density * sum(sizes) / sum(ratios[i] * sizes[i] for i in range(3))
    dense_words = (
        "the last layer would get more than 1 and stays dense; the rest shares what is left"
        if dense
        else "none exceeds 1"
    )
    solution = rf"""(a) ${listed(ratios)}$.
(b) With one factor for all, $\epsilon = {num(density * sum(sizes), 6)} / {num(sum(sum(s) for s in shapes))} = {num(first)}$, the densities would be ${listed([first * r for r in ratios])}$: {dense_words}. So the densities are ${listed(found)}$, with $\sum_l d_l n_l = {num(density * sum(sizes), 6)}$.
(c) ${num(found[2])} / {density} = {num(found[2] / density)}$ times."""
    answer = {"ratios": ratios, "densities": found, "times": found[2] / density}
    return Draft(text, solution, answer, {"shapes": shapes, "density": density})


@question("Two layers of normal weights", chapter=6, difficulty=2, minutes=7, parts=(2, 2, 3))
def normal_layers(draw: random.Random) -> Draft:
    """Spreads and sizes of two layers → densities at a threshold, and one layer's own threshold."""
    spreads = [draw.randint(20, 60) / 1000, draw.randint(4, 19) / 1000]
    sizes = [draw.randint(5, 60) * 1000, draw.randint(5, 60) * 1000]
    tau = draw.randint(10, 50) / 1000
    keeps = [math.erfc(tau / (s * math.sqrt(2))) for s in spreads]
    density = sum(k * n for k, n in zip(keeps, sizes, strict=True)) / sum(sizes)
    text = rf"""The weights of two layers are normal with mean 0. Layer 1 has ${num(sizes[0])}$ weights of standard deviation ${spreads[0]}$, layer 2 ${num(sizes[1])}$ of ${spreads[1]}$.

(a) Which densities does the global threshold $\tau = {tau}$ leave? (b) What is the sparsity of both together? (c) Which threshold would leave layer 2 the density of layer 1? (You may use a table or a
calculator for $\operatorname{{erf}}$.)"""
    own = tau * spreads[1] / spreads[0]
    solution = rf"""(a) $d_l = 1 - \operatorname{{erf}}\bigl(\tau / (\sigma_l \sqrt 2)\bigr)$: the arguments are ${listed([tau / (s * math.sqrt(2)) for s in spreads])}$, the densities ${listed(keeps)}$.
(b) $1 - ({num(sizes[0])} \cdot {num(keeps[0])} + {num(sizes[1])} \cdot {num(keeps[1])}) / {num(sum(sizes))} = {num(1 - density)}$.
(c) Only $\tau / \sigma_l$ counts, so $\tau \cdot {spreads[1]} / {spreads[0]} = {num(own)}$: the layer with small weights needs a smaller threshold."""
    answer = {"densities": keeps, "sparsity": 1 - density, "threshold": own}
    return Draft(text, solution, answer, {"spreads": spreads, "sizes": sizes, "tau": tau})


@question("The price of two weights", chapter=6, difficulty=3, minutes=10, parts=(2, 2, 3, 3))
def price(draw: random.Random) -> Draft:
    """A quadratic loss of two parameters → prices of each, of both, and with the other free to move."""
    while True:
        a, c = draw.randint(1, 12), draw.randint(1, 12)
        b = draw.choice([-4, -3, -2, -1, 1, 2, 3, 4])
        w = [draw.choice([-1, 1]) * draw.randint(2, 30) / 10 for _ in range(2)]
        single = [a * w[0] ** 2 / 2, c * w[1] ** 2 / 2]
        det = a * c - b * b
        smaller = int(abs(w[1]) < abs(w[0]))
        cheaper = int(single[1] < single[0])
        if det > 0 and smaller != cheaper and abs(single[0] - single[1]) > 0.05:
            break
    both = single[0] + single[1] + b * w[0] * w[1]
    free = [w[0] ** 2 * det / (2 * c), w[1] ** 2 * det / (2 * a)]
    move = b * w[0] / c
    text = rf"""A loss has its minimum at $w = ({num(w[0])}, {num(w[1])})$, where it is 0, and the Hessian
$$H = {matrix([[a, b], [b, c]])} .$$

(a) What does it cost to remove $w_1$ alone, and $w_2$ alone? (b) Which one does magnitude remove, and which one optimal brain damage? (c) What does it cost to remove both, and how far is that from the sum of
the prices? (d) $w_1$ is removed and $w_2$ may move. What is the lowest loss, and by how much does $w_2$ move?"""
    solution = rf"""(a) $\tfrac12 H_{{ii}} w_i^2$: ${num(single[0])}$ and ${num(single[1])}$.
(b) Magnitude removes $w_{smaller + 1}$, the smaller one; optimal brain damage $w_{cheaper + 1}$, the cheaper one.
(c) $\tfrac12 w^\top H w = {num(both)}$; the pair adds $H_{{12}} w_1 w_2 = {num(b * w[0] * w[1])}$ to the sum ${num(sum(single))}$.
(d) With $v = (-w_1, t)$ the loss is $\tfrac12 H_{{11}} w_1^2 - H_{{12}} w_1 t + \tfrac12 H_{{22}} t^2$, lowest at $t = H_{{12}} w_1 / H_{{22}} = {num(move)}$, where it is
$\tfrac12 w_1^2 \det H / H_{{22}} = {num(free[0])}$."""
    answer = {
        "prices": single,
        "magnitude removes": smaller + 1,
        "OBD removes": cheaper + 1,
        "both": both,
        "lowest": free[0],
        "moves by": move,
    }
    return Draft(text, solution, answer, {"hessian": [[a, b], [b, c]], "w": w})


@question("Stale or fresh statistics", chapter=6, difficulty=1, minutes=6, parts=(2, 2, 2))
def statistics(draw: random.Random) -> Draft:
    """A pruned channel beside the dense one → distances with stale and fresh batch statistics."""
    rho, a = draw.randint(40, 95) / 100, draw.randint(30, 110) / 100
    delta = draw.choice([-1, 1]) * draw.randint(5, 90) / 100
    stale, fresh = 1 + a * a - 2 * rho * a + delta**2, 2 - 2 * rho
    least = 1 - rho
    text = rf"""After pruning, a channel before batch normalisation has ${a}$ times the standard deviation that it had, its mean has moved by ${num(delta)}$ old standard deviations, and its correlation with the dense
channel is ${rho}$.

(a) What is the mean squared distance to the dense channel, after normalisation, with stale statistics, and what with fresh ones? (b) Should this channel's statistics be measured anew? (c) If what was removed is
uncorrelated with what stayed, the ratio of the standard deviations equals the correlation. From which shift on do fresh statistics help then?"""
    solution = rf"""(a) Stale: $1 + a^2 - 2\rho a + \delta^2 = 1 + {num(a * a)} - {num(2 * rho * a)} + {num(delta**2)} = {num(stale)}$. Fresh: $2 - 2\rho = {num(fresh)}$.
(b) {"Yes" if fresh < stale else "No"}: ${num(min(fresh, stale))}$ is smaller than ${num(max(fresh, stale))}$.
(c) With $a = \rho$ the stale distance is $1 - \rho^2 + \delta^2$, which exceeds $2 - 2\rho$ if $|\delta| > 1 - \rho = {num(least)}$."""
    answer = {"stale": stale, "fresh": fresh, "anew": fresh < stale, "shift": least}
    return Draft(text, solution, answer, {"rho": rho, "a": a, "delta": delta})
