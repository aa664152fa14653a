"""Questions on chapter 2: transposed convolutions, the best discriminator's pull, and the game of two numbers."""

from __future__ import annotations

import math
import random

from exam.figures import grid
from exam.question import Draft, listed, num, plus, question, table, vector


def larger(n: int, k: int, s: int, p: int) -> int:
    """Side of the output of a transposed convolution."""
    return (n - 1) * s + k - 2 * p


@question("Three layers in a row", chapter=2, difficulty=1, minutes=6, parts=(2, 2, 2))
def three_layers(draw: random.Random) -> Draft:
    """Kernels, strides and paddings → the sides of the maps, and the number of weights."""
    layers, sides = [], [draw.randint(1, 4)]
    channels = [draw.choice([32, 48, 64, 96, 100, 128])]
    for _ in range(3):
        k, s = draw.randint(3, 6), draw.choice([1, 2, 2, 3])
        p = draw.randint(0, (k - 1) // 2)
        layers.append((k, s, p))
        sides.append(larger(sides[-1], k, s, p))
        channels.append(draw.choice([1, 3, 8, 16, 24, 40, 64]))
    if sides[-1] < 4:
        return three_layers(draw)
    weights = [a * b * k * k for (k, _, _), a, b in zip(layers, channels, channels[1:], strict=False)]
    rows = [
        [str(i + 1), f"${a} \\to {b}$", k, s, p]
        for i, ((k, s, p), a, b) in enumerate(zip(layers, channels, channels[1:], strict=False))
    ]
    text = f"""A generator has three transposed convolutions and gets maps of ${sides[0]} \\times {sides[0]}$ pixels.

{table(["layer", "channels", "kernel", "stride", "padding"], rows)}

(a) Which side do the maps have after each layer? (b) How many weights has each layer, without biases? (c) What is the shape of
the second layer's weight in PyTorch?"""
    steps = ", ".join(
        f"$({n} - 1) \\cdot {s} + {k} - 2 \\cdot {p} = {m}$"
        for n, m, (k, s, p) in zip(sides, sides[1:], layers, strict=False)
    )
    k2 = layers[1][0]
    shape = (channels[1], channels[2], k2, k2)
    solution = f"""(a) By $n' = (n - 1) s + k - 2p$: {steps}.
(b) Inputs times outputs times $k^2$: ${listed(weights)}$.
(c) Inputs come first in a transposed convolution: ${vector(shape)}$."""
    answer = {"sides": sides[1:], "weights": weights, "shape": shape}
    return Draft(text, solution, answer, {"side": sides[0], "layers": layers, "channels": channels})


@question("A kernel for a given size", chapter=2, difficulty=2, minutes=7, parts=(2, 1, 3, 1))
def kernel_for_size(draw: random.Random) -> Draft:
    """Two sides and a stride → all kernels and paddings that do it, and which of them cover evenly."""
    s, n = draw.choice([3, 3, 4, 5]), draw.randint(3, 60)
    inputs, outputs = draw.randint(8, 99), draw.randint(8, 99)
    extra = draw.randint(-1, 2)
    target = s * n + extra
    least, most = s, s + 6
    need = target - (n - 1) * s  # k - 2p
    found = [(k, (k - need) // 2) for k in range(least, most + 1) if k >= need and (k - need) % 2 == 0]
    even = [pair for pair in found if pair[0] % s == 0]
    # some kernels cover evenly and some do not, the largest among them: with stride 2 all do or none does
    if not found or max(p for _, p in found) < 1 or not even or found[-1] in even:
        return kernel_for_size(draw)
    text = rf"""A transposed convolution with stride {s} shall turn maps of ${n} \times {n}$ into ${target} \times {target}$ pixels.

(a) Which pairs of kernel $k$ with ${least} \le k \le {most}$ and padding $p \ge 0$ do that? (b) Which of them cover the inner pixels
evenly? (c) Take the largest kernel of (a). Which side has its canvas before the crop, and how many stamps touch an inner pixel, at least and at most? (d) How many weights has it, from ${inputs}$ channels to ${outputs}$?"""
    k = found[-1][0]
    fewest, many = (k // s) ** 2, (-(-k // s)) ** 2
    pairs = ", ".join(f"$({a}, {b})$" for a, b in found)
    evenly = ", ".join(f"$({a}, {b})$" for a, b in even) or "none"
    solution = rf"""(a) $({n} - 1) \cdot {s} + k - 2p = {target}$ means $k - 2p = {need}$: {pairs}.
(b) The stride must divide the kernel: {evenly}.
(c) The canvas has the side $({n} - 1) \cdot {s} + {k} = {(n - 1) * s + k}$. In one direction $k / s = {k} / {s}$, so between ${k // s}$ and ${-(-k // s)}$ stamps; in the plane counts multiply:
between ${fewest}$ and ${many}$.
(d) ${inputs} \cdot {outputs} \cdot {k}^2 = {num(inputs * outputs * k * k)}$."""
    answer = {
        "pairs": found,
        "even": even,
        "canvas": (n - 1) * s + k,
        "weights": inputs * outputs * k * k,
        "fewest": fewest,
        "most": many,
    }
    return Draft(text, solution, answer, {"s": s, "n": n, "target": target, "least": least, "most": most})


@question("Stamping by hand", chapter=2, difficulty=2, minutes=7, parts=(2, 3, 2))
def stamping(draw: random.Random) -> Draft:
    """Three numbers and a kernel → the output of a transposed convolution in one dimension."""
    y = draw.sample([-3, -2, -1, 1, 2, 3, 4], 3)
    w = [draw.choice([-2, -1, 1, 2, 3]) for _ in range(4)]
    s, p = draw.choice([1, 2, 3]), draw.choice([1, 2])
    if s == 1:
        p = 1
    canvas = [0] * (2 * s + 4)
    for i, value in enumerate(y):
        for c, weight in enumerate(w):
            canvas[i * s + c] += value * weight
    output = canvas[p : len(canvas) - p]
    text = f"""A transposed convolution in one dimension has the kernel $w = {vector(w)}$, stride {s} and padding {p}. Its input is
$y = {vector(y)}$.

(a) How many places has the canvas, and how many the output? (b) Write down the output. (c) What is the sum of the output's
entries if the padding is 0, computed without the output?"""
    stamps = "\n".join(
        f"- ${num(v)} \\cdot w = {vector([v * c for c in w])}$ from place {i * s} on" for i, v in enumerate(y)
    )
    total = sum(y) * sum(w)
    solution = f"""(a) $(3 - 1) \\cdot {s} + 4 = {len(canvas)}$ and, after the crop, ${len(output)}$. The stamps:

{stamps}

(b) Added up: ${vector(canvas)}$, cropped by {p} at both ends: ${vector(output)}$.
(c) Each input puts down the whole kernel: $({plus(y)}) \\cdot ({plus(w)}) = {num(total)}$."""
    answer = {"canvas": len(canvas), "places": len(output), "output": output, "sum": total}
    return Draft(text, solution, answer, {"y": y, "w": w, "s": s, "p": p})


@question("Which stamps touch this pixel?", chapter=2, difficulty=3, minutes=8, parts=(3, 2, 3))
def which_stamps(draw: random.Random) -> Draft:
    """A place in the plane → how many stamps touch it, and the adjoint seen from there."""
    k, s, p, n = draw.randint(4, 8), draw.choice([2, 3, 4]), draw.choice([0, 1, 2]), draw.randint(6, 15)
    if k % s == 0:  # then all rows get the same number of stamps
        return which_stamps(draw)
    side = larger(n, k, s, p)
    row, column = draw.randrange(side), draw.randrange(side)

    def touching(j: int) -> list[int]:
        return [i for i in range(n) if 0 <= j - s * i + p < k]

    rows, columns = touching(row), touching(column)
    inside = [sum((j + p - c) % s == 0 for c in range(k)) for j in range(s)]
    share = inside.count(max(inside)) / s
    text = rf"""A transposed convolution with kernel {k}, stride {s} and padding {p} gets a map of ${n} \times {n}$ pixels. Rows and columns
are counted from 0.

(a) Which rows of the input put a stamp on row {row} of the output, and which columns on column {column}? (b) How many stamps touch the
pixel $({row}, {column})$? (c) Away from the border, which share of the output's *rows* gets the larger number of stamps?"""
    solution = rf"""Input $i$ reaches place $j$ if $0 \le j - {s} i + {p} < {k}$.
(a) Rows: ${listed(rows)}$. Columns: ${listed(columns)}$.
(b) The counts multiply: ${len(rows)} \cdot {len(columns)} = {len(rows) * len(columns)}$.
(c) {k} places of the kernel fall into {s} classes of remainders, of the sizes ${listed(inside)}$ for the classes of
$j = 0, \dots, {s - 1}$. The larger number belongs to a share of ${num(share)}$."""
    answer = {"rows": rows, "columns": columns, "stamps": len(rows) * len(columns), "share": share}
    return Draft(text, solution, answer, {"k": k, "s": s, "p": p, "n": n, "row": row, "column": column})


@question("The adjoint identity", chapter=2, difficulty=1, minutes=5, parts=(2, 1, 2))
def adjoint(draw: random.Random) -> Draft:
    """A small convolution → its output, its transpose, and the number in which both agree."""
    w = [draw.choice([-2, -1, 1, 2, 3]) for _ in range(3)]
    x, y = (
        [draw.randint(-3, 4) for _ in range(5)],
        [draw.choice([-2, -1, 1, 2, 3]) for _ in range(2)],
    )
    forward = [sum(w[c] * x[2 * i + c] for c in range(3)) for i in range(2)]
    back = [sum(w[j - 2 * i] * y[i] for i in range(2) if 0 <= j - 2 * i < 3) for j in range(5)]
    same = sum(a * b for a, b in zip(forward, y, strict=True))
    text = f"""A convolution in one dimension has the kernel $w = {vector(w)}$, stride 2 and no padding; call it $A$. Let $x = {vector(x)}$
and $y = {vector(y)}$.

(a) Compute $A x$. (b) Compute $A^\\top y$. (c) Which number must $\\langle A x, y \\rangle$ and $\\langle x, A^\\top y \\rangle$ both be?
Compute it in both ways."""
    solution = rf"""(a) Each output multiplies three inputs by the kernel, two places further right each time: ${vector(forward)}$.
(b) Each $y_i$ stamps the kernel at place $2i$: ${vector(back)}$.
(c) $\langle A x, y \rangle = {plus([a * b for a, b in zip(forward, y, strict=True)])} = {num(same)}$ and
$\langle x, A^\top y \rangle = {plus([a * b for a, b in zip(x, back, strict=True)])} = {num(same)}$."""
    figure = grid([[*w, 0, 0], [0, 0, *w]], ["row 0 of A", "row 1 of A"])
    return Draft(
        text,
        solution,
        {"Ax": forward, "transposed": back, "both": same},
        {"w": w, "x": x, "y": y},
        figure,
    )


@question("One step of the game of two numbers", chapter=2, difficulty=2, minutes=8, parts=(3, 3, 2))
def dirac_step(draw: random.Random) -> Draft:
    """A state of the toy game → the state after one alternating step with R1."""
    theta, psi = draw.randint(2, 15) / 10, draw.randint(-10, 10) / 10
    eta, gamma = (
        draw.choice([0.1, 0.2, 0.25, 0.3, 0.4, 0.5]),
        draw.choice([0.1, 0.2, 0.3, 0.5, 0.8, 1.0]),
    )

    def sigma(t: float) -> float:
        return 1 / (1 + math.exp(-t))

    new_psi = psi - eta * (sigma(psi * theta) * theta + gamma * psi)
    new_theta = theta + eta * sigma(-new_psi * theta) * new_psi
    before, after = theta**2 + psi**2, new_theta**2 + new_psi**2
    text = rf"""All data sit at 0, the generator puts its samples at $\theta = {theta}$, and $D(x) = \psi x$ with $\psi = {num(psi)}$. The losses are
$L_D = \log 2 + \log(1 + e^{{\psi\theta}}) + \tfrac\gamma2 \psi^2$ and $L_G = \log(1 + e^{{-\psi\theta}})$, with $\gamma = {gamma}$. First $D$
makes a gradient step of size $\eta = {eta}$, then $G$ makes one against the new $D$.

(a) Where is $\psi$ afterwards? (b) Where is $\theta$? (c) Did the game come nearer to its equilibrium? Compare $\theta^2 + \psi^2$."""
    solution = rf"""(a) $\partial L_D / \partial\psi = \sigma(\psi\theta)\,\theta + \gamma\psi = {num(sigma(psi * theta))} \cdot {theta} + {f"({num(gamma * psi)})" if psi < 0 else num(gamma * psi)}$, so
$\psi' = {num(psi)} - {eta} \cdot {num(sigma(psi * theta) * theta + gamma * psi)} = {num(new_psi)}$.
(b) $\partial L_G / \partial\theta = -\sigma(-\psi'\theta)\,\psi'$, so
$\theta' = {theta} + {eta} \cdot {num(sigma(-new_psi * theta))} \cdot ({num(new_psi)}) = {num(new_theta)}$.
(c) Before ${num(before)}$, after ${num(after)}$: {"nearer" if after < before else "further away"}."""
    answer = {"psi": new_psi, "theta": new_theta, "before": before, "after": after}
    return Draft(text, solution, answer, {"theta": theta, "psi": psi, "eta": eta, "gamma": gamma})


@question("How fast does friction work?", chapter=2, difficulty=3, minutes=9, parts=(3, 2, 2, 2))
def friction(draw: random.Random) -> Draft:
    """Step size and friction → moduli near the equilibrium, steps to a thousandth, and laziness."""
    eta, gamma = draw.randint(10, 40) / 100, draw.randint(10, 60) / 100
    lazy = draw.choice([4, 6, 8])
    together, turns = math.sqrt(1 - eta * gamma + eta**2 / 4), math.sqrt(1 - eta * gamma)
    steps = math.ceil(math.log(1e-3) / math.log(turns))
    plain, once = (1 - eta * gamma) ** lazy, 1 - lazy * eta * gamma
    text = rf"""Near the equilibrium of the game of two numbers a step with size $\eta = {eta}$ and R1 of strength $\gamma = {gamma}$ is the matrix
$$S = \begin{{pmatrix}} 1 & \eta/2 \\ -\eta/2 & 1 - \eta\gamma \end{{pmatrix}} \text{{ (simultaneous),}}$$
$$T = \begin{{pmatrix}} 1 - \eta^2/4 & (1 - \eta\gamma)\,\eta/2 \\ -\eta/2 & 1 - \eta\gamma \end{{pmatrix}} \text{{ (alternating)}} .$$
Their eigenvalues are complex here.

(a) What is the modulus of the eigenvalues of each? (b) Which strength must friction exceed for simultaneous steps to be damped at this $\eta$?
(c) After how many alternating steps is the amplitude below a thousandth of what it was? (d) By which factors does friction alone shrink $\psi$ in {lazy}
steps, if it acts in every step, and if it acts once, {lazy} times as strongly?"""
    solution = rf"""(a) For complex eigenvalues the modulus is the root of the determinant: $\sqrt{{1 - \eta\gamma + \eta^2/4}} = {num(together)}$ and
$\sqrt{{1 - \eta\gamma}} = {num(turns)}$.
(b) $1 - \eta\gamma + \eta^2/4 < 1$ means $\gamma > \eta/4 = {num(eta / 4)}$.
(c) $t > \log 0.001 / \log {num(turns, 6)} = {num(math.log(1e-3) / math.log(turns))}$: {steps} steps.
(d) $(1 - \eta\gamma)^{{{lazy}}} = {num(plain)}$ and $1 - {lazy}\,\eta\gamma = {num(once)}$."""
    answer = {
        "simultaneous": together,
        "alternating": turns,
        "bound": eta / 4,
        "steps": steps,
        "every": plain,
        "lazy": once,
    }
    return Draft(text, solution, answer, {"eta": eta, "gamma": gamma, "lazy": lazy})
