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
const { chooseCandidates } = await import(`${site}/reranking.js`);
const { placeInSquare } = await import(`${site}/pictures.js`);
const { resize } = await import(`${site}/resizing.js`);
const { tensor } = await import(`${site}/tensors.js`);

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
  for (const { candidates, dims, text, empty, classes, scale, threshold, chosen } of fixtures.reranking) {
    const count = empty.length;
    const features = { embedding: tensor(Float32Array.from(text), [count, dims[1]]), empty: tensor(empty, [count], "bool") };
    const found = chooseCandidates(tensor(Float32Array.from(candidates), dims), features, { count, classes, scale, threshold });
    assert.deepEqual(found, chosen);
  }
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
