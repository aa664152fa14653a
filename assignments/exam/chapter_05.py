"""Questions on chapter 5: masks and what they save, storage, granularity, and memory of an optimiser."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from exam.figures import grid
from exam.question import Draft, listed, num, plus, question, table


def draw_generator(draw: random.Random) -> tuple[list[int], list[int]]:
    """Draw channels and kernels of a generator with three transposed convolutions and norms between them."""
    channels = [
        draw.randint(32, 128),
        draw.randint(40, 128),
        draw.randint(16, 64),
        1,
    ]
    return channels, [4, draw.choice([3, 4, 5]), draw.choice([4, 5, 6])]


def weights_of(channels: list[int], kernels: list[int]) -> list[int]:
    """Numbers of weights of the layers."""
    return [a * b * k * k for a, b, k in zip(channels, channels[1:], kernels, strict=False)]


@question("Two sparsities of one network", chapter=5, difficulty=1, minutes=6, parts=(2, 2, 2))
def two_sparsities(draw: random.Random) -> Draft:
    """A generator → prunable weights, all parameters, and the two sparsities."""
    channels, kernels = draw_generator(draw)
    weights = weights_of(channels, kernels)
    n, others = sum(weights), 2 * (channels[1] + channels[2]) + 1
    sparsity = draw.randint(50, 98) / 100
    pruned = round(n * sparsity)
    left_out = weights[0]
    tool = round(sparsity * (n - left_out))
    rows = [
        [f"transposed convolution {i + 1}", f"${a} \\to {b}$", f"${k} \\times {k}$"]
        for i, (a, b, k) in enumerate(zip(channels, channels[1:], kernels, strict=False))
    ]
    text = f"""A generator has these layers. The first two have no bias and are followed by batch normalisation (a scale and a shift for each channel); the last has a bias.

{table(["layer", "channels", "kernel"], rows)}

(a) How many weights are prunable, and how many parameters are there in all? (b) ${num(sparsity)}$ of the prunable weights are pruned (round to a whole number), and no other
parameter is zero. Which share of the whole network is zero? (c) A tool reports the sparsity ${num(sparsity)}$, but leaves the first layer dense and does not count it. What is the sparsity in the
course's sense?"""
    solution = rf"""(a) ${plus(weights)} = {num(n)}$ prunable weights; with $2 \cdot ({channels[1]} + {channels[2]})$ of the norms and 1 bias ${num(n + others)}$ parameters.
(b) ${num(pruned)}$ zeros among ${num(n + others)}$: ${num(pruned / (n + others))}$.
(c) ${num(sparsity)} \cdot {num(n - left_out)}$, that is ${num(tool)}$ zeros among ${num(n)}$ prunable weights: ${num(tool / n)}$."""
    answer = {
        "prunable": n,
        "parameters": n + others,
        "whole": pruned / (n + others),
        "tool": tool / n,
    }
    return Draft(text, solution, answer, {"channels": channels, "kernels": kernels, "sparsity": sparsity})


@question("MACs and bytes of a generator", chapter=5, difficulty=2, minutes=8, parts=(2, 2, 2, 2))
def macs_and_bytes(draw: random.Random) -> Draft:
    """A generator and its densities → MACs, effective MACs, bytes, and what a speed-up may be."""
    channels, kernels = draw_generator(draw)
    weights = weights_of(channels, kernels)
    sides = [1, 4, draw.choice([7, 8]), 0]
    densities = [draw.randint(2, 60) / 100 for _ in range(3)]
    kept = [round(d * w) for d, w in zip(densities, weights, strict=True)]
    densities = [k / w for k, w in zip(kept, weights, strict=True)]
    macs = [w * s * s for w, s in zip(weights, sides, strict=False)]
    effective = [k * s * s for k, s in zip(kept, sides, strict=False)]
    total, used = sum(macs), sum(effective)
    sparsity = 1 - sum(kept) / sum(weights)
    rows = [
        [str(i + 1), f"${a} \\to {b}$", f"${k} \\times {k}$", f"${s} \\times {s}$", kept[i]]
        for i, (a, b, k, s) in enumerate(zip(channels, channels[1:], kernels, sides, strict=False))
    ]
    text = f"""Three transposed convolutions without biases, pruned; the table has the side of each layer's *input* and the number of weights that are kept.

{table(["layer", "channels", "kernel", "input", "kept weights"], rows)}

(a) How many MACs does a dense kernel execute for one image? (b) How many effective MACs are there, and by which factor are they fewer? (c) Is that the factor that the sparsity suggests?
(d) How many bytes has the file with 32-bit weights, and how many has it after pruning, if zeros are stored as zeros?"""
    solution = rf"""Every weight meets every pixel of its layer's input once.
(a) ${plus(macs)} = {num(total)}$.
(b) ${plus(effective)} = {num(used)}$, fewer by the factor ${num(total / used)}$.
(c) The sparsity is ${num(sparsity)}$, which suggests $1/(1 - s) = {num(1 / (1 - sparsity))}$. The two agree only if all layers have the same density; here they are ${listed(densities, 3)}$.
(d) $4 \cdot {num(sum(weights))} = {num(4 * sum(weights))}$ bytes, before and after."""
    answer = {
        "MACs": total,
        "effective": used,
        "factor": total / used,
        "suggested": 1 / (1 - sparsity),
        "bytes": 4 * sum(weights),
    }
    given = {"channels": channels, "kernels": kernels, "sides": sides[:3], "kept": kept}
    return Draft(text, solution, answer, given)


@question("Channels out", chapter=5, difficulty=1, minutes=6, parts=(3, 1, 2))
def channels_out(draw: random.Random) -> Draft:
    """Hidden channels that go → the weights that are left in each layer, and in all."""
    width = [
        draw.randint(50, 128),
        8 * draw.randint(8, 16),
        8 * draw.randint(4, 8),
        8 * draw.randint(2, 4),
        1,
    ]
    kernels = [4, draw.choice([3, 4]), 4, 4]
    share = Fraction(draw.choice([1, 2, 3, 4, 5, 6]), 8)
    small = [width[0], *(int(w * (1 - share)) for w in width[1:4]), 1]
    before, after = weights_of(width, kernels), weights_of(small, kernels)
    total = sum(after) / sum(before)
    rows = [
        [str(i + 1), f"${a} \\to {b}$", f"${k} \\times {k}$"]
        for i, (a, b, k) in enumerate(zip(width, width[1:], kernels, strict=False))
    ]
    text = rf"""Four transposed convolutions:

{table(["layer", "channels", "kernel"], rows)}

The share ${num(share)}$ of the channels of *each hidden* layer is taken out; latents and pixels stay. (a) Which share of its weights does each layer keep? (b) Which share of all weights is left? (c)
Unstructured pruning to the same number of weights would keep more of the squared length. Why might one take channels out all the same?"""
    shares = [Fraction(b, a) for a, b in zip(before, after, strict=True)]
    solution = rf"""(a) The first layer loses outputs only and the last inputs only, those between lose both: ${listed(shares)}$, that is $(1-c)$, $(1-c)^2$, $(1-c)^2$, $(1-c)$.
(b) ${num(sum(after))} / {num(sum(before))} = {num(total)}$.
(c) The tensors themselves become smaller, so dense kernels do fewer MACs and move fewer bytes; single zeros change neither."""
    answer = {"shares": [float(s) for s in shares], "left": total}
    return Draft(text, solution, answer, {"width": width, "kernels": kernels, "share": share})


@question("What an index costs", chapter=5, difficulty=2, minutes=8, parts=(3, 2, 3))
def index_cost(draw: random.Random) -> Draft:
    """A sparse matrix → bytes in three formats, and where compressed rows break even."""
    rows, columns = draw.choice([64, 96, 128, 256, 512]), draw.choice([72, 144, 288, 576, 1152])
    bits, index = draw.choice([16, 32]), draw.choice([16, 32])
    density = draw.randint(20, 450) / 1000
    kept = round(density * rows * columns)
    dense = rows * columns * bits // 8
    compressed = (kept * (bits + index) + (rows + 1) * 32) // 8
    bitmap = (kept * bits + rows * columns) / 8
    even = (dense * 8 - (rows + 1) * 32) / (bits + index)
    text = rf"""A matrix of ${rows} \times {columns}$ weights of {bits} bits has ${num(kept)}$ non-zeros. Compressed sparse rows (CSR) store each non-zero's value, its column in {index} bits, and {rows} + 1
row pointers of 32 bits. A bitmap stores the values and one bit for each weight.

(a) How many bytes do the dense matrix, CSR and the bitmap take? (b) How many non-zeros may the matrix have at most, for CSR to be smaller than dense? Which density is that? (c) Which of the two sparse
formats is smaller here, and from which number of non-zeros on is it the other?"""
    cross = (rows * columns - (rows + 1) * 32) / index
    least = math.ceil(even) - 1
    solution = rf"""(a) Dense ${num(rows * columns)} \cdot {bits} / 8 = {num(dense)}$; CSR $\bigl({num(kept)} \cdot ({bits} + {index}) + {rows + 1} \cdot 32\bigr) / 8 = {num(compressed)}$; bitmap
$({num(kept)} \cdot {bits} + {num(rows * columns)}) / 8 = {num(bitmap, 8)}$.
(b) $k \cdot {bits + index} + {num((rows + 1) * 32)} < {num(dense * 8)}$, so at most ${num(least)}$, a density of ${num(least / rows / columns)}$.
(c) {"CSR" if compressed < bitmap else "The bitmap"}. They are equal where the columns and pointers take as many bits as the bitmap:
$k \cdot {index} + {num((rows + 1) * 32)} = {num(rows * columns)}$, $k = {num(cross, 6)}$; CSR is smaller below and the bitmap above."""
    answer = {
        "dense": dense,
        "CSR": compressed,
        "bitmap": bitmap,
        "at most": least,
        "equal at": cross,
        "smaller": "CSR" if compressed < bitmap else "bitmap",
    }
    given = {"shape": (rows, columns), "bits": bits, "index": index, "kept": kept}
    return Draft(text, solution, answer, given)


@question("Two of every four", chapter=5, difficulty=2, minutes=7, parts=(2, 2, 3))
def two_of_four(draw: random.Random) -> Draft:
    """Two rows of weights → the squared length that three masks keep."""
    while True:
        flat = draw.sample([x / 10 for x in range(1, 40)], 16)
        rows = [
            [draw.choice([-1, 1]) * x for x in flat[:8]],
            [draw.choice([-1, 1]) * x for x in flat[8:]],
        ]
        groups = [row[i : i + 4] for row in rows for i in (0, 4)]
        best = [sorted(group, key=abs)[2:] for group in groups]
        lengths = [sum(x * x for x in row) for row in rows]
        free = sorted(flat)[8:]
        half = [sum(x * x for pair in best for x in pair), sum(x * x for x in free), max(lengths)]
        if half[1] - half[0] > 0.3 and abs(lengths[0] - lengths[1]) > 0.5:
            break
    total = sum(x * x for x in flat)
    shares = [x / total for x in half]
    text = """The picture shows a layer with two outputs (rows) and eight inputs (columns). Half of its weights shall go.

(a) Which weights does 2:4 keep, in groups of four neighbouring inputs? (b) Which share of the squared length do 2:4, the best unstructured mask and the best mask of whole outputs keep? (c) Prove
that the second cannot be below the other two. Does such an order hold between 2:4 and whole outputs?"""
    kept = "; ".join(", ".join(f"${num(x)}$" for x in pair) for pair in best)
    solution = rf"""(a) The two largest magnitudes of each group: {kept}.
(b) Of ${num(total)}$ they keep ${num(half[0])}$, ${num(half[1])}$ and ${num(half[2])}$, the shares ${listed(shares)}$.
(c) Every 2:4 mask and every mask of whole outputs with eight ones is one of the unstructured masks with eight ones, and a maximum over a set is at least the maximum over a part. Neither of the two
sets contains the other, so no order follows between them."""
    answer = {"2:4": shares[0], "unstructured": shares[1], "outputs": shares[2]}
    figure = grid(rows, ["output 1", "output 2"], range(1, 9))
    return Draft(text, solution, answer, {"rows": rows}, figure)


@question("What the optimiser remembers", chapter=5, difficulty=2, minutes=7, parts=(2, 2, 2, 1))
def memory(draw: random.Random) -> Draft:
    """Decay rates → how far masked gradients let a pruned weight drift, and how long it moves."""
    beta, second = (
        draw.choice([0.5, 0.6, 0.7, 0.8, 0.85, 0.9]),
        draw.choice([0.95, 0.98, 0.99, 0.995, 0.999]),
    )
    last = draw.choice([-1, 1]) * draw.randint(2, 90) / 1000
    t = draw.randint(2, 12)
    ratio = beta / math.sqrt(second)
    after, end = last * beta * (1 - beta**t) / (1 - beta), last * beta / (1 - beta)
    adam = last * ratio / (1 - ratio)
    near = math.ceil(math.log(0.01) / math.log(beta) - 1e-12)
    text = rf"""A weight is pruned: it is set to zero, and from then on its gradient is masked. Nothing else is done. Its last update before that was ${num(last)}$.

(a) Where does it stand after {t} steps of gradient descent with momentum $\beta_1 = {beta}$, and where in the end? (b) Where does it end with Adam, $(\beta_1, \beta_2) = ({beta}, {second})$, after a long
training (bias corrections 1, $\epsilon$ negligible)? (c) After how many steps has it covered 99% of its way with momentum? (d) Which single line of code after each step makes all this irrelevant?"""
    solution = rf"""With a masked gradient the updates form a geometric series, $\Delta_t = \rho^t \Delta_0$.
(a) $\rho = {beta}$: $\Delta_0\, \rho (1 - \rho^{{{t}}}) / (1 - \rho) = {num(after)}$, in the end $\Delta_0\, \rho / (1 - \rho) = {num(end)}$.
(b) $\rho = \beta_1 / \sqrt{{\beta_2}} = {num(ratio)}$, so $\Delta_0\, \rho / (1 - \rho) = {num(adam)}$.
(c) The rest is $\rho^t$ of the way: $t \ge \log 0.01 / \log {beta} = {num(math.log(0.01) / math.log(beta))}$, so {near} steps.
(d) Projection: `weight.mul_(mask)`, under `torch.no_grad()`, sets the pruned weights to zero again (do the same with an averaged copy)."""
    answer = {"after": after, "end": end, "Adam": adam, "steps": near}
    return Draft(text, solution, answer, {"beta": beta, "second": second, "last": last, "t": t})


@question("The shortest file", chapter=5, difficulty=3, minutes=9, parts=(2, 2, 3, 2))
def shortest_file(draw: random.Random) -> Draft:
    """Bits of values and positions → bits per weight in three formats and their break-evens."""
    bits, position = draw.choice([8, 16, 32]), draw.choice([16, 20, 24, 32])
    density = draw.randint(1, 25) / 100
    n = draw.randint(20, 400) * 1000
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    each = [density * (bits + position), density * bits + 1, density * bits + entropy]
    cross, dense = 1 / position, (bits - 1) / bits
    text = rf"""${num(n)}$ weights of {bits} bits have the density ${density}$. Three formats: (i) value and a position of {position} bits for each non-zero; (ii) the values and one bit for each weight; (iii) the
values, and the mask in as few bits as a random mask of this density allows.

(a) How many bits for each weight does each take? (b) How many bytes is the whole file at least? (c) Below which density does (i) beat (ii), and below which does (ii) beat the dense file? (d)
Does a smaller file make the multiplication faster?"""
    solution = rf"""(a) (i) ${density} \cdot {bits + position} = {num(each[0])}$; (ii) ${density} \cdot {bits} + 1 = {num(each[1])}$; (iii) $\operatorname{{ent}}({density}) = {num(entropy)}$, together ${num(each[2])}$.
(b) ${num(n)} \cdot {num(each[2])} / 8 = {num(n * each[2] / 8, 6)}$ bytes.
(c) (i) beats (ii) where $d \cdot {position} < 1$, below ${num(cross)}$; (ii) beats dense where $d \cdot {bits} + 1 < {bits}$, below ${num(dense)}$.
(d) No: a dense kernel unpacks the zeros first, and multiplies by them."""
    answer = {
        "formats": each,
        "bytes": n * each[2] / 8,
        "positions below": cross,
        "bits below": dense,
    }
    return Draft(text, solution, answer, {"bits": bits, "position": position, "density": density, "n": n})


@question("A model of time", chapter=5, difficulty=3, minutes=8, parts=(2, 2, 2, 2))
def model_of_time(draw: random.Random) -> Draft:
    """A layer and a machine → times by the roofline model, dense, with zeros, with fewer channels."""
    macs, moved = draw.randint(20, 400) * 1e6, draw.randint(2, 90) * 1e5
    speed, width = draw.choice([5e9, 1e10, 2e10, 4e10]), draw.choice([2e9, 5e9, 1e10])
    overhead = draw.choice([0.2, 0.5, 1, 2, 3]) * 1e-3
    left = draw.choice([0.1, 0.2, 0.25, 0.3, 0.5])

    def time(share: float) -> float:
        return max(macs * share / speed, moved * share / width) + overhead

    dense, small = time(1), time(left)
    ceiling = dense / overhead
    text = rf"""A layer needs ${num(macs / 1e6)}$ million MACs and moves ${num(moved / 1e6)}$ million bytes. The machine does ${num(speed / 1e9)}$ billion MACs and moves ${num(width / 1e9)}$ billion bytes a second. The
overhead of the call is ${num(overhead * 1e3)}$ ms, and time is $\max(\text{{MACs}} / \text{{speed}}, \text{{bytes}} / \text{{bandwidth}}) + \text{{overhead}}$.

(a) How long does the dense layer take in ms, and what limits it? (b) How long does it take with 90% single zeros and a dense kernel? (c) Channels are taken out until ${left}$ of the MACs and of the
bytes are left. What is the speed-up? (d) Which speed-up can no pruning exceed here?"""
    compute, memory_time = macs / speed, moved / width
    solution = rf"""(a) ${num(compute * 1e3)}$ ms for the MACs, ${num(memory_time * 1e3)}$ ms for the bytes; the {"arithmetic" if compute > memory_time else "memory"} limits. With the overhead
${num(dense * 1e3)}$ ms.
(b) The same: single zeros change no term.
(c) ${left} \cdot {num(max(compute, memory_time) * 1e3)} + {num(overhead * 1e3)} = {num(small * 1e3)}$ ms, a speed-up of ${num(dense / small)}$ and not of ${num(1 / left)}$.
(d) The overhead stays: ${num(dense * 1e3)} / {num(overhead * 1e3)} = {num(ceiling)}$."""
    answer = {
        "dense, ms": dense * 1e3,
        "limit": "arithmetic" if compute > memory_time else "memory",
        "speed-up": dense / small,
        "at most": ceiling,
    }
    given = {
        "macs": macs,
        "moved": moved,
        "speed": speed,
        "width": width,
        "overhead": overhead,
        "left": left,
    }
    return Draft(text, solution, answer, given)
