// From captions to pixels: the same steps as unclip/lite/pipeline.py, and the same pictures.

import { CLEAN, Process } from "./levels.js";
import { DECODER_STREAM, PRIOR_STREAM, RowNoise, UPSAMPLER_STREAM } from "./noise.js";
import { keepBetter, laterSeed, redrawFailed } from "./redrawing.js";
import { chooseCandidates, imageProbabilities, keepsFirst } from "./reranking.js";
import { consistency, dpmpp, SAMPLERS, x0FromOutput } from "./samplers.js";
import { concat, normalise, pick, pickEach, tensor } from "./tensors.js";

const PURE_NOISE = { ...CLEAN, told: 1000 }; // at which a one-pass prior is called
const MOST_FAST_STEPS = 16;

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
    for (const [part, values] of Object.entries(description))
      if (values?.alphas_cumprod !== undefined) this.processes[part] = new Process(values.alphas_cumprod);
  }

  /**
   * Draw n pictures of a caption; picture i has the seed `seed + i`.
   * steps: those of the decoder, where they are not the pipeline's own.
   * onStep({step, steps, pixels, shape}): called after each step of the decoder with what it predicts so far.
   * signal: an AbortSignal. Returns {pixels: Uint8ClampedArray of n pictures, shape of each, embeddings}.
   */
  async draw(caption, { n = 1, seed = 0, ...options } = {}) {
    const { class_embeddings: classes, logit_scale: scale } = this.description.prior;
    const settings = { redraws: this.redraws, threshold: this.description.sampling.prior.image_threshold };
    const drawPart = async (text, seeds, kept) => {
      // pictures that are drawn anew are not shown: they would replace finished ones by noise
      const onStep = (moment) => options.onStep?.(kept ? { ...moment, pixels: toPixels(kept.images) } : moment);
      const embeddings = await this.drawEmbeddings(text, seeds, options.signal);
      return this.drawClosest(embeddings, text, seeds, { ...options, onStep });
    };
    const judge = async (images, text) => imageProbabilities(await this.embed(images), text, { classes, scale });
    const text = await this.encodeCaptions(Array(n).fill(caption));
    return this.finish(await redrawFailed(text, seedsFrom(seed, n), settings, drawPart, judge), options);
  }

  /** Pictures of embeddings that the prior draws for two captions, mixed: share 0 is the first, 1 the second. */
  async mix(first, second, share, { n = 1, seed = 0, ...options } = {}) {
    const seeds = seedsFrom(seed, n);
    const drawn = [];
    for (const caption of [first, second])
      drawn.push(await this.drawEmbeddings(await this.encodeCaptions(Array(n).fill(caption)), seeds, options.signal, 1));
    const [a, b] = drawn;
    const mixed = tensor(a.data.map((value, i) => (1 - share) * value + share * b.data[i]), a.dims);
    return this.drawImages(normalise(mixed), await this.encodeCaptions(Array(n).fill("")), seeds, options);
  }

  /** Variations of a picture: n pictures with its embedding, and noise of their own. pixels: 0 .. 255, (C, H, W). */
  async vary(pixels, { n = 1, seed = 0, ...options } = {}) {
    const [embedding] = await this.networks.run("image", [tensor(Float32Array.from(pixels), [1, ...this.imageShape])]);
    const text = await this.encodeCaptions(Array(n).fill(""));
    return this.drawImages(pick(embedding, Array(n).fill(0)), text, seedsFrom(seed, n), options);
  }

  /** Channels, height and width. */
  get imageShape() {
    return this.description.image_shape;
  }

  /** The part that draws: the fast decoder where there is one, unless the pipeline's own settings turn it off. */
  get drawer() {
    const fast = this.description.sampling.fast_decoder.steps > 0 && this.networks.has("fast_decoder_step");
    return fast ? "fast_decoder" : "decoder";
  }

  /** Steps by the pipeline's own settings. */
  get ownSteps() {
    return this.description.sampling[this.drawer].steps;
  }

  /** The most steps that can be asked for. */
  get mostSteps() {
    return this.drawer === "fast_decoder" ? MOST_FAST_STEPS : (this.processes.decoder.table?.length ?? 1000);
  }

  /** The networks that drawing from captions begins with. */
  get needed() {
    return ["text", "prior_prefix", "prior_step", `${this.drawer}_condition`, `${this.drawer}_step`];
  }

  /** The networks that come after: they may still be opened while the first pictures are denoised. */
  get neededLater() {
    const judges = this.description.sampling[this.drawer].num_candidates > 1 || this.redraws > 0;
    return [...(judges ? ["image"] : []), ...(this.enlarges ? ["upsampler_step"] : [])];
  }

  /** How often a picture may be drawn anew: never without classes. */
  get redraws() {
    return this.description.prior.class_embeddings.length ? this.description.sampling.prior.redraws : 0;
  }

  /** Whether the upsampler enlarges what is drawn. */
  get enlarges() {
    return this.networks.has("upsampler_step") && this.description.sampling.upsampler.upscale !== "none";
  }

  async encodeCaptions(captions) {
    const distinct = [...new Set(captions)];
    const ids = distinct.flatMap((caption) => this.tokenizer.encode(caption).ids);
    const dims = [distinct.length, this.tokenizer.context];
    const [embedding, tokens, mask] = await this.networks.run("text", [tensor(BigInt64Array.from(ids, BigInt), dims, "int64")]);
    const empty = tensor(Uint8Array.from(distinct, (caption) => (caption.trim() ? 0 : 1)), [distinct.length], "bool");
    return pickEach({ embedding, tokens, mask, empty }, captions.map((caption) => distinct.indexOf(caption)));
  }

  /** One unit image embedding (N, D) for each of N captions. threshold: where it is not the pipeline's own. */
  async drawEmbeddings(text, seeds, signal, threshold = this.description.sampling.prior.threshold) {
    const own = this.description.sampling.prior;
    const { kind, mean, std, axes, prediction, class_embeddings: classes, logit_scale: scale } = this.description.prior;
    const count = seeds.length;
    const dim = mean.length;
    const isFirstKept = keepsFirst(text, { classes, threshold }).every(Boolean);
    const candidateCount = isFirstKept ? 1 : own.num_candidates;
    const guides = own.guidance !== 1;
    const features = guides ? withNulls(text) : text;
    const { embedding, tokens, mask, empty } = features;
    const prefix = await this.networks.run("prior_prefix", [embedding, tokens, mask, empty]);
    let rows = Array.from({ length: candidateCount * count }, (_, i) => i % count);
    if (guides) rows = [...rows, ...rows.map((row) => row + count)];
    const [centre, ...past] = prefix.map((part) => pick(part, rows));

    const denoise = async (x, level) => {
      signal?.throwIfAborted();
      const noised = guides ? concat(x, x) : x;
      const isAtOnce = kind === "one_pass";
      const residual = isAtOnce ? noised : noised.map((value, i) => value - level.alpha * centre.data[i]);
      const input = tensor(residual, [rows.length, dim]);
      const [output] = await this.networks.run("prior_step", [input, times(level, rows.length), ...past]);
      const predicted = isAtOnce ? output.data : x0FromOutput(prediction, output.data, residual, level);
      const x0 = predicted.map((value, i) => value + centre.data[i]);
      return guides ? interpolate(x0, own.guidance) : x0;
    };

    let noise = new Float32Array(0);
    for (let i = 0; i < candidateCount; i++) noise = concat(noise, new RowNoise(seeds, PRIOR_STREAM, i).draw(dim));
    const scaled = this.processes.prior
      ? await dpmpp(denoise, noise, this.processes.prior.levels(own.spacing, own.steps))
      : await denoise(noise, PURE_NOISE);
    const unscaled = scaled.map((_, i) => {
      const start = i - (i % dim);
      return axes[i % dim].reduce((sum, part, axis) => sum + scaled[start + axis] * std[axis] * part, mean[i % dim]);
    });
    const candidates = normalise(tensor(unscaled, [candidateCount * count, dim]));
    const chosen = chooseCandidates(candidates, text, { count, classes, scale, threshold });
    return pick(candidates, chosen.map((candidate, row) => candidate * count + row));
  }

  /** N pictures of given embeddings, as `draw` returns them. */
  async drawImages(embeddings, text, seeds, options) {
    return this.finish(await this.drawClosest(embeddings, text, seeds, options), options);
  }

  /** Images (N, C, H, W) in -1 .. 1, their embeddings and seeds; of several candidates those that CLIP embeds closest. */
  async drawClosest(embeddings, text, seeds, { steps, onStep, signal }) {
    const own = { ...this.description.sampling[this.drawer] };
    own.steps = steps ?? own.steps;
    let best = null;
    for (let i = 0; i < own.num_candidates; i++) {
      const candidateSeeds = seeds.map((seed) => laterSeed(seed, i));
      const show = ({ step, x0 }) => {
        const soFar = { step: i * own.steps + step, steps: own.num_candidates * own.steps, shape: this.imageShape };
        // later candidates are not shown: they would replace finished pictures by noise
        return onStep?.({ ...soFar, pixels: i ? toPixels(best.images) : toPixels(x0) });
      };
      const drawn = { embeddings, seeds: candidateSeeds };
      drawn.images = await this.decode(own, embeddings, text, candidateSeeds, { show, signal });
      if (own.num_candidates > 1) drawn.scores = cosines(await this.embed(drawn.images), embeddings);
      if (best) keepBetter(best, drawn, [...seeds.keys()]);
      else best = drawn;
    }
    return best;
  }

  /** CLIP's unit embeddings (N, D) of images (N, C, H, W) in -1 .. 1, rounded to whole grey levels. */
  async embed(images) {
    const pixels = Float32Array.from(toPixels(images));
    const count = pixels.length / this.imageShape.reduce((a, b) => a * b);
    const [embeddings] = await this.networks.run("image", [tensor(pixels, [count, ...this.imageShape])]);
    return embeddings;
  }

  /** Drawn images as pictures, as `draw` returns them, enlarged where there is an upsampler. */
  async finish({ images, embeddings, seeds }, options) {
    if (!this.enlarges) return { pixels: toPixels(images), shape: this.imageShape, embeddings };
    return { ...(await this.enlarge(images, embeddings, seeds, options)), embeddings };
  }

  /** Images (N, C, H, W) in -1 .. 1 of embeddings and captions. */
  async decode(own, embeddings, text, seeds, { show, signal }) {
    const name = this.drawer;
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
      const x0 = clip(x0FromOutput(this.description[name].prediction, predicted, x, level));
      step += 1;
      await show({ step, x0 });
      return x0;
    };

    const noise = new RowNoise(seeds, DECODER_STREAM);
    const sampler = name === "fast_decoder" ? consistency : SAMPLERS[own.sampler];
    return sampler(denoise, noise.draw(size), levels, () => noise.draw(size), own);
  }

  /** The upsampler: images (N, C, H, W) in -1 .. 1 -> larger pictures, as `draw` returns them. */
  async enlarge(images, embeddings, seeds, { onStep, signal }) {
    const own = this.description.sampling.upsampler;
    const { factor, prediction } = this.description.upsampler;
    const process = this.processes.upsampler;
    const [channels, height, width] = this.imageShape;
    const shape = [channels, height * factor, width * factor];
    const count = seeds.length;
    const noise = new RowNoise(seeds, UPSAMPLER_STREAM);
    const level = process.level(process.distinctTimesAt([own.upscale_noise])[0]);
    const added = noise.draw(channels * height * width);
    const noised = images.map((value, i) => level.alpha * value + level.sigma * added[i]);
    const small = tensor(noised, [count, ...this.imageShape]);
    const levels = process.karrasLevels(own.upscale_steps);
    let step = 0;

    const denoise = async (x, at) => {
      signal?.throwIfAborted();
      const inputs = [tensor(x, [count, ...shape]), times(at, count), small, times(level, count), embeddings];
      const [output] = await this.networks.run("upsampler_step", inputs);
      const x0 = clip(x0FromOutput(prediction, output.data, x, at));
      step += 1;
      await onStep?.({ step, steps: own.upscale_steps, pixels: toPixels(x0), shape });
      return x0;
    };

    const start = noise.draw(shape.reduce((a, b) => a * b));
    return { pixels: toPixels(await dpmpp(denoise, start, levels)), shape };
  }

  async condition(name, embeddings, text, drop) {
    const readsText = this.description[name].kind === "text"; // the caption's embedding in place of the image's
    const dropped = Uint8Array.from(drop, (value, i) => (value || (readsText && text.empty.data[i]) ? 1 : 0));
    const vectors = readsText ? text.embedding : embeddings;
    const inputs = [vectors, tensor(dropped, [drop.length], "bool"), text.tokens, text.mask, text.empty];
    return this.networks.run(`${name}_condition`, inputs);
  }
}

/** The n seeds from this one on. */
function seedsFrom(seed, n) {
  return Array.from({ length: n }, (_, i) => BigInt(seed) + BigInt(i));
}

/** The number that a network is told at a level, for each row. */
function times(level, rows) {
  return tensor(new Float32Array(rows).fill(level.told), [rows]);
}

/** N captions, and the same once more, marked as empty. */
function withNulls(text) {
  const count = text.empty.dims[0];
  const twice = Array.from({ length: 2 * count }, (_, i) => i % count);
  const features = pickEach(text, twice);
  features.empty.data.fill(1, count);
  return features;
}

/** Classifier-free guidance: the first half of the rows is conditional, the second half is not. */
function interpolate(both, guidance) {
  const half = both.length / 2;
  return both.slice(0, half).map((value, i) => both[half + i] + guidance * (value - both[half + i]));
}

function clip(x0) {
  return x0.map((value) => Math.min(1, Math.max(-1, value)));
}

/** Float in -1 .. 1 -> 0 .. 255; the array clamps and rounds. */
function toPixels(x0) {
  return Uint8ClampedArray.from(x0, (value) => (value + 1) * 127.5);
}

function cosines(a, b) {
  const dim = a.dims[1];
  const sums = new Float64Array(a.dims[0]);
  a.data.forEach((value, i) => (sums[Math.floor(i / dim)] += value * b.data[i]));
  return sums;
}
