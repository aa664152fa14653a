"""Questions on chapter 1: the game, its best judge, its losses, and modes."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from exam.figures import number_line
from exam.question import Draft, listed, num, question, table

LN2 = math.log(2)


def shares(draw: random.Random, places: int, whole: int, zero: bool = False) -> list[Fraction]:
    """Draw positive probabilities that are multiples of one over ``whole``; with one zero if wanted."""
    count = places - zero
    cuts = sorted(draw.sample(range(1, whole), count - 1))
    parts = [b - a for a, b in zip([0, *cuts], [*cuts, whole], strict=True)]
    if zero:
        parts.insert(draw.randrange(places), 0)
    return [Fraction(part, whole) for part in parts]


def divergence(p: list[Fraction], q: list[Fraction]) -> float:
    """The Jensen–Shannon divergence of two discrete distributions."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        total += sum(float(c) * math.log(2 * c / (a + b)) for c in (a, b) if c)
    return total / 2


@question("The best judge of four places", chapter=1, difficulty=1, minutes=5, parts=(2, 1, 2))
def best_judge(draw: random.Random) -> Draft:
    """Densities → the best probability, the best logit, and the share of right verdicts."""
    while True:
        p, q = shares(draw, 4, 40), shares(draw, 4, 40)
        if all(a != b for a, b in zip(p, q, strict=True)):
            break
    best = [a / (a + b) for a, b in zip(p, q, strict=True)]
    asked = draw.randrange(4)
    logit = math.log(p[asked] / q[asked])
    right = sum(max(a, b) for a, b in zip(p, q, strict=True)) / 2
    places = [f"$x_{i + 1}$" for i in range(4)]
    rows = [["data", *map(float, p)], ["generator", *map(float, q)]]
    text = f"""Data and samples fall on four places with these probabilities.

{table(["", *places], rows)}

(a) Which probability of "real" does the best discriminator give at each place?
(b) What is its logit at $x_{asked + 1}$? (c) It calls a point real where its logit is positive. Which share of its
verdicts is right, if half of the points that it sees are data?"""
    pairs = ",\\; ".join(
        rf"\tfrac{{{num(float(a))}}}{{{num(float(a + b))}}} = {num(float(s))}"
        for a, b, s in zip(p, q, best, strict=True)
    )
    solution = rf"""(a) At each place $p_\text{{data}} \log s + p_G \log(1 - s)$ is largest for
$s^* = p_\text{{data}} / (p_\text{{data}} + p_G)$: ${pairs}$.
(b) $D^* = \log (p_\text{{data}} / p_G) = \log ({num(float(p[asked]))} / {num(float(q[asked]))}) = {num(logit)}$.
(c) At each place it sides with the likelier one, so
$\tfrac12 \sum \max(p_\text{{data}}, p_G) = \tfrac12 \cdot {num(float(2 * right))} = {num(float(right))}$."""
    answer = {"probabilities": [float(s) for s in best], "logit": logit, "right": float(right)}
    return Draft(text, solution, answer, {"p": p, "q": q, "asked": asked})


@question("A divergence by hand", chapter=1, difficulty=2, minutes=7, parts=(3, 2, 2))
def divergence_by_hand(draw: random.Random) -> Draft:
    """Two distributions with a hole in each → the divergence and the value of the game."""
    while True:
        p, q = shares(draw, 4, 20, zero=True), shares(draw, 4, 20, zero=True)
        if p.index(0) != q.index(0) and p != q:
            break
    jsd = divergence(p, q)
    value = 2 * jsd - math.log(4)
    rows = [["data", *map(float, p)], ["generator", *map(float, q)]]
    text = f"""Two distributions on four places:

{table(["", *[f"$x_{i + 1}$" for i in range(4)]], rows)}

(a) Compute their Jensen–Shannon divergence with natural logarithms. (b) What is the value of the game against the best
discriminator, and what is that discriminator's loss? (c) Which share of the largest possible divergence is this?"""
    terms = [
        rf"{num(float(c))} \log \tfrac{{{num(float(2 * c))}}}{{{num(float(a + b))}}}"
        for a, b in zip(p, q, strict=True)
        for c in (a, b)
        if c
    ]
    solution = rf"""(a) With $m = \tfrac12 (p + q)$ each probability $c$ adds $c \log (c / m)$; a zero adds nothing. Half of the sum is
$$\operatorname{{JSD}} = \tfrac12 \bigl[ {" + ".join(terms[:4])}$$
$$+ {" + ".join(terms[4:])} \bigr] = {num(jsd)} .$$
(b) $V = 2 \operatorname{{JSD}} - \log 4 = {num(value)}$, and the loss is $-V = {num(-value)}$.
(c) The bound is $\log 2$, so the share is ${num(jsd)} / {num(LN2)} = {num(jsd / LN2)}$."""
    answer = {"divergence": jsd, "value": value, "loss": -value, "share": jsd / LN2}
    return Draft(text, solution, answer, {"p": p, "q": q})


@question("Two intervals of different width", chapter=1, difficulty=3, minutes=9, parts=(2, 4, 3))
def two_intervals(draw: random.Random) -> Draft:
    """Uniform densities that overlap → best logit, divergence, and where its slope vanishes."""
    a, b = Fraction(draw.randint(20, 80), 20), Fraction(draw.randint(20, 80), 20)
    start = Fraction(draw.randint(4, int(20 * a) - 4), 20)
    overlap = min(a, start + b) - start
    ratio_p, ratio_q = 2 * b / (a + b), 2 * a / (a + b)  # p / m and q / m on the overlap
    inside = float(overlap / a) * math.log(ratio_p) + float(overlap / b) * math.log(ratio_q)
    outside = float((a - overlap) / a + (b - overlap) / b) * LN2
    jsd, logit = (inside + outside) / 2, math.log(b / a)
    x, y, z = num(float(a)), num(float(start)), num(float(start + b))
    text = rf"""The data are uniform on $[0, {x}]$, the samples uniform on $[{y}, {z}]$.

(a) What is the best discriminator's logit where both have mass? (b) What is the Jensen–Shannon divergence? (c) The samples
are now shifted to the right. From which place of their left end on does the divergence no longer change, and what does
it equal there?"""
    solution = rf"""The densities are $1/{x}$ and $1/{num(float(b))}$, and the intervals share a length of ${num(float(overlap))}$.
(a) $\log \frac{{1/{x}}}{{1/{num(float(b))}}} = \log \frac{{{num(float(b))}}}{{{x}}} = {num(logit)}$.
(b) On the shared part $p/m = {num(float(ratio_p))}$ and $q/m = {num(float(ratio_q))}$; elsewhere the one that is there has
ratio 2. The shared part has the share ${num(float(overlap / a))}$ of the data and ${num(float(overlap / b))}$ of the samples, so
$$\operatorname{{JSD}} = \tfrac12 \bigl[ {num(float(overlap / a))} \log {num(float(ratio_p))} +
{num(float(overlap / b))} \log {num(float(ratio_q))} + {num(float(2 - overlap / a - overlap / b))} \log 2 \bigr]
= {num(jsd)} .$$
(c) From ${x}$ on the intervals do not touch; the divergence stays at $\log 2 = {num(LN2)}$, and a generator trained on it
is not told which way to go."""
    answer = {"logit": logit, "divergence": jsd, "constant from": float(a), "constant": LN2}
    return Draft(text, solution, answer, {"a": a, "b": b, "start": start})


@question("Slopes of two losses", chapter=1, difficulty=1, minutes=5, parts=(2, 1, 2))
def slopes(draw: random.Random) -> Draft:
    """A logit → the slopes of both generator losses, and where one is so many times the other."""
    a, times = -draw.randint(8, 60) / 10, draw.randint(3, 400)
    sigma = 1 / (1 + math.exp(-a))
    text = rf"""The discriminator gives a generated sample the logit $a = {num(a)}$. (a) What are the slopes, by the logit, of the
minimax loss $\log(1 - \sigma(a))$ and of the non-saturating loss $-\log \sigma(a)$? (b) How many times as strongly does
this sample count under the second? (c) At which logit is it exactly ${times}$ times?"""
    solution = rf"""$\sigma(a) = 1 / (1 + e^{{{num(-a)}}}) = {num(sigma)}$.
(a) The slopes are $-\sigma(a) = {num(-sigma)}$ and $-\sigma(-a) = {num(sigma - 1)}$.
(b) Their ratio is $\sigma(-a) / \sigma(a) = e^{{-a}} = {num(math.exp(-a))}$.
(c) $e^{{-a}} = {times}$ at $a = -\log {times} = {num(-math.log(times))}$."""
    answer = {
        "minimax": -sigma,
        "non-saturating": sigma - 1,
        "ratio": math.exp(-a),
        "logit": -math.log(times),
    }
    return Draft(text, solution, answer, {"a": a, "times": times})


@question("Smoothed labels on both sides", chapter=1, difficulty=2, minutes=6, parts=(2, 2, 2))
def smoothed(draw: random.Random) -> Draft:
    """Labels other than 1 and 0 → the best probability at two densities."""
    alpha, beta = draw.randint(75, 97) / 100, draw.randint(2, 20) / 100
    a, b = draw.randint(10, 90) / 100, draw.randint(10, 90) / 100
    one, both = alpha * a / (a + b), (alpha * a + beta * b) / (a + b)
    text = rf"""A discriminator is trained by cross-entropy with the label ${alpha}$ for data. At a place $x$ the densities are
$p_\text{{data}}(x) = {a}$ and $p_G(x) = {b}$. What is its best probability there (a) if samples have the label 0, and (b) if
samples have the label ${beta}$? (c) In case (b), what does the best discriminator say where there are samples and no data,
and why does that help a bad generator?"""
    solution = rf"""The slope of $a\,(\alpha \log s + (1 - \alpha) \log(1 - s)) + b\,(\beta \log s + (1 - \beta) \log(1 - s))$ vanishes at
$s^* = (\alpha a + \beta b) / (a + b)$.
(a) $\beta = 0$: ${alpha} \cdot {a} / ({a} + {b}) = {num(one)}$.
(b) $({alpha} \cdot {a} + {beta} \cdot {b}) / ({a} + {b}) = {num(both)}$.
(c) With $a = 0$ it says $\beta = {beta}$ instead of 0. Around such places it levels off at $\beta$, so $-\log s^*$ hardly slopes
and does not lead the generator away."""
    answer = {"one-sided": one, "two-sided": both, "without data": beta}
    return Draft(text, solution, answer, {"alpha": alpha, "beta": beta, "a": a, "b": b})


@question("What a judge reveals", chapter=1, difficulty=3, minutes=10, parts=(3, 3, 4))
def revealed(draw: random.Random) -> Draft:
    """A discriminator that is not the best → its loss, the bound that it gives, and what is missing."""
    p, q = shares(draw, 3, 20), shares(draw, 3, 20)
    while divergence(p, q) < 0.05:
        p, q = shares(draw, 3, 20), shares(draw, 3, 20)
    best = [float(a / (a + b)) for a, b in zip(p, q, strict=True)]
    shrink = draw.randint(30, 80) / 100
    says = [round(0.5 + shrink * (s - 0.5), 2) for s in best]
    loss = -sum(
        float(a) * math.log(s) + float(b) * math.log(1 - s) for a, b, s in zip(p, q, says, strict=True)
    )
    bound, jsd = (math.log(4) - loss) / 2, divergence(p, q)
    rows = [["data", *map(float, p)], ["generator", *map(float, q)], ["$s(x)$", *says]]
    text = f"""Data and samples fall on three places; a trained discriminator says $s(x)$.

{table(["", "$x_1$", "$x_2$", "$x_3$"], rows)}

(a) What is its expected loss $L_D = -V$? (b) Which lower bound of the Jensen–Shannon divergence does it reveal? (c) How large is
the divergence, and by how much could another discriminator lower the loss?"""
    terms = [float(a) * math.log(s) + float(b) * math.log(1 - s) for a, b, s in zip(p, q, says, strict=True)]
    solution = rf"""(a) The three places add $p_\text{{data}} \log s + p_G \log (1 - s)$: ${listed(terms)}$; so $L_D = -V = {num(loss)}$.
(b) $\tfrac12 (\log 4 - L_D) = \tfrac12 ({num(math.log(4))} - {num(loss)}) = {num(bound)}$.
(c) From the densities $\operatorname{{JSD}} = {num(jsd)}$. The best discriminator, with $s^* = ({listed(best, 3)})$, has the loss
$\log 4 - 2 \operatorname{{JSD}} = {num(math.log(4) - 2 * jsd)}$, lower by ${num(loss - math.log(4) + 2 * jsd)}$, which is twice what
the bound misses."""
    answer = {"loss": loss, "bound": bound, "divergence": jsd, "room": loss - math.log(4) + 2 * jsd}
    return Draft(text, solution, answer, {"p": p, "q": q, "says": says})


@question("Modes on a line", chapter=1, difficulty=1, minutes=5, parts=(2, 1, 2))
def modes(draw: random.Random) -> Draft:
    """Samples on a line → the share of good ones, and the modes that are covered."""
    centres, reach = [1, 3, 5, 7, 9], draw.choice([0.5, 0.6, 0.7])
    near = draw.sample(centres, draw.choice([3, 4]))
    points: set[float] = set()
    while len(points) < 20:
        if draw.random() < 0.75:
            point = draw.choice(near) + draw.randint(-9, 9) / 10
        else:
            point = draw.randint(1, 99) / 10
        if all(abs(abs(point - c) - reach) > 0.05 for c in centres):
            points.add(round(point, 1))
    samples = sorted(points)
    least = draw.choice([3, 4])
    good = {c: [x for x in samples if abs(x - c) < reach] for c in centres}
    share = sum(map(len, good.values())) / 20
    covered = [c for c in centres if len(good[c]) >= least]
    text = rf"""The data sit in five narrow modes around 1, 3, 5, 7 and 9. The picture shows 20 generated samples, and below it they are
listed. A sample is *good* if it lies less than ${reach}$ from the nearest centre, and a mode is *covered* if at least
{least} good samples belong to it.

${listed(samples)}$

(a) How many good samples has each mode, and which share of the samples is good? (b) Which modes are covered? (c) A second generator has a share of good samples of 1.
How many modes does it cover at least, and at most?"""
    counts = ", ".join(f"{c}: {len(good[c])}" for c in centres)
    solution = rf"""(a) Good samples by centre: {counts}. Together ${num(sum(map(len, good.values())))}$ of 20, so ${num(share)}$.
(b) Covered are the modes at {", ".join(map(str, covered)) or "no place"}.
(c) At least one and at most five: all samples may sit at one centre. Quality says nothing about coverage."""
    counted = [len(good[c]) for c in centres]
    answer = {"counts": counted, "good": share, "covered": covered, "at least": 1, "at most": 5}
    figure = number_line({"centres": centres, "samples": samples}, 0, 10, 1)
    given = {"samples": samples, "reach": reach, "least": least, "centres": centres}
    return Draft(text, solution, answer, given, figure)
