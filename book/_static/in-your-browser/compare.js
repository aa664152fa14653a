// A race between two ways to draw the same digits. Its 14 megabytes are loaded only when a reader asks for it.

const TURNS = 9;
const WARM_UP = 3; // browsers compile again what runs often
const RUNTIME = new URL("../onnxruntime-web/", import.meta.url);
let session = null;

async function open() {
  const ort = await import(new URL("ort.wasm.min.mjs", RUNTIME));
  ort.env.wasm.wasmPaths = RUNTIME.href;
  ort.env.wasm.numThreads = 1;
  const file = new URL("dcgan-mnist-000.onnx", import.meta.url).href;
  return { ort, dense: await ort.InferenceSession.create(file, { executionProviders: ["wasm"] }) };
}

const breathe = () => new Promise((go) => { setTimeout(go); });
const median = (times) => times.toSorted((a, b) => a - b)[times.length >> 1];

async function timed(run) {
  const begun = performance.now();
  const images = await run();
  return { time: performance.now() - begun, images };
}

// Median milliseconds of both. `still` says whether the network can draw yet: a reader who moves the slider takes its kernel away.
export async function race(network, latents, count, still) {
  session ??= open().catch((error) => { session = null; throw error; });
  const { ort, dense } = await session;
  const input = new ort.Tensor("float32", latents, [count, latents.length / count]);
  const arms = {
    dense: async () => (await dense.run({ [dense.inputNames[0]]: input }))[dense.outputNames[0]].data,
    sparse: async () => network.draw(latents, count),
  };
  const times = { dense: [], sparse: [] };
  const images = {};
  for (let turn = -WARM_UP; turn < TURNS; turn += 1) {
    for (const [name, run] of Object.entries(arms)) {
      await breathe();
      if (!still()) throw new Error("the slider was moved. Try again.");
      const done = await timed(run);
      images[name] = done.images;
      if (turn >= 0) times[name].push(done.time);
    }
  }
  return { dense: median(times.dense), sparse: median(times.sparse), turns: TURNS, times, images };
}
