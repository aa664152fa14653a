// One generator on a page: its slider, seed and button, the digits that it draws, and what is known about them.
// After each drawing the element sends the event "drawn", whose detail holds images, latents, percent, seed, milliseconds.

import { normals } from "./latents.js";
import { Kernel, Network } from "./network.js";
import { readSparseFile } from "./sparse-file.js";

const TURNS = 9; // of the comparison
const GAP = 2; // pixels between two digits; the recorded pictures have the same
const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const kilobytes = (bytes) => `${number(bytes / 1000, bytes < 10_000 ? 1 : 0)} kB`;
const milliseconds = (time) => `${number(time, time < 100 ? 1 : 0)} ms`;

async function load(name) {
  const answer = await fetch(new URL(name, import.meta.url)).catch(() => null);
  if (!answer?.ok) throw new Error(`The file ${name} could not be loaded: look at your connection, and reload the page.`);
  return answer.arrayBuffer();
}

// Whether this browser can run the kernel; old ones have no WebAssembly, or one without the instructions that take four numbers.
const runs = (bytes) => typeof WebAssembly === "object" && WebAssembly.validate(bytes);

export class Drawing {
  constructor(part) {
    this.part = part;
    this.find = (name) => part.querySelector(`.gp-generator-${name}`);
    this.percents = part.dataset.percents.split(" ").map(Number);
    this.digits = Number(part.dataset.digits);
    this.slider = this.find("sparsity");
    this.turn = 0;
    this.presses = 0;
    this.files = new Map();
  }

  get percent() { return this.percents[this.slider.valueAsNumber]; }

  get name() { return `dcgan-mnist-${String(this.percent).padStart(3, "0")}`; }

  async start() {
    this.slider.addEventListener("input", () => this.show());
    this.find("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      this.presses += 1;
      this.show();
    });
    try {
      this.code = await load("sparse.wasm");
      if (runs(this.code)) this.kernel = new Kernel(this.code);
    } catch (error) {
      this.problem = error.message;
    }
    this.find("controls").hidden = false;
    if (!this.kernel) for (const part of this.part.querySelectorAll(".gp-generator-live")) part.hidden = true;
    const button = this.find("compare-button");
    button?.addEventListener("click", () => this.compare(button));
    await this.show();
  }

  // Draws with what slider and seed say; if they change meanwhile, the newest wins.
  async show() {
    this.turn += 1;
    const { turn, percent } = this;
    this.find("percent").textContent = `${percent}%`;
    this.slider.ariaValueText = `${percent}% of the weights are zero`;
    if (!this.kernel) {
      this.showRecorded(this.problem ?? "This browser cannot draw here: its WebAssembly has no SIMD. The pictures were recorded.");
      return;
    }
    try {
      const file = await this.file(percent);
      if (turn === this.turn) this.draw(file, percent);
    } catch (error) {
      if (turn === this.turn) this.showRecorded(error.message);
    }
  }

  // The file of a sparsity, with its network's weights; loaded once.
  async file(percent) {
    if (!this.files.has(percent)) {
      const bytes = await load(`${this.name}.gps`);
      this.files.set(percent, { ...readSparseFile(bytes), bytes: bytes.byteLength });
    }
    return this.files.get(percent);
  }

  draw(file, percent) {
    if (this.drawn !== percent) this.network = new Network(this.kernel, file);
    this.drawn = percent;
    const seed = this.seed();
    const latents = normals(seed, this.digits * this.network.latent);
    const begun = performance.now();
    const images = this.network.draw(latents, this.digits);
    const time = performance.now() - begun;
    this.paint(images, file.image);
    this.find("canvas").ariaLabel = `${this.digits} digits, drawn here at ${percent}% sparsity with seed ${seed}`;
    this.tell(`${this.digits} digits at ${percent}% sparsity, seed ${seed}: drawn in ${milliseconds(time)}.`);
    this.showFigures(file, time);
    this.shown = { images, latents, percent, seed, milliseconds: time };
    this.part.dispatchEvent(new CustomEvent("drawn", { detail: this.shown }));
  }

  // A whole number from 0 to 2^32 - 1; the field gets it back, whatever was typed. Without a field, each press takes the next one.
  seed() {
    const field = this.find("seed");
    if (!field) return this.presses;
    field.value = Math.min(2 ** 32 - 1, Math.max(0, Math.floor(field.valueAsNumber) || 0));
    return field.valueAsNumber;
  }

  paint(images, [, height, width]) {
    const columns = Math.min(8, this.digits);
    const canvas = this.find("canvas");
    canvas.width = columns * (width + GAP) - GAP;
    canvas.height = Math.ceil(this.digits / columns) * (height + GAP) - GAP;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    for (let digit = 0; digit < this.digits; digit += 1) {
      for (let pixel = 0; pixel < width * height; pixel += 1) {
        const grey = 127.5 * (images[digit * width * height + pixel] + 1);
        picture.data.set([grey, grey, grey, 255], 4 * pixel);
      }
      context.putImageData(picture, (digit % columns) * (width + GAP), Math.floor(digit / columns) * (height + GAP));
    }
    this.find("recorded").hidden = true;
    canvas.hidden = false;
  }

  showRecorded(reason) {
    const picture = this.find("recorded");
    picture.src = new URL(`${this.name}-${this.digits}.png`, import.meta.url).href;
    picture.alt = `${this.digits} digits, recorded at ${this.percent}% sparsity`;
    picture.hidden = false;
    this.find("canvas").hidden = true;
    this.find("figures").hidden = true;
    this.tell(reason);
  }

  tell(words) { this.find("status").textContent = words; }

  showFigures(file, time) {
    const { metadata, layers } = file;
    const all = layers.reduce((sum, layer) => sum + layer.shape.reduce((product, length) => product * length, 1), 0);
    const left = layers.reduce((sum, layer) => sum + layer.nonzeros, 0);
    const figures = {
      time: milliseconds(time),
      weights: `${number(left)} of ${number(all)}`,
      bytes: kilobytes(file.bytes + this.code.byteLength),
      fid: number(metadata.digit_fid, 2),
      precision: number(metadata.precision, 3),
      recall: number(metadata.recall, 3),
    };
    for (const [name, words] of Object.entries(figures)) {
      const place = this.part.querySelector(`[data-figure="${name}"]`);
      if (place) place.textContent = words;
    }
    this.find("figures").hidden = false;
  }

  // The dense generator in ONNX Runtime Web beside the kernel, with the same latents, in turns.
  async compare(button) {
    button.disabled = true;
    const result = this.find("compare-result");
    result.textContent = "Loading ONNX Runtime Web ...";
    try {
      const { denseRun, median, race } = await import("./compare.js");
      const { percent, latents } = this.shown;
      const arms = {
        dense: await denseRun(latents, this.digits),
        sparse: () => this.network.draw(latents, this.digits),
      };
      const times = await race(arms, TURNS, () => {
        if (this.drawn !== percent) throw new Error("the slider was moved. Try again.");
      });
      const [dense, sparse] = [median(times.dense), median(times.sparse)];
      const ratio = dense / sparse;
      result.textContent = `Dense in ONNX Runtime Web: ${milliseconds(dense)}. At ${percent}% sparsity in this page's `
        + `kernel: ${milliseconds(sparse)}, ${number(ratio, ratio < 10 ? 1 : 0)} times as fast. Medians of ${TURNS} drawings `
        + `of ${this.digits} digits each, in turns, on one thread.`;
    } catch (error) {
      result.textContent = `The comparison did not work: ${error.message}`;
    }
    button.disabled = false;
  }
}
