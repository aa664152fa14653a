"""Questions on chapter 4: distances between clouds, their bias, fidelity and variety."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from exam.figures import number_line
from exam.question import Draft, listed, matrix, num, plus, question, table


@question("Three generators on a line", chapter=4, difficulty=1, minutes=5, parts=(2, 1, 2))
def three_generators(draw: random.Random) -> Draft:
    """Means and deviations → Fréchet distances, and the constant generator."""
    mean, spread = draw.randint(-20, 20) / 10, draw.randint(5, 25) / 10
    others = [
        (round(mean + draw.choice([-1, 1]) * draw.randint(2, 15) / 10, 1), draw.randint(3, 30) / 10)
        for _ in range(2)
    ]
    distances = [(m - mean) ** 2 + (s - spread) ** 2 for m, s in others]
    if abs(distances[0] - distances[1]) < 0.02:
        return three_generators(draw)
    rows = [["real", mean, spread]] + [
        [name, m, s] for name, (m, s) in zip(("generator A", "generator B"), others, strict=True)
    ]
    text = f"""The only feature of an image is a number. Three sets of images are normally distributed.

{table(["", "mean", "standard deviation"], rows)}

(a) What are the Fréchet distances (the squares, as usual) of A and of B to the real images? (b) Generator C returns one and the same image. Which
feature should it have to score best, and what does it score then? (c) Which of the three has the smallest distance, and what does that distance not
say?"""
    constant = spread**2
    values = {"A": distances[0], "B": distances[1], "C": constant}
    best = min(values, key=values.__getitem__)
    steps = ", ".join(
        f"$({num(m)} - {num(mean) if mean >= 0 else f'({num(mean)})'})^2 + ({num(s)} - {num(spread)})^2 = {num(d)}$"
        for (m, s), d in zip(others, distances, strict=True)
    )
    solution = f"""(a) In one dimension the price is $(\\mu_r - \\mu_g)^2 + (\\sigma_r - \\sigma_g)^2$: {steps}.
(b) Its standard deviation is 0, so it should sit at the mean ${num(mean)}$ and scores ${num(spread)}^2 = {num(constant)}$.
(c) {best}. The distance adds a shift and a width in one number and does not say which of them is wrong; only C has no variety at all."""
    answer = {"A": distances[0], "B": distances[1], "C at": mean, "C": constant, "smallest": best}
    return Draft(text, solution, answer, {"real": (mean, spread), "others": others})


@question("Two clouds in the plane", chapter=4, difficulty=3, minutes=10, parts=(6, 2, 2))
def two_clouds(draw: random.Random) -> Draft:
    """Means and covariances in two dimensions → the Fréchet distance, by the trick for 2 × 2 matrices."""

    def covariance() -> list[list[int]]:
        while True:
            a, b, c = draw.randint(1, 9), draw.randint(-4, 4), draw.randint(1, 9)
            if a * c - b * b > 0 and b:
                return [[a, b], [b, c]]

    first, second = covariance(), covariance()
    shift = [draw.randint(-3, 3), draw.randint(-3, 3)]
    (a, b), (_, c) = first
    (d, e), (_, f) = second
    trace = a * d + 2 * b * e + c * f
    det = (a * c - b * b) * (d * f - e * e)
    root = math.sqrt(trace + 2 * math.sqrt(det))
    distance = sum(x * x for x in shift) + a + c + d + f - 2 * root
    if first == second or not any(shift):
        return two_clouds(draw)
    text = rf"""Two Gaussian clouds in the plane have means that differ by $({shift[0]}, {shift[1]})$ and the covariances
$$\Sigma_r = {matrix(first)}, \qquad \Sigma_g = {matrix(second)} .$$

(a) Show for numbers $\lambda_1, \lambda_2 \ge 0$ that $\lambda_1 + \lambda_2 = \sqrt{{\lambda_1^2 + \lambda_2^2 + 2\lambda_1\lambda_2}}$, and compute
$\operatorname{{tr}}(\Sigma_r \Sigma_g)^{{1/2}}$ from the trace and the determinant of $\Sigma_r\Sigma_g$. (b) What is the Fréchet distance? (c) Which part of it would
remain if the generator's mean were right?"""
    solution = rf"""(a) Square both sides. The eigenvalues of $\Sigma_r\Sigma_g$ are $\lambda_i^2$, so its trace is $\lambda_1^2 + \lambda_2^2$ and its determinant
$(\lambda_1\lambda_2)^2$. The trace is ${plus([a * d, 2 * b * e, c * f])} = {num(trace)}$, the determinant ${a * c - b * b} \cdot {d * f - e * e} = {num(det)}$, and
$\operatorname{{tr}}(\Sigma_r\Sigma_g)^{{1/2}} = \sqrt{{{num(trace)} + 2 \sqrt{{{num(det)}}}}} = {num(root)}$.
(b) $({shift[0]})^2 + ({shift[1]})^2 + {a + c} + {d + f} - 2 \cdot {num(root)} = {num(distance)}$.
(c) The part of the covariances, ${num(distance - sum(x * x for x in shift))}$."""
    answer = {
        "root": root,
        "distance": distance,
        "covariances": distance - sum(x * x for x in shift),
    }
    return Draft(text, solution, answer, {"first": first, "second": second, "shift": shift})


@question("To infinitely many images", chapter=4, difficulty=2, minutes=7, parts=(3, 1, 1, 2))
def to_infinity(draw: random.Random) -> Draft:
    """Distances at two numbers of images → slope, limit, images needed, and a comparison."""
    few, many = draw.choice([(1_000, 5_000), (2_000, 10_000), (1_000, 4_000), (2_500, 10_000)])
    limit, slope = draw.randint(20, 90) / 10, draw.randint(3_000, 9_000)
    at_few, at_many = round(limit + slope / few, 2), round(limit + slope / many, 2)
    b = (at_few - at_many) / (1 / few - 1 / many)
    infinity = at_many - b / many
    tolerance = draw.choice([0.2, 0.25, 0.3, 0.4, 0.5])
    needed = math.ceil(b / tolerance - 1e-9)
    other = draw.choice([3_000, 6_000, 8_000, 20_000])
    text = rf"""A generator has a digit-FID of ${at_few}$ on average over draws of ${num(few)}$ images, and of ${at_many}$ over draws of ${num(many)}$.

(a) Extrapolate to infinitely many images. What is the slope $b$ against $1/N$? (b) Which digit-FID do you expect at ${num(other)}$ images? (c) How many images
make the bias at most ${tolerance}$? (d) Why does KID need no such extrapolation?"""
    solution = rf"""(a) With $\text{{FID}}_N = \text{{FID}}_\infty + b / N$, $b = ({at_few} - {at_many}) / (1/{few} - 1/{many}) = {num(b, 5)}$ and
$\text{{FID}}_\infty = {at_many} - b/{many} = {num(infinity)}$.
(b) ${num(infinity)} + {num(b, 5)} / {other} = {num(infinity + b / other)}$.
(c) $N \ge b / {tolerance}$, so ${num(needed)}$ images.
(d) It is a mean over pairs of different points; each pair has the right expectation for every $N$."""
    answer = {"slope": b, "infinity": infinity, "at": infinity + b / other, "needed": needed}
    given = {
        "few": few,
        "many": many,
        "values": (at_few, at_many),
        "tolerance": tolerance,
        "other": other,
    }
    return Draft(text, solution, answer, given)


def _mean(values: Sequence[float]) -> float:
    """Mean of some numbers."""
    return sum(values) / len(values)


@question("A distance with and without bias", chapter=4, difficulty=2, minutes=9, parts=(4, 3, 2))
def kid_by_hand(draw: random.Random) -> Draft:
    """Three real and three generated numbers → the unbiased estimate of KID, and the biased one."""
    real, made = ([draw.choice([-2, -1, 1, 2, 3]) for _ in range(3)] for _ in range(2))
    if len(set(real)) < 2 or len(set(made)) < 2 or sorted(real) == sorted(made):
        return kid_by_hand(draw)

    def kernel(x: int, y: int) -> int:
        return (x * y + 1) ** 3

    def pairs(points: Sequence[int]) -> list[int]:
        return [kernel(points[i], points[j]) for i, j in ((0, 1), (0, 2), (1, 2))]

    own, theirs = _mean(pairs(real)), _mean(pairs(made))
    crossed = _mean([kernel(x, y) for x in real for y in made])
    estimate = own + theirs - 2 * crossed
    all_real, all_made = (_mean([kernel(x, y) for x in s for y in s]) for s in (real, made))
    biased = all_real + all_made - 2 * crossed
    text = rf"""With a single feature the kernel of KID is $\kappa(x, y) = (xy + 1)^3$. Three real points lie at ${listed(real)}$, three generated ones at
${listed(made)}$.

(a) Estimate KID without bias. (b) What does the estimate become if each point is also paired with itself? (c) Which of the two can be negative, and why?"""
    solution = rf"""(a) Pairs of different real points: ${listed(pairs(real))}$, mean ${num(own)}$; generated: ${listed(pairs(made))}$, mean ${num(theirs)}$; crossed:
the nine values have the mean ${num(crossed)}$. The estimate is ${plus([own, theirs])} - 2 \cdot {f"({num(crossed)})" if crossed < 0 else num(crossed)} = {num(estimate)}$.
(b) With the pairs $(x, x)$ the first two means become ${num(all_real)}$ and ${num(all_made)}$, the estimate ${num(biased)}$.
(c) Only the first. The second is the squared length of a difference of two mean vectors; the first errs in both directions, because it is right on average."""
    return Draft(text, solution, {"unbiased": estimate, "biased": biased}, {"real": real, "made": made})


def _apart(draw: random.Random, count: int, made: int) -> tuple[list[float], list[float]]:
    """Draw points on a line such that no ball ends at a point of the other set."""
    while True:
        real = sorted(x / 10 for x in draw.sample(range(100), count))
        other = sorted(x / 10 for x in draw.sample(range(100), made))
        if not set(real) & set(other):
            radii = [sorted(abs(a - b) for b in s)[k] for s in (real, other) for a in s for k in (1, 2)]
            cross = [abs(a - b) for a in real for b in other]
            if all(abs(r - d) > 0.04 for r in radii for d in cross):
                return real, other


def _radius(cloud: Sequence[float], x: float, k: int) -> float:
    """Distance from a point of a cloud to its k-th nearest other point."""
    return sorted(abs(x - y) for y in cloud)[k]


@question("Precision and recall on a line", chapter=4, difficulty=2, minutes=8, parts=(3, 3, 2))
def fidelity(draw: random.Random) -> Draft:
    """Points on a line → radii, precision and recall for k = 1."""
    while True:
        real, made = _apart(draw, 6, 5)
        balls = {x: _radius(real, x, 1) for x in real}
        others = {y: _radius(made, y, 1) for y in made}
        inside = [y for y in made if any(abs(x - y) <= r for x, r in balls.items())]
        reached = [x for x in real if any(abs(x - y) <= r for y, r in others.items())]
        if 0 < len(inside) < 5 and 0 < len(reached) < 6:
            break
    precision, recall = len(inside) / 5, len(reached) / 6
    text = rf"""Six real points (crosses) lie at ${listed(real)}$, five generated ones (circles) at ${listed(made)}$. Each ball reaches to the nearest other point of its own
set ($k = 1$).

(a) Which generated points lie in a real ball, and what is the precision? (b) Which real points lie in a generated ball, and what is the recall? (c) One more generated point appears,
far to the right. Name one point that keeps the same ball, and say which of the two numbers the newcomer may raise although nothing became better."""
    solution = rf"""The real radii are ${listed([round(r, 1) for r in balls.values()])}$, the generated ones ${listed([round(r, 1) for r in others.values()])}$.
(a) Inside: ${listed(inside)}$. Precision $= {len(inside)} / 5 = {num(precision)}$.
(b) Reached: ${listed(reached)}$. Recall $= {len(reached)} / 6 = {num(recall)}$.
(c) All old points keep theirs, since the newcomer is nobody's nearest neighbour. Its own ball is huge and may hold real points, so recall may rise."""
    answer = {"inside": inside, "precision": precision, "reached": reached, "recall": recall}
    figure = number_line({"real": real, "generated": made}, 0, 10, 1)
    return Draft(text, solution, answer, {"real": real, "made": made}, figure)


@question("Density and coverage on a line", chapter=4, difficulty=3, minutes=9, parts=(4, 2, 3))
def variety(draw: random.Random) -> Draft:
    """Points on a line → density and coverage for k = 2, and the effect of copies."""
    while True:
        real, made = _apart(draw, 6, 4)
        balls = {x: _radius(real, x, 2) for x in real}
        held = [sum(abs(x - y) <= r for x, r in balls.items()) for y in made]
        covered = [x for x, r in balls.items() if any(abs(x - y) <= r for y in made)]
        busiest = made[held.index(max(held))]
        left = [x for x, r in balls.items() if abs(x - busiest) <= r]
        if len(left) < len(covered) < 6 and len(set(held)) > 2:
            break
    density, coverage = sum(held) / (2 * 4), len(covered) / 6
    copied = max(held) / 2
    text = rf"""Six real points (crosses) lie at ${listed(real)}$, four generated ones (circles) at ${listed(made)}$. Each real ball reaches to its second nearest other real point
($k = 2$).

(a) Which radii have the real balls, and in how many of them does each generated point lie? What is the density? (b) What is the coverage? (c) The generator now returns only copies of the point ${busiest}$. What are
density and coverage then, and what does the pair of numbers say?"""
    solution = rf"""(a) The radii are ${listed([round(r, 1) for r in balls.values()])}$. The generated points lie in ${listed(held)}$ balls, so the density is ${num(sum(held))} / (2 \cdot 4) = {num(density)}$.
(b) Balls that hold a generated point: those around ${listed(covered)}$. Coverage $= {len(covered)} / 6 = {num(coverage)}$.
(c) Density ${max(held)} / 2 = {num(copied)}$, coverage ${len(left)} / 6 = {num(len(left) / 6)}$: fidelity is no lower than before, and variety is lower."""
    answer = {
        "radii": [round(r, 1) for r in balls.values()],
        "held": held,
        "density": density,
        "coverage": coverage,
        "density of copies": copied,
        "coverage of copies": len(left) / 6,
    }
    figure = number_line({"real": real, "generated": made}, 0, 10, 1)
    return Draft(text, solution, answer, {"real": real, "made": made, "copied": busiest}, figure)


@question("What a perfect generator covers", chapter=4, difficulty=2, minutes=6, parts=(2, 2, 2))
def perfect(draw: random.Random) -> Draft:
    """Sizes of both sets → the expected coverage of a perfect generator, and images for a wish."""
    m, n, k = draw.randint(30, 200) * 5, draw.randint(20, 400) * 5, draw.choice([2, 3, 4, 5])
    product = math.prod((m - 1 - j) / (m - 1 - j + n) for j in range(k))
    short = 1 - (m / (m + n)) ** k
    wish = draw.choice([0.8, 0.9, 0.95])
    needed = math.ceil(m * ((1 - wish) ** (-1 / k) - 1) - 1e-9)
    text = rf"""Coverage is the share of real balls that hold a generated point; a ball reaches to the $k$-th nearest other real point. A *perfect* generator draws from the distribution of
the data. There are $M = {num(m)}$ real and $N = {num(n)}$ generated points, and $k = {k}$.

(a) With which probability are the ${k}$ nearest of all other points real, for a given real point? (b) What is the expected coverage? (c) How many images does the approximation
$1 - \bigl(\tfrac{{M}}{{M + N}}\bigr)^k$ ask for, if ${wish}$ shall be reached?"""
    factors = r" \cdot ".join(rf"\tfrac{{{m - 1 - j}}}{{{m - 1 - j + n}}}" for j in range(k))
    solution = rf"""(a) Ordered by distance, the other points come in random order, so the probability is ${factors} = {num(product)}$.
(b) $1 - {num(product)} = {num(1 - product)}$. (The approximation gives ${num(short)}$.)
(c) $\tfrac{{M}}{{M + N}} = (1 - {wish})^{{1/{k}}}$ gives $N = M \bigl((1 - {wish})^{{-1/{k}}} - 1\bigr)$, rounded up ${num(needed)}$."""
    answer = {"empty": product, "coverage": 1 - product, "needed": needed}
    return Draft(text, solution, answer, {"m": m, "n": n, "k": k, "wish": wish})


@question("Shares of classes", chapter=4, difficulty=1, minutes=5, parts=(2, 2, 1))
def classes(draw: random.Random) -> Draft:
    """Shares of four classes → the divergence of the histogram, before and after a class is lost."""

    def split(whole: int) -> list[int]:
        cuts = sorted(draw.sample(range(2, whole - 1), 3))
        return [b - a for a, b in zip([0, *cuts], [*cuts, whole], strict=True)]

    while True:
        real, made = split(40), split(40)
        if min(real) >= 4 and real != made:
            break
    p, q = [x / 40 for x in made], [x / 40 for x in real]
    found = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    lost = draw.randrange(4)
    ideal = -math.log(1 - q[lost])
    text = f"""A classifier names the class of each image.

{table(["", "A", "B", "C", "D"], [["real labels", *q], ["generated", *p]])}

(a) Compute the Kullback–Leibler divergence of the generated shares from the real ones, with natural logarithms. (b) Another generator never draws class
{"ABCD"[lost]} and has the others in the right proportion to each other. What is its divergence? (c) Name a loss of variety that this number cannot see."""
    terms = " + ".join(rf"{num(a)} \log \tfrac{{{num(a)}}}{{{num(b)}}}" for a, b in zip(p, q, strict=True))
    solution = rf"""(a) ${terms} = {num(found)}$.
(b) The other shares are divided by $1 - {num(q[lost])}$, so every logarithm is $-\log {num(1 - q[lost])}$ and the divergence is ${num(ideal)}$.
(c) Variety within a class: one image per class, copied in the right shares, has the divergence 0."""
    return Draft(text, solution, {"divergence": found, "lost": ideal}, {"p": p, "q": q, "lost": lost})
