"""Questions on chapter 3: the earth mover's distance, its critic, and three ways to bound a slope."""

from __future__ import annotations

import math
import random

from exam.figures import number_line
from exam.question import Draft, listed, matrix, num, plus, question, table, vector


@question("Carrying points along a line", chapter=3, difficulty=1, minutes=5, parts=(1, 2, 2))
def on_a_line(draw: random.Random) -> Draft:
    """Two sets of points → the cheapest plan, its cost, and the cost after a shift."""
    real, made = (sorted(draw.sample(range(20), 5)) for _ in range(2))
    moves = [abs(a - b) for a, b in zip(real, made, strict=True)]
    distance = sum(moves) / 5
    shift = draw.randint(25, 60)
    far = sum(b + shift - a for a, b in zip(real, made, strict=True)) / 5
    text = rf"""Five real points lie at ${listed(real)}$ and five generated ones at ${listed(made)}$ (crosses and circles).

(a) Which generated point belongs to which real one in a cheapest plan? (b) What is the earth mover's distance, each point having the mass
$\tfrac15$? (c) All generated points move to the right by {shift}. What is the distance then, and what does the Jensen–Shannon divergence of the two
sets say before and after, if they had no point in common?"""
    pairs = ", ".join(f"{a} with {b}" for a, b in zip(real, made, strict=True))
    solution = rf"""(a) Sorting solves it: {pairs}.
(b) The ways are ${listed(moves)}$, so the distance is ${num(sum(moves))} / 5 = {num(distance)}$.
(c) Now every real point lies to the left of its partner, so the distance is the difference of the means: ${num(far)}$. The divergence is
$\log 2$ both times, because disjoint sets are as far apart as they can be for it."""
    answer = {"distance": distance, "after": far}
    given = {"real": real, "made": made, "shift": shift}
    return Draft(text, solution, answer, given, number_line({"real": real, "generated": made}, 0, 20, 2))


@question("Prices on six places", chapter=3, difficulty=2, minutes=8, parts=(3, 3, 2))
def masses(draw: random.Random) -> Draft:
    """Masses on whole numbers → the distance by distribution functions, and a best critic."""

    def split() -> list[int]:
        cuts = sorted(draw.sample(range(1, 20), 5))
        return [b - a for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]

    while True:
        p, q = split(), split()
        gaps = [sum(p[: i + 1]) - sum(q[: i + 1]) for i in range(5)]
        if all(gaps) and len({gap > 0 for gap in gaps}) == 2:
            break
    distance = sum(map(abs, gaps)) / 20
    critic = [0]
    for gap in gaps:  # a step up where the generator's mass lies further left
        critic.append(critic[-1] + (1 if gap < 0 else -1))
    rows = [["data", *(x / 20 for x in p)], ["generator", *(x / 20 for x in q)]]
    text = rf"""Data and samples have these masses at the places 0 to 5.

{table(["", *map(str, range(6))], rows)}

(a) Compute the earth mover's distance by means of the distribution functions. (b) Find a best critic $D$ with slopes of at most 1, at the six places
and with $D(0) = 0$. (c) Check that $\mathbb{{E}}_\text{{data}}[D] - \mathbb{{E}}_G[D]$ is the distance."""
    value = sum(d * (a - b) for d, a, b in zip(critic, p, q, strict=True)) / 20
    solution = rf"""(a) $F_\text{{data}} - F_G$ between neighbours is ${listed([gap / 20 for gap in gaps])}$. The sum of the absolute values is
${num(distance)}$.
(b) Where $F_\text{{data}} > F_G$, data lie further left, so $D$ falls by 1; elsewhere it rises by 1: ${vector(critic)}$.
(c) $\sum_i D(i)\,(p_i - q_i) = {plus([d * (a - b) / 20 for d, a, b in zip(critic, p, q, strict=True) if d])} = {num(value)}$."""
    return Draft(text, solution, {"distance": distance, "critic": critic}, {"p": p, "q": q})


@question("What the gradient penalty adds", chapter=3, difficulty=2, minutes=7, parts=(2, 2, 3))
def penalised(draw: random.Random) -> Draft:
    """A shift and a weight → the penalised critic's slope and estimate, and the trap."""
    shift, weight = draw.randint(50, 800) / 100, draw.randint(2, 20)
    slope = 1 + shift / (2 * weight)
    estimate = shift * slope
    wrong = 1 - shift / (2 * weight)
    text = rf"""The samples are the data shifted to the right by $\theta = {shift}$. The critic $D(x) = -bx$ maximises
$b\,\theta - \lambda\,(|b| - 1)^2$ with $\lambda = {weight}$.

(a) Which slope $b > 0$ does it find, and what does it estimate? (b) By how many per cent is the estimate too large? (c) A critic starts with
$b < 0$. At which $b$ does it get stuck? From which shift on is there no such place, for this $\lambda$?"""
    solution = rf"""(a) $\theta - 2\lambda (b - 1) = 0$ gives $b = 1 + \theta / 2\lambda = {num(slope)}$, and the estimate is $b\,\theta = {num(estimate)}$.
(b) The distance is $\theta = {shift}$, so by $\theta / 2\lambda = {num(100 * shift / (2 * weight))}$ per cent.
(c) For $b < 0$ the penalty is $\lambda (-b - 1)^2$, and $\theta + 2 \lambda (-b - 1) = 0$ gives $b = -1 + \theta / 2\lambda = {num(-wrong)}$.
{"It is negative, so the critic is stuck there" if wrong > 0 else "It is not negative, so there is no such place here"}; none is left from
$\theta = 2\lambda = {2 * weight}$ on."""
    answer = {
        "slope": slope,
        "estimate": estimate,
        "per cent": 100 * shift / (2 * weight),
        "stuck at": -wrong if wrong > 0 else "nowhere",
        "no trap from": 2 * weight,
    }
    return Draft(text, solution, answer, {"shift": shift, "weight": weight})


@question("How steep may a clipped critic be?", chapter=3, difficulty=1, minutes=5, parts=(2, 1, 2))
def clipped(draw: random.Random) -> Draft:
    """Widths and a bound of the weights → a bound of the slope."""
    widths = [1, *(draw.randint(8, 120) for _ in range(draw.choice([2, 3]))), 1]
    c = draw.choice([0.01, 0.02, 0.04, 0.05, 0.08, 0.1, 0.2])
    norms = [c * math.sqrt(a * b) for a, b in zip(widths, widths[1:], strict=False)]
    bound, layers = math.prod(norms), len(norms)
    wanted = (1 / math.prod(math.sqrt(a * b) for a, b in zip(widths, widths[1:], strict=False))) ** (
        1 / layers
    )
    text = rf"""A critic has linear layers of the widths ${vector(widths)}$ with LeakyReLU between them, and every weight is clipped to
$[-{c}, {c}]$.

(a) Which bound for its Lipschitz constant follows from $\sigma(W)^2 \le \sum W_{{ij}}^2$? (b) By which factor does the bound change if $c$ is halved?
(c) For which $c$ is the bound 1?"""
    solution = rf"""(a) A layer with $a$ inputs and $b$ outputs has $\sigma(W) \le c \sqrt{{ab}}$; here ${listed(norms)}$. The product is
${num(bound)}$; LeakyReLU has slopes of at most 1.
(b) There are {layers} layers, so by $2^{{-{layers}}} = {num(0.5**layers)}$.
(c) $c^{{{layers}}} = 1 / {num(bound / c**layers)}$, so $c = {num(wanted)}$."""
    return Draft(
        text,
        solution,
        {"bound": bound, "halved": 0.5**layers, "c": wanted},
        {"widths": widths, "c": c},
    )


@question("Two turns of power iteration", chapter=3, difficulty=3, minutes=9, parts=(3, 3, 3))
def power_iteration(draw: random.Random) -> Draft:
    """A matrix → two estimates of its spectral norm, the norm itself, and how fast they come near."""
    while True:
        w = [[draw.randint(-8, 9) for _ in range(2)] for _ in range(2)]
        (a, b), (c, d) = w
        trace, det = a * a + b * b + c * c + d * d, abs(a * d - b * c)
        first = math.sqrt((trace + math.sqrt(trace**2 - 4 * det**2)) / 2)
        second = det / first if first else 0.0
        if det and first > 1.15 * second and a * b + c * d and (a + b or c + d):
            break
    v, estimates = [1.0, 0.0], []
    for _ in range(2):
        u = [a * v[0] + b * v[1], c * v[0] + d * v[1]]
        estimates.append(math.hypot(*u))
        back = [a * u[0] + c * u[1], b * u[0] + d * u[1]]
        v = [x / math.hypot(*back) for x in back]
    ratio = (second / first) ** 2
    text = rf"""Let $W = {matrix(w)}$ and $v_0 = (1, 0)^\top$. One turn of power iteration takes $v$ to $W^\top W v / \lVert W^\top W v \rVert$, and $\lVert W v \rVert$ is
the estimate of $\sigma(W)$.

(a) What are the estimates from $v_0$ and from $v_1$? (b) What is $\sigma(W)$? (c) By which factor does each turn shrink the part of $v$ along the second singular
vector, relative to the first?"""
    gram = [[a * a + c * c, a * b + c * d], [a * b + c * d, b * b + d * d]]
    solution = rf"""(a) $\lVert W v_0 \rVert = {num(estimates[0])}$. $W^\top W = {matrix(gram)}$, so $v_1$ has the direction of its first column, and
$\lVert W v_1 \rVert = {num(estimates[1])}$.
(b) $W^\top W$ has the trace ${num(trace)}$ and the determinant $(\det W)^2 = {num(det**2)}$; its larger eigenvalue is ${num(first**2)}$, so
$\sigma(W) = {num(first)}$.
(c) The smaller singular value is $|\det W| / \sigma(W) = {num(second)}$, and the factor is $(\sigma_2 / \sigma_1)^2 = {num(ratio)}$."""
    answer = {"first": estimates[0], "second": estimates[1], "norm": first, "factor": ratio}
    return Draft(text, solution, answer, {"w": w})


@question("A kernel and its operator", chapter=3, difficulty=3, minutes=8, parts=(2, 3, 3))
def kernel_norm(draw: random.Random) -> Draft:
    """A positive kernel in one dimension → the kernel's norm, the bound, and the operator's norm."""
    w = [draw.randint(1, 9) for _ in range(draw.choice([3, 4, 5]))]
    stride = draw.choice([1, 2])
    k = len(w)
    norm = math.sqrt(sum(x * x for x in w))
    patches = -(-k // stride)
    bound = math.sqrt(patches) * norm
    operator = sum(w) if stride == 1 else math.sqrt(sum(w[0::2]) ** 2 + sum(w[1::2]) ** 2)
    text = rf"""A convolution in one dimension with one channel has the kernel ${vector(w)}$ and stride {stride}. Spectral normalisation divides it by
the norm of the kernel, taken as a matrix with one row.

(a) What is that norm? (b) In how many patches does a pixel lie at most, and which bound for the operator's norm follows? (A pixel in at most $m$ patches gives
the factor $\sqrt m$.) (c) What is the operator's norm for very long signals, and by which factor does the "normalised" layer still stretch? *Hint:* all weights are
positive, so {"a constant signal is stretched most" if stride == 1 else "consider signals that repeat with period 2"}."""
    if stride == 1:
        way = rf"A constant signal is multiplied by the sum ${plus(w)} = {num(operator)}$"
    else:
        even, odd = sum(w[0::2]), sum(w[1::2])
        way = (
            rf"A signal $(x, y, x, y, \dots)$ gives ${num(even)}x + {num(odd)}y$ at every output, one for each pair of inputs;"
            rf" beside the pair's length that is largest for $(x, y) \propto ({even}, {odd})$ and gives $\sqrt{{{even}^2 + {odd}^2}} = {num(operator)}$"
        )
    solution = rf"""(a) $\sqrt{{{plus([x * x for x in w])}}} = {num(norm)}$.
(b) $\lceil {k} / {stride} \rceil = {patches}$, so at most $\sqrt{{{patches}}} \cdot {num(norm)} = {num(bound)}$.
(c) {way}. Divided by the kernel's norm it stretches by ${num(operator / norm)}$."""
    answer = {
        "kernel": norm,
        "patches": patches,
        "bound": bound,
        "operator": operator,
        "stretch": operator / norm,
    }
    return Draft(text, solution, answer, {"w": w, "stride": stride})
