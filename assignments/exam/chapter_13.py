"""Questions on chapter 13: rounds of pruning, tickets and their controls, barriers, and what five seeds decide."""

from __future__ import annotations

import math
import random

from exam.figures import curve, grid
from exam.question import Draft, listed, num, question, table, vector

T_95, T_90 = (
    2.7764451051977934,
    2.131846786326649,
)  # quantiles of Student's t with four degrees of freedom
MARGIN = math.log(1.1)


@question("Rounds and their price", chapter=13, difficulty=1, minutes=6, parts=(2, 2, 2))
def rounds(draw: random.Random) -> Draft:
    """The share that a round keeps → rounds, density and steps, from the start and from later."""
    keep, target = draw.randint(50, 85) / 100, draw.choice([0.02, 0.05, 0.1, 0.15, 0.2])
    steps = draw.randint(4, 40) * 500
    late = steps // draw.choice([10, 20, 25])
    n = draw.randint(40, 400) * 1000
    exact = math.log(target) / math.log(keep)
    count = math.ceil(exact - 1e-9)
    density = keep**count
    pruned = round(n * (1 - density))
    total = steps + count * (steps - late)
    text = rf"""Iterative magnitude pruning keeps the share ${keep}$ of the remaining weights in each round. A training has ${num(steps)}$ steps, the network ${num(n)}$ prunable weights.

(a) How many rounds does it take to reach a density of at most ${target}$? (b) Which density is reached, and how many weights are pruned (counted from the target, rounded once)? (c) How many steps does it cost, round 0 included, with
rewinding to step ${num(late)}$? How many dense trainings is that?"""
    solution = rf"""(a) $d_r = {keep}^r \le {target}$ means $r \ge \ln {target} / \ln {keep} = {num(exact)}$ (both logarithms are negative): {count} rounds.
(b) ${keep}^{{{count}}} = {num(density)}$; $\operatorname{{round}}\bigl(n (1 - \kappa^r)\bigr) = {num(pruned)}$.
(c) $T + r\,(T - t_0) = {num(steps)} + {count} \cdot {num(steps - late)} = {num(total)}$, ${num(total / steps)}$ dense trainings."""
    answer = {"rounds": count, "density": density, "pruned": pruned, "steps": total}
    return Draft(
        text,
        solution,
        answer,
        {"keep": keep, "target": target, "steps": steps, "late": late, "n": n},
    )


@question("A barrier on the way", chapter=13, difficulty=1, minutes=5, parts=(2, 2, 1))
def barrier(draw: random.Random) -> Draft:
    """Qualities on a segment → the barrier, and a smaller one for another pair."""
    while True:
        ends = [draw.randint(60, 160) / 10 for _ in range(2)]
        places = [0, 0.25, 0.5, 0.75, 1]
        rises = [draw.randint(-10, 120) / 10 for _ in range(3)]
        line = [ends[0] + a * (ends[1] - ends[0]) for a in places]
        values = [
            ends[0],
            *(round(x + r, 1) for x, r in zip(line[1:4], rises, strict=True)),
            ends[1],
        ]
        gaps = [v - x for v, x in zip(values, line, strict=True)]
        if max(gaps) > 0.5 and ends[0] != ends[1] and min(values) > 1:
            break
    found = max(gaps)
    at = places[gaps.index(found)]
    naive = max(values) - max(ends)
    text = """Two generators were trained from one state with different batches. The picture shows the digit-FID on the straight line between them, $w(a) = (1 - a)\\, w(0) + a\\, w(1)$, at five places.

(a) What is the barrier by the definition of the chapter, measured at these places, and where is it reached? (b) Somebody subtracts the worse end from the largest value. What do they get, and what is wrong with it? (c) Give two networks with
equal functions and a barrier between them."""
    solution = rf"""(a) The line between the ends has the heights ${listed(line)}$. The rises above it are ${listed([round(g, 4) for g in gaps])}$; the largest is ${num(found)}$, at $a = {num(at)}$.
(b) ${num(naive)}$. That measures from the height of the worse end everywhere, instead of from the line at the place of the value. The line is lower between the ends, so the number is too small.
(c) $f(x) = v \tanh(u x)$ with $(u, v)$ and $(-u, -v)$ is one function; half-way both weights are 0."""
    figure = curve(list(zip(places, values, strict=True)), "place a on the segment", "digit-FID")
    return Draft(text, solution, {"barrier": found, "at": at, "naive": naive}, {"values": values}, figure)


@question("Two rounds of pruning", chapter=13, difficulty=2, minutes=8, parts=(2, 3, 3))
def two_rounds(draw: random.Random) -> Draft:
    """Start, and trained weights of two rounds → masks of IMP and of one-shot, and the ticket."""
    while True:
        values = draw.sample([x / 100 for x in range(4, 99)], 24)
        start, trained, again = ([draw.choice([-1, 1]) * x for x in values[i : i + 8]] for i in (0, 8, 16))
        first = sorted(range(8), key=lambda i: abs(trained[i]))[2:]
        again = [x if i in first else 0.0 for i, x in enumerate(again)]
        imp = sorted(sorted(first, key=lambda i: abs(again[i]))[2:])
        shot = sorted(sorted(range(8), key=lambda i: abs(trained[i]))[4:])
        if imp != shot:
            break
    shared = sorted(set(imp) & set(shot))
    ticket = [start[i] if i in imp else 0.0 for i in range(8)]
    text = """The picture shows eight weights at the start, after the training of round 0, and after the training of round 1 (a round prunes two weights, by magnitude, and rewinds the rest to the start).

(a) Which weights does round 1 keep, and which the second pruning? Number them from 1. (b) Which four does one-shot pruning keep after round 0? How many are in both masks, and which assumption of the proposition is broken? (c) Write down
the ticket after the second pruning, as it is trained next."""
    kept = [i + 1 for i in sorted(first)]
    solution = rf"""(a) Round 0's six largest magnitudes: ${listed(kept)}$. Among them round 1's four largest: ${listed([i + 1 for i in imp])}$.
(b) ${listed([i + 1 for i in shot])}$; ${len(shared)}$ are in both. Round 1 has left the kept magnitudes in another order than round 0.
(c) Start values under the mask: ${vector(ticket)}$. The magnitudes decided who stays; the values are those of the start."""
    answer = {
        "round 1": kept,
        "IMP": [i + 1 for i in imp],
        "one-shot": [i + 1 for i in shot],
        "shared": len(shared),
        "ticket": ticket,
    }
    figure = grid([start, trained, again], ["start", "after round 0", "after round 1"], range(1, 9))
    return Draft(text, solution, answer, {"start": start, "trained": trained, "again": again}, figure)


@question("Holm's correction", chapter=13, difficulty=2, minutes=7, parts=(2, 3, 2))
def holm(draw: random.Random) -> Draft:
    """Four p-values → the uncorrected, Bonferroni's and Holm's decisions, and adjusted values."""
    while True:
        p = [
            draw.randint(1, 9) / 1000,
            draw.randint(10, 24) / 1000,
            draw.randint(12, 60) / 1000,
            draw.randint(30, 400) / 1000,
        ]
        ordered = sorted(p)
        adjusted, highest = {}, 0.0
        for place, value in enumerate(ordered):
            highest = max(highest, min(1.0, (4 - place) * value))
            adjusted[value] = highest
        counts = [
            sum(x < 0.05 for x in p),
            sum(4 * x < 0.05 for x in p),
            sum(x < 0.05 for x in adjusted.values()),
        ]
        clear = min(abs(x - 0.05) for x in [*adjusted.values(), *(4 * x for x in p), *p]) > 0.0015
        if len(adjusted) == 4 and clear and counts[0] > counts[2] and counts[2] >= counts[1]:
            break
    draw.shuffle(p)
    values = [adjusted[x] for x in p]
    names = ["fresh weights", "shuffled mask", "random mask", "small and dense"]
    text = f"""A ticket is compared with four controls; the two-sided $p$-values are:

{table(["control", "$p$"], [[n, x] for n, x in zip(names, p, strict=True)])}

(a) How many differences would one claim at 5% without a correction, how many by Bonferroni's, and how many by Holm's? (b) Give Holm's adjusted $p$-values in the order of the table. (c) Why is it wrong to correct only for those comparisons that
"came out"?"""
    steps = ", ".join(
        rf"{num(x)} \cdot {4 - place} = {num((4 - place) * x)}" for place, x in enumerate(ordered)
    )
    solution = rf"""(a) {counts[0]} without, {counts[1]} by Bonferroni (each $p$ times 4 below 0.05), {counts[2]} by Holm.
(b) In order of size: ${steps}$; each adjusted value is at least as large as the one before and at most 1. In the order of the table: ${listed(values)}$.
(c) The number of chances that luck had is the number of comparisons that were made, and not of those that are reported."""
    answer = {"plain": counts[0], "Bonferroni": counts[1], "Holm": counts[2], "adjusted": values}
    return Draft(text, solution, answer, {"p": p})


@question("What five seeds decide", chapter=13, difficulty=3, minutes=10, parts=(3, 3, 2, 2))
def five_seeds(draw: random.Random) -> Draft:
    """Digit-FIDs of two arms, paired by seed → ratio, intervals and both verdicts."""
    shift, spread = (
        draw.choice([-0.25, -0.12, -0.06, -0.03, 0.0, 0.02, 0.05]),
        draw.choice([0.02, 0.05, 0.09]),
    )
    while True:
        control = [draw.randint(80, 160) / 10 for _ in range(5)]
        ticket = [round(c * math.exp(shift + spread * draw.gauss(0, 1)), 1) for c in control]
        logs = [math.log(a / b) for a, b in zip(ticket, control, strict=True)]
        mean = sum(logs) / 5
        sd = math.sqrt(sum((x - mean) ** 2 for x in logs) / 4)
        half95, half90 = T_95 * sd / math.sqrt(5), T_90 * sd / math.sqrt(5)
        edges = [
            abs(mean) - half95,
            abs(mean) + half90 - MARGIN,
            abs(mean + half90 - MARGIN),
        ]
        if sd > 0.005 and min(map(abs, edges)) > 0.004:
            break
    ends95 = [math.exp(mean - half95), math.exp(mean + half95)]
    ends90 = [math.exp(mean - half90), math.exp(mean + half90)]
    beats, matches = ends95[1] < 1, ends90[0] > 1 / 1.1 and ends90[1] < 1.1
    rows = [["ticket", *ticket], ["control", *control]]
    text = f"""Digit-FIDs of tickets and of a control, paired by seed (lower is better):

{table(["seed", "0", "1", "2", "3", "4"], rows)}

(a) What is the mean ratio of ticket to control (a geometric mean)? (b) Give its 95% interval; the quantile of Student's $t$ with four degrees of freedom is ${num(T_95)}$. Does the ticket *beat* the control? (c) Give the 90% interval (quantile ${num(T_90)}$).
Do they *match*, with a margin of a tenth? (d) In words: what may be said, and what not?"""
    verdict = (
        "it beats and also matches: better, and by less than a tenth either way"
        if beats and matches
        else "it beats the control"
        if beats
        else "they match: neither is better by a tenth"
        if matches
        else "the control is better"
        if ends95[0] > 1
        else "not decided, which is not the same as equal"
    )
    solution = rf"""(a) The logarithms of the ratios are ${listed(logs)}$, with mean ${num(mean)}$; the ratio is ${num(math.exp(mean))}$.
(b) Their standard deviation is ${num(sd)}$, so ${num(mean)} \pm {num(T_95)} \cdot {num(sd)} / \sqrt 5$, and $[{num(ends95[0])}, {num(ends95[1])}]$ for the ratio. {"It lies below 1: yes" if beats else "It does not lie below 1: no"}.
(c) $[{num(ends90[0])}, {num(ends90[1])}]$, which {"lies" if matches else "does not lie"} within $[1/1.1, 1.1]$: {"yes" if matches else "no"}.
(d) {verdict[0].upper() + verdict[1:]}. Nothing is said about other sparsities, budgets or data."""
    answer = {
        "ratio": math.exp(mean),
        "95%": ends95,
        "beats": beats,
        "90%": ends90,
        "matches": matches,
    }
    return Draft(text, solution, answer, {"ticket": ticket, "control": control})
