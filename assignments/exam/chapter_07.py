"""Questions on chapter 7: Taylor's prices, sums of gradients, signs, flows, movement and Fisher information."""

from __future__ import annotations

import math
import random

from exam.figures import grid
from exam.question import Draft, listed, matrix, num, plus, question, table, vector


@question("First order, second order, and the truth", chapter=7, difficulty=2, minutes=8, parts=(3, 3, 2))
def orders(draw: random.Random) -> Draft:
    """A cubic loss of two weights → predictions of first and second order for removing one or both."""
    a, b, c = draw.randint(2, 6), draw.choice([-4, -3, -2, 2, 3, 4]), draw.randint(2, 6)
    d, e = draw.choice([-3, -2, 2, 3]), draw.choice([-5, -4, -3, -2, 2, 3, 4, 5])
    w = [draw.choice([-1, 1]) * draw.randint(2, 15) / 10 for _ in range(2)]

    def loss(x: float, y: float) -> float:
        return a * x * x + b * x * y + c * y * y + d * x**3 + e * y

    x, y = w
    gradient = [2 * a * x + b * y + 3 * d * x * x, b * x + 2 * c * y + e]
    hessian = [2 * a + 6 * d * x, b, 2 * c]
    first = -gradient[0] * x
    second = first + hessian[0] * x * x / 2
    exact = loss(0, y) - loss(x, y)
    pair = -gradient[0] * x - gradient[1] * y
    pair += (hessian[0] * x * x + hessian[2] * y * y) / 2 + b * x * y
    truth = loss(0, 0) - loss(x, y)
    text = rf"""Let $L(w_1, w_2) = {a} w_1^2 {b:+d} w_1 w_2 + {c} w_2^2 {d:+d} w_1^3 {e:+d} w_2$, at $w = ({num(x)}, {num(y)})$.

(a) What does the first order of Taylor's formula predict for removing $w_1$, what the second order, and what is the truth? (b) What does the second order predict for removing both weights, and what is the truth? (c)
Which term of the loss makes the difference in (a)?"""
    solution = rf"""The gradient is $g = ({listed(gradient)})$, the Hessian has $H_{{11}} = {num(hessian[0])}$, $H_{{12}} = {b}$, $H_{{22}} = {2 * c}$.
(a) First order $-g_1 w_1 = {num(first)}$; second order $-g_1 w_1 + \tfrac12 H_{{11}} w_1^2 = {num(second)}$; truth ${num(exact)}$.
(b) $-g_1 w_1 - g_2 w_2 + \tfrac12 H_{{11}} w_1^2 + \tfrac12 H_{{22}} w_2^2 + H_{{12}} w_1 w_2 = {num(pair)}$; truth ${num(truth)}$.
(c) The cubic term alone: its rest is $-\tfrac16 \cdot {6 * d} \cdot w_1^3 = {num(-d * x**3)}$, and all others are of second order."""
    answer = {"first": first, "second": second, "exact": exact, "pair": pair, "truth": truth}
    return Draft(text, solution, answer, {"coefficients": (a, b, c, d, e), "w": w})


@question("Two ways to sum up gradients", chapter=7, difficulty=1, minutes=6, parts=(2, 1, 3))
def sums(draw: random.Random) -> Draft:
    """Gradients of three batches → SNIP's and Taylor's scores, and the variance between them."""
    while True:
        w = [draw.choice([-1, 1]) * draw.randint(2, 20) / 10 for _ in range(3)]
        g = [[draw.randint(-9, 9) / 10 for _ in range(3)] for _ in range(3)]  # batch, weight
        snip = [abs(sum(row[i] for row in g) * w[i]) for i in range(3)]
        taylor = [sum((row[i] * w[i]) ** 2 for row in g) for i in range(3)]
        lowest = [min(range(3), key=s.__getitem__) for s in (snip, taylor)]
        gaps = [sorted(s)[1] - sorted(s)[0] for s in (snip, taylor)]
        if lowest[0] != lowest[1] and min(gaps) > 0.02:
            break
    means = [sum(row[i] for row in g) / 3 for i in range(3)]
    i = lowest[0]
    spread = sum(row[i] ** 2 for row in g) / 3 - means[i] ** 2
    rows = [[f"batch {b + 1}", *row] for b, row in enumerate(g)] + [["weight", *w]]
    text = f"""Three batches give three weights these gradients.

{table(["", "$w_1$", "$w_2$", "$w_3$"], rows)}

(a) Compute SNIP's scores $\\lvert \\sum_b g_{{i,b}} \\rvert\\, \\lvert w_i \\rvert$ and Taylor's $\\sum_b (g_{{i,b}} w_i)^2$. (b) Which weight does each prune first? (c) For the weight that SNIP prunes first, what are the mean and the
variance of the gradient over batches, and how do they explain the disagreement?"""
    solution = rf"""(a) SNIP: ${listed(snip)}$. Taylor: ${listed(taylor)}$.
(b) SNIP prunes $w_{lowest[0] + 1}$ first, Taylor $w_{lowest[1] + 1}$.
(c) Mean ${num(means[i])}$, variance ${num(spread)}$. A mean of squares is the square of the mean and a variance: batches that pull in opposite directions cancel for SNIP and count for Taylor."""
    answer = {
        "SNIP": snip,
        "Taylor": taylor,
        "first": [j + 1 for j in lowest],
        "mean": means[i],
        "variance": spread,
    }
    return Draft(text, solution, answer, {"w": w, "g": g})


@question("The sign of GraSP", chapter=7, difficulty=2, minutes=8, parts=(2, 3, 3))
def grasp(draw: random.Random) -> Draft:
    """A quadratic loss → GraSP's scores, what is pruned first, and the true change of the speed."""
    while True:
        a, b, c = draw.randint(1, 5), draw.choice([-3, -2, -1, 1, 2, 3]), draw.randint(1, 5)
        shift = [draw.randint(-4, 4) for _ in range(2)]
        w = [draw.choice([-3, -2, -1, 1, 2, 3]) for _ in range(2)]

        def slope(x: float, y: float, of: tuple = (a, b, c, *shift)) -> list[float]:
            p, q, r, s, t = of
            return [p * x + q * y - s, q * x + r * y - t]

        g = slope(*w)
        hg = [a * g[0] + b * g[1], b * g[0] + c * g[1]]
        scores = [w[0] * hg[0], w[1] * hg[1]]
        first = min(range(2), key=scores.__getitem__)
        absolute = min(range(2), key=lambda i, of=tuple(scores): abs(of[i]))
        if scores[0] * scores[1] < 0 and first != absolute and abs(scores[0]) != abs(scores[1]):
            break
    gone = [0 if i == first else w[i] for i in range(2)]
    before, after = (sum(x * x for x in slope(*at)) / 2 for at in (w, gone))
    text = rf"""A loss has the gradient $g(w) = H w - v$ with $H = {matrix([[a, b], [b, c]])}$ and $v = {vector(shift)}$, and $w = {vector(w)}$.

(a) Compute $g$, $H g$ and GraSP's scores $w_i\,(Hg)_i$. (b) Which weight does GraSP prune first, and which one would it prune first if somebody took absolute values? (c) What is $\tfrac12 \lVert g \rVert^2$ before, and after
the weight of (b) is gone? What did the first order predict?"""
    solution = rf"""(a) $g = {vector(g)}$, $Hg = {vector(hg)}$, scores ${listed(scores)}$.
(b) The smallest score with its sign goes first: $w_{first + 1}$. By absolute values it would be $w_{absolute + 1}$.
(c) Before ${num(before)}$, after ${num(after)}$. Predicted was a change of $-w_i (Hg)_i = {num(-scores[first])}$, the truth is ${num(after - before)}$, because the step is not short."""
    answer = {
        "gradient": g,
        "scores": scores,
        "first": first + 1,
        "by absolute values": absolute + 1,
        "before": before,
        "after": after,
    }
    return Draft(text, solution, answer, {"hessian": [[a, b], [b, c]], "shift": shift, "w": w})


@question("What flows in flows out", chapter=7, difficulty=2, minutes=8, parts=(2, 2, 2, 2))
def flow(draw: random.Random) -> Draft:
    """A chain of two layers → SynFlow's scores, their sums, and the first weight to go."""
    while True:
        first = [[draw.choice([-4, -3, -2, -1, 1, 2, 3, 4, 5]) for _ in range(2)] for _ in range(3)]
        second = [draw.choice([-4, -3, -2, -1, 1, 2, 3, 4, 5]) for _ in range(3)]
        inner = [sum(map(abs, row)) for row in first]
        q1 = [[abs(second[j]) * abs(x) for x in first[j]] for j in range(3)]
        q2 = [abs(second[j]) * inner[j] for j in range(3)]
        total = sum(q2)
        ordered = sorted([x for row in q1 for x in row] + q2)
        if ordered[0] < ordered[1]:
            break
    most = math.ceil(9 / 2) - 1
    left = total - ordered[0]
    text = r"""A chain without biases has two inputs, three hidden units and one output. The picture shows the weights: three rows of first-layer weights (one row for each hidden unit), and the second layer.

(a) Compute SynFlow's total $R$: ones at the input, absolute weights. (b) Compute all nine scores and check their sum in each layer. (c) What is $R$ after the lowest score is pruned? (d) How many weights may a
round prune at most, for the theorem to guarantee $R > 0$?"""
    solution = rf"""(a) The hidden units get ${listed(inner)}$, and $R = {plus(q2)} = {num(total)}$.
(b) First layer: ${listed([x for row in q1 for x in row])}$; second: ${listed(q2)}$. Both sum to $R = {num(total)}$: what flows in flows out.
(c) The lowest score is ${num(ordered[0])}$, the flow through that weight; $R$ becomes ${num(left)}$.
(d) Fewer than $N / K = 9 / 2$, so at most ${most}$."""
    answer = {
        "R": total,
        "first layer": [x for row in q1 for x in row],
        "second layer": q2,
        "left": left,
    }
    figure = grid([*first, second], ["unit 1", "unit 2", "unit 3", "second layer"])
    return Draft(text, solution, answer, {"first": first, "second": second}, figure)


@question("Enough rounds for SynFlow", chapter=7, difficulty=3, minutes=8, parts=(2, 3, 3))
def rounds(draw: random.Random) -> Draft:
    """Layers and a density → the share per round, the rounds that are certified, and who pays in one."""
    layers = draw.choice([3, 4, 5, 6])
    sizes = [draw.randint(3, 200) * 256 for _ in range(layers)]
    density = draw.choice([0.005, 0.01, 0.02, 0.03, 0.05])
    if len(set(sizes)) < layers:
        return rounds(draw)
    given_rounds = draw.choice([20, 40, 60, 100])
    share = 1 - density ** (1 / given_rounds)
    exact = math.log(density) / math.log(1 - 1 / layers)
    least = math.floor(exact) + 1
    largest = max(range(layers), key=sizes.__getitem__)
    mean = [1 / n for n in sizes]
    times = max(mean) / min(mean)
    text = rf"""A chain without biases has {layers} layers with ${listed(sizes)}$ weights. SynFlow prunes it to the density ${density}$ in $r$ equal rounds.

(a) Which share of the remaining weights does a round prune, for $r = {given_rounds}$? (b) What is the least number of rounds for which the theorem certifies that no layer is emptied? (c) In a single round, in which layer has
an average weight the lowest score? How many times as high is it in the layer where it is highest?"""
    solution = rf"""(a) $1 - d^{{1/r}} = 1 - {density}^{{1/{given_rounds}}} = {num(share)}$.
(b) The share must be below $1/K = 1/{layers}$: $d^{{1/r}} > {num(1 - 1 / layers)}$, so $r > \log {density} / \log {num(1 - 1 / layers)} = {num(exact)}$, that is ${least}$ rounds.
(c) Every layer has the same total, so an average score is $R / n_l$: lowest in layer {largest + 1}, the largest, and ${num(max(sizes))} / {num(min(sizes))} = {num(times)}$ times as high in the smallest."""
    answer = {"share": share, "least": least, "layer": largest + 1, "times": times}
    given = {"sizes": sizes, "density": density, "rounds": given_rounds}
    return Draft(text, solution, answer, given)


@question("Where is the weight going?", chapter=7, difficulty=1, minutes=6, parts=(1, 2, 1, 2))
def movement(draw: random.Random) -> Draft:
    """Weights and gradients along a training → movement scores beside final magnitudes."""
    while True:
        eta = draw.choice([0.1, 0.2, 0.5])
        start = [draw.choice([-1, 1]) * draw.randint(2, 12) / 10 for _ in range(3)]
        g = [[draw.randint(-9, 9) / 10 for _ in range(3)] for _ in range(3)]  # step, weight
        w, scores, path = list(start), [0.0] * 3, [list(start)]
        for row in g:
            scores = [q - eta * a * b for q, a, b in zip(scores, row, w, strict=True)]
            w = [round(x - eta * a, 10) for x, a in zip(w, row, strict=True)]
            path.append(list(w))
        by_score = min(range(3), key=scores.__getitem__)
        by_size = min(range(3), key=lambda i: abs(w[i]))
        order, sizes = sorted(scores), sorted(map(abs, w))
        if by_score != by_size and order[1] - order[0] > 0.01 and sizes[1] - sizes[0] > 0.01:
            break
    rows = [["start", *start]] + [[f"gradient, step {i + 1}", *row] for i, row in enumerate(g)]
    text = rf"""Three weights are trained for three steps of gradient descent with $\eta = {eta}$. The gradients at each step were:

{table(["", "$w_1$", "$w_2$", "$w_3$"], rows)}

(a) Where do the weights end? (b) Which scores has movement pruning gathered, $q_i \leftarrow q_i - \eta\, g_i w_i$ with the weight before the step, from 0? (c) Which weight does movement prune first, and which one
magnitude? (d) A fourth weight was pruned and held at zero. What is its score, and what follows?"""
    solution = rf"""(a) Step by step: {"; ".join(f"${vector(row)}$" for row in path[1:])}.
(b) Sums of $-\eta\, g_i w_i$: ${listed(scores)}$.
(c) Movement prunes $w_{by_score + 1}$, which moved towards zero most; magnitude prunes $w_{by_size + 1}$.
(d) It gathers $g \cdot 0 = 0$ for ever, so movement must keep pruned weights beside the network while it decides."""
    answer = {"end": w, "scores": scores, "movement": by_score + 1, "magnitude": by_size + 1}
    return Draft(text, solution, answer, {"eta": eta, "start": start, "g": g})


@question("When is a squared gradient a curvature?", chapter=7, difficulty=3, minutes=10, parts=(3, 4, 3))
def fisher(draw: random.Random) -> Draft:
    """A coin with a logistic probability → mean squared gradient and curvature, at two data."""
    w, x = draw.choice([-1, 1]) * draw.randint(2, 20) / 10, draw.choice([0.5, 1, 1.5, 2, 3])
    share = draw.randint(5, 95) / 100
    p = 1 / (1 + math.exp(-w * x))
    squared = x * x * (share * (1 - p) ** 2 + (1 - share) * p**2)
    curvature = x * x * p * (1 - p)
    at_minimum = math.log(share / (1 - share)) / x
    text = rf"""A coin shows 1 with the probability $p_w = \sigma(w x)$, where $x = {num(x)}$. The loss of an outcome is its negative log-probability, $w = {num(w)}$, and in the data the share ${share}$ of outcomes is 1.

(a) Compute the mean squared gradient over the data and the second derivative of the mean loss, both by $w$. (b) Which of the three assumptions (the loss is a negative log-likelihood; the outcomes come from the model
itself; derivatives may be taken under the sum) fails? For which share do both numbers agree? (c) For which $w$ do they agree at the given share?"""
    solution = rf"""(a) $p = {num(p)}$. An outcome 1 has the gradient $-(1 - p) x$, an outcome 0 has $p x$. Mean square: $x^2 [{share} (1-p)^2 + {num(1 - share)}\, p^2] = {num(squared)}$. The second derivative is $x^2 p (1 - p) = {num(curvature)}$ for both outcomes.
(b) The second: the outcomes are not the model's. With the share $p = {num(p)}$ the mean square is $x^2 [p (1-p)^2 + (1-p) p^2] = x^2 p (1-p)$. (It also agrees at $p = \tfrac12$ for every share, by accident.)
(c) Where $\sigma(wx) = {share}$, at $w = \log({share} / {num(1 - share)}) / x = {num(at_minimum)}$, the minimum of the loss. (And at $w = 0$, by the same accident.)"""
    answer = {
        "squared": squared,
        "curvature": curvature,
        "share": p,
        "w": at_minimum,
    }
    if abs(share - 0.5) < 0.03:
        return fisher(draw)
    return Draft(text, solution, answer, {"w": w, "x": x, "share": share})
