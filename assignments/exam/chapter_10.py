"""Questions on chapter 10: schedules, their cost, gradients of sparse stacks, and the balance of two players."""

from __future__ import annotations

import math
import random

from exam.question import Draft, listed, num, plus, question, table


@question("Values of a cubic schedule", chapter=10, difficulty=1, minutes=5, parts=(2, 1, 2))
def cubic(draw: random.Random) -> Draft:
    """Ends of a cubic schedule → sparsity and weights at a step, and the speed at the start."""
    start, length = draw.randint(2, 30) * 100, draw.randint(8, 60) * 100
    first, last = draw.choice([0.0, 0.1, 0.2, 0.3]), draw.randint(70, 98) / 100
    step = start + round(length * draw.randint(10, 85) / 100)
    weights = draw.randint(20, 300) * 1000
    p = (step - start) / length
    sparsity = last + (first - last) * (1 - p) ** 3
    slope = 3 * (last - first) / length
    text = rf"""A cubic schedule rises from the sparsity ${first}$ at step ${num(start)}$ to ${last}$ at step ${num(start + length)}$. The network has ${num(weights)}$ prunable weights.

(a) What is the sparsity at step ${num(step)}$, and how many weights are pruned then (rounded)? (b) How many weights go per step at the very beginning, to first order? (c) What is the sparsity at step
${num(start + length + 100)}$, and which two derivatives vanish at the end?"""
    solution = rf"""(a) $p = ({num(step)} - {num(start)}) / {num(length)} = {num(p)}$, $s = s_f + (s_i - s_f)(1 - p)^3 = {last} - {num(last - first)} \cdot {num((1 - p) ** 3)} = {num(sparsity)}$, that is ${num(round(sparsity * weights))}$ weights.
(b) $s'(0) = 3 (s_f - s_i)$ per unit of progress, ${num(slope)}$ per step, ${num(slope * weights)}$ weights.
(c) ${last}$: the schedule has ended. Its first and second derivatives are zero there."""
    answer = {
        "sparsity": sparsity,
        "pruned": round(sparsity * weights),
        "per step": slope * weights,
    }
    given = {
        "start": start,
        "length": length,
        "ends": (first, last),
        "step": step,
        "weights": weights,
    }
    return Draft(text, solution, answer, given)


@question("When is half of it gone?", chapter=10, difficulty=2, minutes=7, parts=(2, 2, 3))
def half_gone(draw: random.Random) -> Draft:
    """A final sparsity → when the cubic and the geometric schedule have removed a given share."""
    last, share = draw.randint(60, 99) / 100, draw.randint(20, 95) / 100
    h = draw.randint(5, 20)
    cubic_at = 1 - (1 - share) ** (1 / 3)
    round_at = h * math.log(1 - share * last) / math.log(1 - last)
    keep = (1 - last) ** (1 / h)
    text = rf"""Two schedules lead from sparsity 0 to ${last}$: the cubic one, and a geometric one with $h = {h}$ rounds, each of which takes the same share of what is left.

(a) After which share of its time has the cubic schedule removed ${share}$ of all that it will remove? (b) Which share of the remaining weights does a geometric round keep? (c) After how many rounds has the geometric schedule
removed the share of (a), first as a real number and then as a whole one?"""
    solution = rf"""(a) $1 - (1 - p)^3 = {share}$ gives $p = 1 - {num(1 - share)}^{{1/3}} = {num(cubic_at)}$, whatever the final sparsity.
(b) $(1 - s_f)^{{1/h}} = {num(1 - last)}^{{1/{h}}} = {num(keep)}$.
(c) $1 - (1 - s_f)^{{k/h}} = {share} \cdot {last} = {num(share * last)}$ gives $k = {h} \log({num(1 - share * last)}) / \log({num(1 - last)}) = {num(round_at)}$, so {math.ceil(round_at)} rounds."""
    answer = {"cubic": cubic_at, "keeps": keep, "rounds": round_at, "whole": math.ceil(round_at)}
    return Draft(text, solution, answer, {"last": last, "share": share, "h": h})


@question("Equal steps, unequal cost", chapter=10, difficulty=2, minutes=7, parts=(4, 2, 1))
def cost(draw: random.Random) -> Draft:
    """Three histories of density → their effective multiplications, and steps of equal cost."""
    steps, last = draw.randint(4, 40) * 500, draw.randint(70, 95) / 100
    begin, end = draw.choice([0.1, 0.2, 0.25, 0.3]), draw.choice([0.6, 0.7, 0.75, 0.8])
    before = 1 - last
    rise = 1 - 0.75 * last
    during = begin + (end - begin) * rise + (1 - end) * (1 - last)
    when = draw.choice([0.4, 0.5, 0.6])
    after = when + (1 - when) * (1 - last)
    equal = steps * during / before
    text = rf"""Three arms train for ${num(steps)}$ steps and end at the sparsity ${last}$: *before* (pruned at step 0), *during* (dense until ${begin}$ of the steps, then a cubic rise from 0 that ends at ${end}$ of them), and *after* (dense
until ${when}$ of the steps, then pruned at once). Count the effective multiplications of a step as proportional to the density.

(a) Which share of a dense training's multiplications does each arm need? (The mean density along a cubic rise from 0 is $1 - \tfrac34 s_f$; say why.) (b) For how many steps could *before* train at the cost of *during*? (c) Do
these numbers say anything about seconds, with dense kernels?"""
    solution = rf"""(a) $\int_0^1 (1 - s_f + s_f u^3)\, du = 1 - s_f + s_f/4$. *Before*: ${num(before)}$. *During*: ${begin} \cdot 1 + {num(end - begin)} \cdot {num(rise)} + {num(1 - end)} \cdot {num(1 - last)} = {num(during)}$. *After*: ${when} + {num(1 - when)} \cdot {num(1 - last)} = {num(after)}$.
(b) ${num(steps)} \cdot {num(during)} / {num(before)} = {num(equal, 6)}$.
(c) No: dense kernels multiply by zeros too. Only a kernel that skips them could sell the difference for more steps."""
    answer = {"before": before, "during": during, "after": after, "steps": equal}
    given = {"steps": steps, "last": last, "begin": begin, "end": end, "when": when}
    return Draft(text, solution, answer, given)


@question("Gradients in a sparse stack", chapter=10, difficulty=3, minutes=9, parts=(2, 4, 2, 1))
def stack(draw: random.Random) -> Draft:
    """Densities of a stack → the size of gradients in each layer, and what rescaling does."""
    count = draw.choice([4, 5, 6])
    densities = [draw.randint(4, 90) / 100 for _ in range(count)]
    if len(set(densities)) < count:
        return stack(draw)
    whole = math.prod(densities)
    squares = [whole / d for d in densities]
    smallest = min(range(count), key=squares.__getitem__)
    forward = math.prod(densities)
    uniform = draw.choice([0.05, 0.1, 0.2])
    text = rf"""A stack of {count} layers with ReLU and without biases has random masks of the densities ${listed(densities)}$, from bottom to top. Weights are independent and symmetric about 0, and the gradient at the top is that of the dense
stack.

(a) By which factor does the mean square of the *signal* at the top change against the dense stack? (b) By which factor does the mean square of the gradient of a kept weight change, in each layer? In which layer is it
smallest? (c) Check that all layers agree if every density is ${uniform}$, and give the factor of the gradient's *size*. (d) By what must the kept weights of the first layer be multiplied to undo its part?"""
    size = uniform ** ((count - 1) / 2)
    scale = densities[0] ** -0.5
    solution = rf"""Each sparse layer multiplies a mean square by its density, on the way up and on the way down.
(a) $\prod_l d_l = {num(forward)}$.
(b) The gradient is input times $\delta$; the signal has come through all layers below, $\delta$ through all above, so the factor is $\prod_{{j \ne l}} d_j$: ${listed(squares)}$. Smallest in layer {smallest + 1}, the densest.
(c) $d^{{K-1}}$ everywhere; in size $d^{{(K-1)/2}} = {uniform}^{{{num((count - 1) / 2)}}} = {num(size)}$.
(d) By $\sqrt{{1 / {densities[0]}}} = {num(scale)}$."""
    answer = {
        "signal": forward,
        "gradients": squares,
        "smallest": smallest + 1,
        "size": size,
        "scale": scale,
    }
    return Draft(text, solution, answer, {"densities": densities, "uniform": uniform})


@question("The balance ratio", chapter=10, difficulty=2, minutes=7, parts=(2, 2, 3))
def balance(draw: random.Random) -> Draft:
    """Logits before and after an update → lead, gain and balance ratio, and another learning rate."""
    while True:
        real = [draw.randint(-5, 40) / 10 for _ in range(4)]
        before = [draw.randint(-40, 5) / 10 for _ in range(4)]
        after = [round(b + draw.randint(-2, 14) / 10, 1) for b in before]
        lead = sum(real) / 4 - sum(before) / 4
        gain = sum(after) / 4 - sum(before) / 4
        if lead > 0.5 and 0.05 < gain < lead:
            break
    ratio, rate = gain / lead, draw.choice([1e-3, 5e-4, 2e-4])
    wanted = rate * 0.5 / ratio
    rows = [["real", *real], ["generated, before", *before], ["generated, after", *after]]
    text = f"""One update of the generator was made with the learning rate ${rate}$ against the discriminator that judges these four images of each kind (logits; the generated ones come from the same latents):

{table(["", "1", "2", "3", "4"], rows)}

(a) What is the lead of the discriminator before the update, and what did the update gain? (b) What is the balance ratio? (c) To first order the gain is proportional to the generator's learning rate. Which rate would have given a
ratio of one half? What does that say about one half as a law of nature?"""
    solution = rf"""(a) Lead: ${plus(real)}$ over 4 less ${plus(before)}$ over 4, that is ${num(lead)}$. Gain: the mean of the differences, ${num(gain)}$.
(b) ${num(gain)} / {num(lead)} = {num(ratio)}$.
(c) ${rate} \cdot 0.5 / {num(ratio)} = {num(wanted)}$. The ratio describes two networks *and* their learning rates, so one half is a convention."""
    answer = {"lead": lead, "gain": gain, "ratio": ratio, "rate": wanted}
    return Draft(text, solution, answer, {"real": real, "before": before, "after": after, "rate": rate})
