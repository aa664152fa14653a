// Where the pixels of a layer lie: how each output pixel finds its inputs, and the frame of zeros that this needs.

// Along one axis (0: down, 1: to the right), output pixels a, a + phases, a + 2 phases, ... form one phase: they have the
// same weights. Pixel a + phases * i takes, at place k of the kernel, input pixel step * i + shift(a, k); null stands for none.
function axisOf(layer, axis) {
  const [kernel, inputs, outputs] = [layer.weight[2 + axis], layer.input[1 + axis], layer.output[1 + axis]];
  const [stride, padding, dilation] = [layer.stride[axis], layer.padding[axis], layer.dilation[axis]];
  if (layer.type === "conv_transpose2d") {
    const shift = (a, k) => {
      const whole = (a + padding - dilation * k) / stride;
      return Number.isInteger(whole) ? whole : null;
    };
    // From a single pixel, each output pixel is a phase of its own: no product with the frame is left.
    return { kernel, inputs, outputs, phases: inputs === 1 ? outputs : stride, step: 1, shift };
  }
  const shift = (a, k) => Math.floor((a - padding + dilation * k) / layer.upsample);
  return { kernel, inputs, outputs, phases: layer.upsample, step: stride, shift };
}

// An axis with, for each place of the kernel, the phases that it serves, and with the frame's pixels before and after.
function framed(axis) {
  const uses = Array.from({ length: axis.kernel }, () => []);
  let [before, after] = [0, 0];
  for (let phase = 0; phase < Math.min(axis.phases, axis.outputs); phase += 1) {
    const further = Math.ceil((axis.outputs - phase) / axis.phases) - 1;
    for (let place = 0; place < axis.kernel; place += 1) {
      const shift = axis.shift(phase, place);
      const last = shift + axis.step * further;
      if (shift === null || last < 0 || shift >= axis.inputs) continue; // there is nothing but frame
      uses[place].push({ phase, shift });
      before = Math.max(before, -shift);
      after = Math.max(after, last - (axis.inputs - 1));
    }
  }
  return { ...axis, uses, before, length: before + axis.inputs + after };
}

// A linear layer is a convolution of images of one pixel.
const ALONE = { outputs: 1, phases: 1, step: 1, before: 0, uses: [[{ phase: 0, shift: 0 }]] };

export const axesOf = (layer) => (layer.type === "linear" ? [ALONE, ALONE] : [0, 1].map((axis) => framed(axisOf(layer, axis))));

// A shape as channels, rows and columns; numbers without rows and columns are channels of one pixel.
const asImages = (shape) => (shape.length === 3 ? shape : [shape.reduce((product, length) => product * length, 1), 1, 1]);

// The buffer between two layers: the images that the first one makes, in the frame that the second one needs.
export function bufferBetween(made, layer) {
  const [channels, rows, columns] = asImages(layer && layer.type !== "linear" ? layer.input : made);
  const [, madeRows, madeColumns] = asImages(made);
  if (madeRows * madeColumns > 1 && (madeRows !== rows || madeColumns !== columns)) {
    throw new Error(`This page cannot reshape the images that ${layer.name} takes.`);
  }
  const [down, right] = layer && layer.type !== "linear" ? axesOf(layer) : [{ before: 0, length: rows }, { before: 0, length: columns }];
  const buffer = { rows, columns, top: down.before, left: right.before, frameRows: down.length, frameColumns: right.length };
  return { ...buffer, pixels: channels * down.length * right.length, count: channels * rows * columns };
}

// The place in a buffer of its pixel number `flat`, counted without the frame: channel by channel, row by row.
export function placeOf(buffer, flat) {
  const column = flat % buffer.columns;
  const row = Math.floor(flat / buffer.columns) % buffer.rows;
  const channel = Math.floor(flat / (buffer.columns * buffer.rows));
  return (channel * buffer.frameRows + buffer.top + row) * buffer.frameColumns + buffer.left + column;
}

// Place in the kernel → the phases that it serves, each with the place in the buffer that its first pixel takes.
export function usesOf([down, right], buffer) {
  return down.uses.flatMap((rows) => right.uses.map((columns) => rows.flatMap((row) => columns.map((column) => ({
    phase: row.phase * right.phases + column.phase,
    place: (buffer.top + row.shift) * buffer.frameColumns + buffer.left + column.shift,
  })))));
}
