// Random numbers that a seed decides, the same ones on every machine. tools/in_your_browser.py has them in Python.

// SplitMix: a counter that goes on by an odd number, and a function that mixes its bits (Steele, Lea and Flood 2014).
// Here with 32 bits; the mixer is the last step of MurmurHash3.
function* uniform(seed) {
  for (let counter = seed >>> 0; ;) {
    counter = (counter + 0x9e3779b9) >>> 0;
    let bits = counter;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    yield (((bits ^ (bits >>> 16)) >>> 0) + 0.5) / 2 ** 32; // never 0, never 1
  }
}

// An even number of independent standard normal numbers (Box and Muller 1958): a random radius and a random angle give two.
export function normals(seed, count) {
  const source = uniform(seed);
  const numbers = new Float32Array(count);
  for (let at = 0; at < count; at += 2) {
    const radius = Math.sqrt(-2 * Math.log(source.next().value));
    const angle = 2 * Math.PI * source.next().value;
    numbers[at] = radius * Math.cos(angle);
    numbers[at + 1] = radius * Math.sin(angle);
  }
  return numbers;
}
