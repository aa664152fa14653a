// Lays a network out in the kernel's memory and runs it. What lies where is said at the head of the kernel, sparse.wat.

import { axesOf, bufferBetween, placeOf, usesOf } from "./geometry.js";

const IMAGES = 32; // that one pixel holds
const PIXEL = 4 * IMAGES;
const TAP = 8;
const RECORD = 24;
const PAGE = 65536; // the unit in which WebAssembly's memory grows

export class Kernel {
  constructor(bytes) {
    this.memory = new WebAssembly.Memory({ initial: 1 });
    this.exports = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory: this.memory } }).exports;
    this.top = 0;
  }

  // Gives up everything that lies in the memory, which never grows beyond what the largest network needs.
  clear() {
    new Uint8Array(this.memory.buffer).fill(0);
    this.top = 0;
  }

  // The address of so many bytes, all zero.
  take(bytes) {
    const address = this.top;
    this.top = (address + bytes + 127) & ~127;
    const missing = this.top - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE));
    return address;
  }

  floats(address, bytes) { return new Float32Array(this.memory.buffer, address, bytes / 4); }

  integers(address, bytes) { return new Int32Array(this.memory.buffer, address, bytes / 4); }
}

export class Network {
  // One network at a time has a kernel: the one before cannot draw any more.
  constructor(kernel, file) {
    kernel.clear();
    this.kernel = kernel;
    this.latent = file.latent.reduce((product, length) => product * length, 1);
    const made = [file.latent, ...file.layers.map((layer) => layer.output)];
    this.buffers = made.map((shape, number) => bufferBetween(shape, file.layers[number]));
    for (const buffer of this.buffers) buffer.address = kernel.take(PIXEL * buffer.pixels);
    this.steps = file.layers.map((layer, number) => lay(kernel, layer, this.buffers[number], this.buffers[number + 1]));
    this.size = this.buffers.at(-1).count;
  }

  // The images of `count` latents that lie one behind the other; so do the images.
  draw(latents, count) {
    const images = new Float32Array(count * this.size);
    for (let first = 0; first < count; first += IMAGES) {
      const block = Math.min(IMAGES, count - first);
      this.put(latents.subarray(first * this.latent), block);
      for (const step of this.steps) this.run(step);
      this.get(images.subarray(first * this.size), block);
    }
    return images;
  }

  put(latents, count) {
    const [buffer] = this.buffers;
    const input = this.kernel.floats(buffer.address, PIXEL * buffer.pixels);
    for (let number = 0; number < this.latent; number += 1) {
      const at = IMAGES * placeOf(buffer, number);
      for (let image = 0; image < count; image += 1) input[at + image] = latents[image * this.latent + number];
    }
  }

  run({ sizes, activation, output }) {
    this.kernel.exports.layer(...sizes);
    if (activation === "tanh") this.kernel.exports.tanh(output.address, output.address + PIXEL * output.pixels);
    if (activation === "sigmoid") this.sigmoid(output);
  }

  sigmoid(buffer) { // pixel by pixel, since the frame must stay zero
    for (let number = 0; number < buffer.count; number += 1) {
      const pixel = this.kernel.floats(buffer.address + PIXEL * placeOf(buffer, number), PIXEL);
      for (let image = 0; image < IMAGES; image += 1) pixel[image] = 1 / (1 + Math.exp(-pixel[image]));
    }
  }

  get(images, count) {
    const output = this.kernel.floats(this.buffers.at(-1).address, PIXEL * this.size);
    for (let image = 0; image < count; image += 1) {
      for (let number = 0; number < this.size; number += 1) images[image * this.size + number] = output[IMAGES * number + image];
    }
  }
}

// Writes a layer's taps and records; returns what the kernel is called with.
function lay(kernel, layer, input, output) {
  const axes = axesOf(layer);
  const [down, right] = axes;
  const { begins, address } = layTaps(kernel, layer, axes, input);
  const records = layRecords(kernel, layer, axes, output, begins.map((tap) => address + TAP * tap));
  const slope = { relu: 0, leaky_relu: layer.slope }[layer.activation] ?? 1;
  const steps = [input.frameColumns * down.step, right.step, output.frameColumns * down.phases, right.phases];
  const [inputDown, inputRight, outputDown, outputRight] = steps.map((places) => PIXEL * places);
  const sizes = [...records, input.address, inputDown, inputRight, outputDown, outputRight, slope];
  return { sizes, activation: layer.activation, output };
}

// The taps of all records, one record's behind the other's; `begins` says with which tap each record begins.
function layTaps(kernel, layer, axes, input) {
  const [outputs, inputs, high = 1, wide = 1] = layer.shape;
  const uses = usesOf(axes, input);
  const phases = axes[0].phases * axes[1].phases;
  const plane = layer.type === "linear" ? 1 : input.frameRows * input.frameColumns;
  const visit = (use) => layer.positions.forEach((position, number) => {
    const pair = Math.floor(position / (high * wide)); // of an output and an input channel
    for (const { phase, place } of uses[position % (high * wide)]) {
      use(Math.floor(pair / inputs) * phases + phase, (pair % inputs) * plane + place, layer.values[number]);
    }
  });
  const begins = new Int32Array(outputs * phases + 1);
  visit((record) => { begins[record + 1] += 1; });
  begins.forEach((count, record) => { begins[record] = count + (record && begins[record - 1]); });

  const bytes = TAP * begins.at(-1);
  const address = kernel.take(bytes);
  const [places, weights] = [kernel.integers(address, bytes), kernel.floats(address, bytes)];
  const next = begins.slice();
  visit((record, place, weight) => {
    places[2 * next[record]] = PIXEL * place;
    weights[2 * next[record] + 1] = weight;
    next[record] += 1;
  });
  return { begins, address };
}

// The records of a layer: where they begin and where they end.
function layRecords(kernel, layer, [down, right], output, taps) {
  const channels = layer.shape[0];
  const phases = down.phases * right.phases;
  const address = kernel.take(RECORD * channels * phases);
  let at = address;
  for (let record = 0; record < channels * phases; record += 1) {
    const channel = Math.floor(record / phases);
    const [a, b] = [Math.floor((record % phases) / right.phases), record % right.phases];
    const [rows, columns] = [Math.ceil((down.outputs - a) / down.phases), Math.ceil((right.outputs - b) / right.phases)];
    if (rows <= 0 || columns <= 0) continue; // fewer output pixels than phases
    const first = placeOf(output, (channel * down.outputs + a) * right.outputs + b);
    kernel.integers(at, RECORD).set([output.address + PIXEL * first, taps[record], taps[record + 1], 0, rows, columns]);
    kernel.floats(at, RECORD)[3] = layer.bias[channel];
    at += RECORD;
  }
  return [address, at];
}
