// The page's modules against what Python computed: run by tests/test_web.py, which writes the fixtures.

import assert from "node:assert/strict";
import fs from "node:fs";
import test from "node:test";

const fixtures = JSON.parse(fs.readFileSync(process.env.FIXTURES, "utf8"));
const site = process.env.SITE;
const { RowNoise } = await import(`${site}/noise.js`);
const { Process } = await import(`${site}/levels.js`);
const { SAMPLERS, x0FromOutput } = await import(`${site}/samplers.js`);
const { Tokenizer } = await import(`${site}/tokenizer.js`);
const { chooseCandidates, imageProbabilities, keepsFirst } = await import(`${site}/reranking.js`);
const { redrawFailed } = await import(`${site}/redrawing.js`);
const { Pipeline } = await import(`${site}/pipeline.js`);
const { placeInSquare } = await import(`${site}/pictures.js`);
const { resize } = await import(`${site}/resizing.js`);
const { normalise, tensor } = await import(`${site}/tensors.js`);

function close(found, expected, tolerance) {
  assert.equal(found.length, expected.length);
  found.forEach((value, i) => assert.ok(Math.abs(value - expected[i]) <= tolerance, `${i}: ${value}, not ${expected[i]}`));
}

const flat = (levels) => levels.flatMap(({ t, alpha, sigma, told }) => [t, alpha, sigma, told]);

test("noise is Python's, also on later calls", () => {
  for (const { seed, stream, calls } of fixtures.noise) {
    const noise = new RowNoise([BigInt(seed)], ...stream);
    for (const expected of calls) close(noise.draw(expected.length), expected, 2e-6);
  }
});

test("levels are Python's", () => {
  for (const { table, levels, steps } of fixtures.processes) {
    const process = new Process(table);
    close(flat(process.karrasLevels(steps)), levels.karras, 1e-9);
    close(flat(process.evenLevels(steps)), levels.even, 1e-9);
    close(flat(process.consistencyLevels(steps, [1.5, 0.3])), levels.consistency, 1e-9);
  }
});

for (const name of Object.keys(SAMPLERS))
  test(`${name} is Python's`, async () => {
    const { start, dim, results } = fixtures.samplers;
    const noise = new RowNoise([1, 2], 2);
    const levels = new Process(fixtures.processes[0].table).karrasLevels(7);
    const shrink = (alpha, sigma) => (0.5 * alpha) / (0.5 * alpha ** 2 + sigma ** 2);
    const denoise = async (x, { alpha, sigma }) => x.map((value) => value * shrink(alpha, sigma));
    const options = { eta: 0.7 };
    const drawn = await SAMPLERS[name](denoise, Float32Array.from(start), levels, () => noise.draw(dim), options);
    close([...drawn], results[name], 1e-5);
  });

test("captions are tokenised as Python does", () => {
  for (const { json, context, special, captions, ids } of fixtures.tokenizers) {
    const tokenizer = new Tokenizer(json, context, special);
    captions.forEach((caption, i) => assert.deepEqual(tokenizer.encode(caption).ids, ids[i], caption));
  }
});

test("candidates are chosen as Python does", () => {
  for (const { candidates, dims, text, empty, classes, scale, threshold, chosen, ...expected } of fixtures.reranking) {
    const count = empty.length;
    const features = { embedding: tensor(Float32Array.from(text), [count, dims[1]]), empty: tensor(empty, [count], "bool") };
    const found = chooseCandidates(tensor(Float32Array.from(candidates), dims), features, { count, classes, scale, threshold });
    assert.deepEqual(found, chosen);
    const first = tensor(Float32Array.from(candidates.slice(0, count * dims[1])), [count, dims[1]]);
    close(imageProbabilities(first, features, { classes, scale }), expected.probabilities, 1e-5);
    assert.deepEqual(keepsFirst(features, { classes, threshold }), expected.keepsFirst);
  }
});

test("pictures are drawn anew as Python does", async () => {
  const draw = async (text, seeds) => {
    const images = new RowNoise(seeds, 1).draw(16);
    const embeddings = tensor(images.filter((_, i) => i % 16 < 4), [seeds.length, 4]);
    return { images, embeddings, seeds };
  };
  const judge = async (images, { embedding }) =>
    Array.from(embedding.data, (caption, i) => Math.exp(-Math.abs(images[16 * i] - caption)));
  for (const { seeds, captions, redraws, threshold, images, embeddings, kept } of fixtures.redrawing) {
    const text = { embedding: tensor(Float32Array.from(captions), [seeds.length, 1]) };
    const found = await redrawFailed(text, seeds.map(BigInt), { redraws, threshold }, draw, judge);
    assert.deepEqual(found.seeds.map(String), kept);
    close([...found.images], images, 2e-6);
    close([...found.embeddings.data], embeddings, 2e-6);
  }
});

test("pictures that are drawn anew from captions do not replace finished ones while they are drawn", async () => {
  const axis = (k) => Array.from({ length: 16 }, (_, i) => (i === k ? 1 : 0));
  const zeros = (rows) => tensor(new Float32Array(16 * rows), [rows, 16]);
  const networks = {
    text: () => [tensor(Float32Array.from(axis(0)), [1, 16]), zeros(1), zeros(1)],
    prior_prefix: ([{ dims }]) => [zeros(dims[0])],
    prior_step: ([noise]) => [noise],
    decoder_condition: () => [],
    decoder_step: ([x]) => [x],
    image: ([{ data, dims }]) => [normalise(tensor(data.map((value) => value - 127.5), [dims[0], 16]))],
  };
  const axes = Array.from({ length: 16 }, (_, k) => axis(k));
  const scaling = { mean: Array(16).fill(0), std: Array(16).fill(1), axes };
  const prior = { kind: "one_pass", ...scaling, class_embeddings: [axis(0), axis(1)] };
  const description = {
    image_shape: [1, 4, 4],
    sampling: {
      prior: { guidance: 1, num_candidates: 1, threshold: 1, redraws: 2, image_threshold: 1 },
      decoder: { steps: 2, spacing: "even", sampler: "dpmpp", guidance: 1, num_candidates: 1 },
      fast_decoder: { steps: 0 },
    },
    prior: { ...prior, logit_scale: 1 },
    decoder: { prediction: "x0", alphas_cumprod: fixtures.processes[0].table },
  };
  const tokenizer = { context: 1, encode: () => ({ ids: [0] }) };
  const run = async (name, inputs) => networks[name](inputs);
  const pipeline = new Pipeline(description, tokenizer, { run, has: (name) => name in networks });
  assert.ok(pipeline.neededLater.includes("image"));
  const shown = [];
  const onStep = async ({ pixels }) => shown.push([...pixels]);
  const { pixels } = await pipeline.draw("a bag", { n: 2, seed: 3, onStep });
  assert.equal(shown.length, 6);
  const first = shown[1];
  assert.deepEqual(shown[2], first);
  assert.deepEqual(shown[3], first);
  assert.deepEqual(shown[4], shown[5]);
  assert.notDeepEqual([...pixels], first);
  description.sampling.prior.redraws = 0;
  assert.ok(!pipeline.neededLater.includes("image"));
  assert.deepEqual([...(await pipeline.draw("a bag", { n: 2, seed: 3 })).pixels], first);
});

test("pictures are resized as Pillow does", () => {
  for (const { width, height, channels, fit, pixels, resized } of fixtures.resizing) {
    const { box, part, corner } = placeInSquare(width, height, 12, fit);
    const found = resize({ pixels: Uint8ClampedArray.from(pixels), width, channels }, box, part);
    const inSquare = (x, y, c) => resized[((corner[1] + y) * 12 + corner[0] + x) * channels + c];
    const expected = [];
    for (let y = 0; y < part[1]; y++)
      for (let x = 0; x < part[0]; x++) for (let c = 0; c < channels; c++) expected.push(inSquare(x, y, c));
    close([...found], expected, 1);
  }
});

test("predictions stand for clean samples", () => {
  const level = { alpha: 0.8, sigma: 0.6 };
  const x = Float32Array.of(1);
  close(x0FromOutput("v", Float32Array.of(0.5), x, level), [0.5], 1e-6);
  close(x0FromOutput("eps", Float32Array.of(0.5), x, level), [0.875], 1e-6);
  close(x0FromOutput("x0", Float32Array.of(0.5), x, level), [0.5], 1e-6);
});
