// From captions to pixels: the same steps as unclip/lite/pipeline.py, and the same pictures.

import { Process } from "./levels.js";
import { DECODER_STREAM, PRIOR_STREAM, RowNoise } from "./noise.js";
import { chooseCandidates } from "./reranking.js";
import { consistency, dpmpp, SAMPLERS, x0FromOutput } from "./samplers.js";
import { concat, normalise, pick, tensor } from "./tensors.js";

const SEED_STEP = 2n ** 40n;

export class Pipeline {
  /**
   * description: the content of lite.json; tokenizer: a Tokenizer;
   * networks: {run(name, tensors) -> Promise of tensors, has(name)}.
   */
  constructor(description, tokenizer, networks) {
    this.description = description;
    this.tokenizer = tokenizer;
    this.networks = networks;
    this.processes = {};
    for (const part of ["prior", "decoder", "fast_decoder"])
      if (description[part]) this.processes[part] = new Process(description[part].alphas_cumprod);
  }

  /**
   * Draw n pictures of a caption; picture i has the seed `seed + i`.
   * settings: {steps, guidance} of the decoder that draws, where they are not the pipeline's own.
   * onStep({step, steps, pixels}): called after each step of the decoder with what it predicts so far.
   * signal: an AbortSignal. Returns {pixels: Uint8ClampedArray of n pictures, embeddings}.
   */
  async draw(caption, { n = 1, seed = 0, settings = {}, onStep, signal } = {}) {
    const text = await this.encodeCaptions(Array(n).fill(caption));
    const seeds = Array.from({ length: n }, (_, i) => BigInt(seed) + BigInt(i));
    const embeddings = await this.drawEmbeddings(text, seeds, signal);
    return { embeddings, pixels: await this.drawImages(embeddings, text, seeds, { settings, onStep, signal }) };
  }

  /** Pictures of embeddings that the prior draws for two captions, mixed: share 0 is the first, 1 the second. */
  async mix(first, second, share, { n = 1, seed = 0, settings = {}, onStep, signal } = {}) {
    const seeds = Array.from({ length: n }, (_, i) => BigInt(seed) + BigInt(i));
    const drawn = [];
    for (const caption of [first, second])
      drawn.push(await this.drawEmbeddings(await this.encodeCaptions(Array(n).fill(caption)), seeds, signal));
    const [a, b] = drawn;
    const mixed = tensor(a.data.map((value, i) => (1 - share) * value + share * b.data[i]), a.dims);
    const text = await this.encodeCaptions(Array(n).fill(""));
    return { embeddings: mixed, pixels: await this.drawImages(normalise(mixed), text, seeds, { settings, onStep, signal }) };
  }

  /** Variations of a picture: n pictures with its embedding, and noise of their own. pixels: 0 .. 255, (C, H, W). */
  async vary(pixels, { n = 1, seed = 0, settings = {}, onStep, signal } = {}) {
    const [embedding] = await this.networks.run("image", [tensor(Float32Array.from(pixels), [1, ...this.imageShape])]);
    const embeddings = pick(embedding, Array(n).fill(0));
    const seeds = Array.from({ length: n }, (_, i) => BigInt(seed) + BigInt(i));
    const text = await this.encodeCaptions(Array(n).fill(""));
    return { embeddings, pixels: await this.drawImages(embeddings, text, seeds, { settings, onStep, signal }) };
  }

  /** Channels, height and width. */
  get imageShape() {
    return this.description.image_shape;
  }

  /** Whether the fast decoder draws, by the pipeline's own settings. */
  get isFast() {
    return this.networks.has("fast_decoder_step") && this.description.sampling.fast_decoder.steps > 0;
  }

  /** Steps by the pipeline's own settings. */
  get ownSteps() {
    return this.description.sampling[this.isFast ? "fast_decoder" : "decoder"].steps;
  }

  /** The settings for so many steps. The fast decoder takes up to four; for more the decoder itself draws. */
  settingsFor(steps) {
    if (steps === this.ownSteps) return {};
    return this.isFast && steps <= 4 ? { fast_steps: steps } : { steps };
  }

  async encodeCaptions(captions) {
    const distinct = [...new Set(captions)];
    const ids = distinct.flatMap((caption) => this.tokenizer.encode(caption).ids);
    const dims = [distinct.length, this.tokenizer.context];
    const [embedding, tokens, mask] = await this.networks.run("text", [tensor(BigInt64Array.from(ids, BigInt), dims, "int64")]);
    const empty = tensor(Uint8Array.from(distinct, (caption) => (caption.trim() ? 0 : 1)), [distinct.length], "bool");
    const rows = captions.map((caption) => distinct.indexOf(caption));
    return { embedding: pick(embedding, rows), tokens: pick(tokens, rows), mask: pick(mask, rows), empty: pick(empty, rows) };
  }

  /** One unit image embedding (N, D) for each of N captions. */
  async drawEmbeddings(text, seeds, signal) {
    const own = this.description.sampling.prior;
    const { mean, std, prediction, class_embeddings: classes, logit_scale: scale } = this.description.prior;
    const count = seeds.length;
    const dim = mean.length;
    const guides = own.guidance !== 1;
    const features = guides ? withNulls(text) : text;
    const { embedding, tokens, mask, empty } = features;
    const prefix = await this.networks.run("prior_prefix", [embedding, tokens, mask, empty]);
    let rows = Array.from({ length: own.num_candidates * count }, (_, i) => i % count);
    if (guides) rows = [...rows, ...rows.map((row) => row + count)];
    const [prefixMask, centre, keys, values] = prefix.map((part) => pick(part, rows));

    const denoise = async (x, level) => {
      signal?.throwIfAborted();
      const noised = guides ? concat(x, x) : x;
      const residual = noised.map((value, i) => value - level.alpha * centre.data[i]);
      const input = tensor(residual, [rows.length, dim]);
      const [output] = await this.networks.run("prior_step", [input, times(level, rows.length), prefixMask, keys, values]);
      const x0 = x0FromOutput(prediction, output.data, residual, level).map((value, i) => value + centre.data[i]);
      return guides ? interpolate(x0, own.guidance) : x0;
    };

    let noise = new Float32Array(0);
    for (let i = 0; i < own.num_candidates; i++) noise = concat(noise, new RowNoise(seeds, PRIOR_STREAM, i).draw(dim));
    const scaled = await dpmpp(denoise, noise, this.processes.prior.levels(own.spacing, own.steps));
    const unscaled = scaled.map((value, i) => value * std[i % dim] + mean[i % dim]);
    const candidates = normalise(tensor(unscaled, [own.num_candidates * count, dim]));
    const chosen = chooseCandidates(candidates, text, { count, classes, scale, threshold: own.threshold });
    return pick(candidates, chosen.map((candidate, row) => candidate * count + row));
  }

  /** Pixels 0 .. 255 of N pictures, (N, C, H, W); of several candidates the one that CLIP embeds closest. */
  async drawImages(embeddings, text, seeds, { settings = {}, onStep, signal } = {}) {
    const sampling = this.description.sampling;
    const asksForDecoder = Object.keys(settings).some((name) => name !== "fast_steps");
    const isFast = this.networks.has("fast_decoder_step") && sampling.fast_decoder.steps > 0 && !asksForDecoder;
    const name = isFast ? "fast_decoder" : "decoder";
    const own = isFast ? { ...sampling.fast_decoder } : { ...sampling.decoder, ...settings };
    if (isFast && settings.fast_steps) own.steps = settings.fast_steps;
    let best = null;
    for (let i = 0; i < own.num_candidates; i++) {
      const candidateSeeds = seeds.map((seed) => (seed + BigInt(i) * SEED_STEP) % 2n ** 63n);
      const drawn = await this.decode(name, own, embeddings, text, candidateSeeds, { onStep, signal });
      if (own.num_candidates === 1) return drawn;
      const pixels = tensor(Float32Array.from(drawn), [seeds.length, ...this.imageShape]);
      const [found] = await this.networks.run("image", [pixels]);
      best = keepCloser(best, drawn, cosines(found, embeddings));
    }
    return best.pixels;
  }

  async decode(name, own, embeddings, text, seeds, { onStep, signal }) {
    const { prediction } = this.description[name];
    const process = this.processes[name];
    const count = seeds.length;
    const size = this.imageShape.reduce((a, b) => a * b);
    const plain = await this.condition(name, embeddings, text, Array(count).fill(0));
    const guides = name === "decoder" && own.guidance !== 1;
    let both = null;
    let [low, high] = [0, 0];
    if (guides) {
      const twice = [...seeds.keys(), ...seeds.keys()];
      const drop = [...Array(count).fill(0), ...Array(count).fill(1)];
      both = await this.condition(name, pick(embeddings, twice), withNulls(text), drop);
      [low, high] = own.guidance_interval.map((share) => process.timeAtShare(share));
    }
    const levels = name === "fast_decoder" ? process.consistencyLevels(own.steps, own.levels) : process.levels(own.spacing, own.steps);
    let step = 0;

    const denoise = async (x, level) => {
      signal?.throwIfAborted();
      const guided = guides && low <= level.t && level.t <= high;
      const rows = guided ? 2 * count : count;
      const input = tensor(guided ? concat(x, x) : x, [rows, ...this.imageShape]);
      const [output] = await this.networks.run(`${name}_step`, [input, times(level, rows), ...(guided ? both : plain)]);
      const predicted = guided ? interpolate(output.data, own.guidance) : output.data;
      const x0 = x0FromOutput(prediction, predicted, x, level).map((value) => Math.min(1, Math.max(-1, value)));
      step += 1;
      await onStep?.({ step, steps: levels.length - 1, pixels: toPixels(x0) });
      return x0;
    };

    const noise = new RowNoise(seeds, DECODER_STREAM);
    const sampler = name === "fast_decoder" ? consistency : SAMPLERS[own.sampler];
    return toPixels(await sampler(denoise, noise.draw(size), levels, () => noise.draw(size), own));
  }

  async condition(name, embeddings, text, drop) {
    const dropped = tensor(Uint8Array.from(drop), [drop.length], "bool");
    return this.networks.run(`${name}_condition`, [embeddings, dropped, text.tokens, text.mask, text.empty]);
  }
}

/** The number that a network is told at a level, for each row. */
function times(level, rows) {
  return tensor(new Float32Array(rows).fill(level.told), [rows]);
}

/** N captions, and the same once more, marked as empty. */
function withNulls(text) {
  const count = text.empty.dims[0];
  const twice = Array.from({ length: 2 * count }, (_, i) => i % count);
  const empty = Uint8Array.from({ length: 2 * count }, (_, i) => (i < count ? text.empty.data[i] : 1));
  return {
    embedding: pick(text.embedding, twice),
    tokens: pick(text.tokens, twice),
    mask: pick(text.mask, twice),
    empty: tensor(empty, [2 * count], "bool"),
  };
}

/** Classifier-free guidance: the first half of the rows is conditional, the second half is not. */
function interpolate(both, guidance) {
  const half = both.length / 2;
  return both.slice(0, half).map((value, i) => both[half + i] + guidance * (value - both[half + i]));
}

/** Float in -1 .. 1 -> 0 .. 255. */
function toPixels(x0) {
  return Uint8ClampedArray.from(x0, (value) => (Math.min(1, Math.max(-1, value)) + 1) * 127.5);
}

function cosines(a, b) {
  const dim = a.dims[1];
  const sums = new Float64Array(a.dims[0]);
  a.data.forEach((value, i) => (sums[Math.floor(i / dim)] += value * b.data[i]));
  return sums;
}

function keepCloser(best, pixels, closeness) {
  if (!best) return { pixels, closeness };
  const size = pixels.length / closeness.length;
  closeness.forEach((cosine, row) => {
    if (cosine <= best.closeness[row]) return;
    best.closeness[row] = cosine;
    best.pixels.set(pixels.subarray(row * size, (row + 1) * size), row * size);
  });
  return best;
}
