// A race between ways to draw the same digits. Its 15 megabytes are loaded only when a reader asks for it.

const WARM_UP = 3; // browsers compile again what runs often
const RUNTIME = new URL("../onnxruntime-web/", import.meta.url);
let session = null;

async function open() {
  const ort = await import(new URL("ort.wasm.min.mjs", RUNTIME));
  ort.env.wasm.wasmPaths = RUNTIME.href;
  ort.env.wasm.numThreads = 1;
  const file = new URL("dcgan-mnist-000.onnx", import.meta.url).href;
  return { ort, network: await ort.InferenceSession.create(file, { executionProviders: ["wasm"] }) };
}

// A function that draws the digits of some latents with the dense generator in ONNX Runtime Web, on one thread.
export async function denseRun(latents, count) {
  session ??= open().catch((error) => { session = null; throw error; });
  const { ort, network } = await session;
  const input = new ort.Tensor("float32", latents, [count, latents.length / count]);
  return async () => (await network.run({ latents: input }))[network.outputNames[0]].data;
}

const breathe = () => new Promise((go) => { setTimeout(go); });

// Milliseconds of each turn, by arm; the arms take turns in beginning. `check` runs before each drawing, and may throw.
export async function race(arms, turns, check = () => {}) {
  const names = Object.keys(arms);
  const times = Object.fromEntries(names.map((name) => [name, []]));
  for (let turn = -WARM_UP; turn < turns; turn += 1) {
    for (let place = 0; place < names.length; place += 1) {
      const name = names[(place + turn + WARM_UP) % names.length];
      await breathe();
      check();
      const begun = performance.now();
      await arms[name]();
      const time = performance.now() - begun;
      if (turn >= 0) times[name].push(time);
    }
  }
  return times;
}

export const median = (times) => [...times].sort((a, b) => a - b)[times.length >> 1];
