// Normal noise from seeds: the numbers of unclip/lite/noise.py, which are PyTorch's.

export const PRIOR_STREAM = 1;
export const DECODER_STREAM = 2;
export const UPSAMPLER_STREAM = 3;
const GROUP = 16;

/** Standard-normal noise whose row i depends only on seeds[i], and on how often it was asked. */
export class RowNoise {
  constructor(seeds, ...stream) {
    this.generators = seeds.map((seed) => new MersenneTwister(torchSeed([seed, ...stream])));
  }

  /** Float32Array of rows x count numbers; count is at least 16. */
  draw(count) {
    const rows = new Float32Array(this.generators.length * count);
    this.generators.forEach((generator, i) => rows.set(drawNormal(generator, count), i * count));
    return rows;
  }
}

export function drawNormal(generator, count) {
  if (count < GROUP) throw new Error(`at least ${GROUP} numbers are drawn at once, not ${count}`);
  const uniform = drawUniform(generator, count);
  const normal = new Float32Array(count);
  for (let start = 0; start + GROUP <= count; start += GROUP) boxMuller(uniform, start, normal, start);
  if (count % GROUP) boxMuller(drawUniform(generator, GROUP), 0, normal, count - GROUP); // the last sixteen anew
  return normal;
}

function drawUniform(generator, count) {
  return Float32Array.from({ length: count }, () => (generator.next() & 0xffffff) / 2 ** 24);
}

/** Sixteen uniform numbers -> sixteen normal ones: the first eight give radii, the others angles. */
function boxMuller(uniform, from, normal, to) {
  for (let i = 0; i < GROUP / 2; i++) {
    const radius = Math.fround(Math.sqrt(-2 * Math.log(1 - uniform[from + i])));
    const angle = Math.fround(Math.fround(2 * Math.PI) * uniform[from + i + GROUP / 2]);
    normal[to + i] = radius * Math.cos(angle);
    normal[to + i + GROUP / 2] = radius * Math.sin(angle);
  }
}

/** The 32 bits that PyTorch's generator is seeded with: NumPy's SeedSequence of the words, without its last bit. */
export function torchSeed(words) {
  const [low, high] = seedSequence(words.flatMap(toUint32), 2);
  return ((low >>> 1) | ((high & 1) << 31)) >>> 0;
}

/** A non-negative integer, as a number or BigInt, in words of 32 bits, the lowest first. */
function toUint32(integer) {
  let rest = BigInt(integer);
  const words = [];
  do {
    words.push(Number(rest & 0xffffffffn));
    rest >>= 32n;
  } while (rest > 0n);
  return words;
}

/** NumPy's SeedSequence(words).generate_state(count), after M. E. O'Neill's seed_seq_fe. */
function seedSequence(words, count) {
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (a, b) => {
    const mixed = Math.imul(0xca01f9dd, a) - Math.imul(0x4973f715, b);
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] ?? 0));
  for (let source = 0; source < 4; source++)
    for (let target = 0; target < 4; target++)
      if (source !== target) pool[target] = mix(pool[target], hash(pool[source]));
  for (const word of words.slice(4))
    for (let target = 0; target < 4; target++) pool[target] = mix(pool[target], hash(word));
  let output = 0x8b51f9dd;
  return Array.from({ length: count }, (_, i) => {
    let value = pool[i % 4] ^ output;
    output = Math.imul(output, 0x58f38ded);
    value = Math.imul(value, output);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

/** MT19937 (Matsumoto & Nishimura 1998). */
class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
    this.position = 624;
  }

  /** The next 32 bits. */
  next() {
    if (this.position === 624) this.twist();
    let y = this.state[this.position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.position = 0;
  }
}
