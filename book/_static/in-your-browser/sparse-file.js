// Reads a sparse file (*.gps, version 2): a pruned network as a straight line of layers, only the weights that are left.
// Whatever does not fit is refused with one sentence. Nothing that the file says is ever run.

const TYPES = ["linear", "conv2d", "conv_transpose2d"];
const ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid"];
const MOST = 2 ** 24; // weights of a layer, or pixels of its images: more is no network for a page

export function readSparseFile(file) {
  need(file.byteLength >= 20, "it is too short to be one");
  const buffer = file.slice(0, -4); // behind it comes the checksum
  const bytes = new Uint8Array(buffer);
  const view = new DataView(file);
  need(String.fromCharCode(...bytes.subarray(0, 8)) === "GANPRUNE", "it does not begin with GANPRUNE");
  need(view.getUint32(8, true) === 2, `its format is version ${view.getUint32(8, true)}, and this page reads version 2`);
  need(view.getUint32(bytes.length, true) === crc32(bytes), "its checksum is another, so bytes of it were changed or lost");
  const length = view.getUint32(12, true);
  need(length % 4 === 0 && 16 + length <= buffer.byteLength, "its header is longer than the file");
  const header = parse(bytes.subarray(16, 16 + length));
  need(Array.isArray(header.layers) && header.layers.length > 0, "its header lists no layers");
  need(isShape(header.latent) && isShape(header.image), "its header does not give the shapes of latent and image");
  const payload = 16 + length;
  const layers = header.layers.map((layer) => readLayer(layer, buffer, payload));
  need(size(layers[0].input) === size(header.latent), "its first layer does not take the latent");
  need(size(layers.at(-1).output) === size(header.image), "its last layer does not give the image");
  layers.slice(1).forEach((layer, number) => {
    need(size(layer.input) === size(layers[number].output), `the layer before ${layer.name} gives another size`);
  });
  return { latent: header.latent, image: header.image, metadata: header.metadata ?? {}, layers };
}

const size = (shape) => shape.reduce((product, length) => product * length, 1);
const isCount = (value, least = 0) => Number.isSafeInteger(value) && value >= least;
const isShape = (shape) => Array.isArray(shape) && shape.length > 0 && shape.every((length) => isCount(length, 1))
  && size(shape) <= MOST;
const isPair = (pair, least) => Array.isArray(pair) && pair.length === 2 && pair.every((value) => isCount(value, least));

function need(condition, sentence) {
  if (!condition) throw new Error(`This is no sparse file that can be drawn with: ${sentence}.`);
}

// CRC-32 as in PNG and in Python's zlib, bit by bit: a table would be faster, and longer than the loop.
function crc32(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum >>> 0;
}

function parse(bytes) {
  let header = null;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch { /* said below */ }
  need(header !== null && typeof header === "object", "its header is no JSON");
  return header;
}

function readLayer(layer, buffer, payload) {
  need(layer !== null && typeof layer === "object" && typeof layer.name === "string", "a layer has no name");
  const name = layer.name;
  need(TYPES.includes(layer.type), `${name} is of an unknown type`);
  need(ACTIVATIONS.includes(layer.activation), `${name} has an unknown activation`);
  need(layer.activation !== "leaky_relu" || (layer.slope >= 0 && layer.slope <= 1), `${name} has a slope outside of [0, 1]`);
  const linear = layer.type === "linear";
  need(isShape(layer.weight) && layer.weight.length === (linear ? 2 : 4), `${name} has weights of no known shape`);
  const read = { ...layer, upsample: layer.upsample ?? 1 };
  need(linear ? fitsLinear(read) : fitsConvolution(read), `the shapes of ${name} contradict each other`);
  const [first, second, ...kernel] = layer.weight;
  read.shape = layer.type === "conv_transpose2d" ? [second, first, ...kernel] : [first, second, ...kernel];
  read.bias = floats(layer.bias, buffer, payload, name);
  read.values = floats(layer.values, buffer, payload, name);
  need(read.bias.length === read.shape[0], `${name} has not one bias for each output`);
  need(read.values.length === layer.nonzeros, `${name} has not one value for each weight that is left`);
  read.positions = positions(layer.positions, buffer, payload, read.values.length, size(read.shape), name);
  return read;
}

function fitsLinear({ weight, input, output }) {
  return isShape(input) && isShape(output) && size(input) === weight[1] && size(output) === weight[0];
}

function fitsConvolution({ type, weight, input, output, stride, padding, output_padding: more, dilation, groups, upsample }) {
  const pairs = isPair(stride, 1) && isPair(padding, 0) && isPair(more, 0) && isPair(dilation, 1);
  if (!pairs || groups !== 1 || !isCount(upsample, 1)) return false;
  if (!isShape(input) || !isShape(output) || input.length !== 3 || output.length !== 3) return false;
  const turned = type === "conv_transpose2d";
  if (upsample > 1 && (turned || stride[0] > 1 || stride[1] > 1)) return false;
  const wanted = [0, 1].map((axis) => {
    const extent = dilation[axis] * (weight[2 + axis] - 1) + 1;
    return turned
      ? (input[1 + axis] - 1) * stride[axis] - 2 * padding[axis] + extent + more[axis]
      : Math.floor((input[1 + axis] * upsample + 2 * padding[axis] - extent) / stride[axis]) + 1;
  });
  return input[0] === weight[turned ? 0 : 1] && output[0] === weight[turned ? 1 : 0]
    && output[1] === wanted[0] && output[2] === wanted[1];
}

function part(place, length, buffer, payload, name) {
  const inside = place && isCount(place.offset) && isCount(length) && payload + place.offset + length <= buffer.byteLength;
  need(inside && place.offset % 4 === 0, `${name} points outside of the file`);
  return payload + place.offset;
}

function floats(place, buffer, payload, name) {
  const begin = part(place, 4 * place?.count, buffer, payload, name);
  const numbers = new Float32Array(buffer.slice(begin, begin + 4 * place.count));
  need(numbers.every(Number.isFinite), `${name} has a weight that is not finite`);
  return numbers;
}

// Ascending indices, stored as differences; each in as few bytes as it needs, seven bits in a byte, the lowest ones first.
function positions(place, buffer, payload, count, total, name) {
  const begin = part(place, place?.bytes, buffer, payload, name);
  const bytes = new Uint8Array(buffer, begin, place.bytes);
  const found = new Uint32Array(count);
  let at = 0;
  let position = -1;
  for (let entry = 0; entry < count; entry += 1) {
    let difference = 0;
    let byte = 128;
    for (let scale = 1; byte >= 128; scale *= 128) {
      need(at < bytes.length && scale <= MOST, `the positions of ${name} end too early`);
      byte = bytes[at];
      at += 1;
      difference += (byte & 127) * scale;
    }
    position += difference;
    need(difference >= 1 && position < total, `${name} has a position outside of its weights`);
    found[entry] = position;
  }
  need(at === bytes.length, `${name} has more positions than values`);
  return found;
}
