// Pictures that show another class than their caption's are drawn anew: unclip/lite/redrawing.py.

import { pickEach } from "./tensors.js";

const SEED_STEP = 2n ** 40n;

/**
 * Draw a picture of each caption, and those anew that CLIP does not take for what their captions say.
 * redraws: how often at most; threshold: the least probability.
 * draw(text, seeds, kept) -> {images, embeddings, seeds}; kept are the pictures so far, null at first.
 * judge(images, text) -> the probability that CLIP gives to each picture's caption.
 */
export async function redrawFailed(text, seeds, { redraws, threshold }, draw, judge) {
  const kept = await draw(text, [...seeds], null); // a copy: later seeds take their places
  if (!redraws) return kept;
  kept.scores = await judge(kept.images, text);
  for (let attempt = 1; attempt <= redraws; attempt++) {
    const rows = [...seeds.keys()].filter((row) => kept.scores[row] < threshold);
    if (!rows.length) break;
    const failed = pickEach(text, rows);
    const again = await draw(failed, rows.map((row) => laterSeed(seeds[row], attempt)), kept);
    again.scores = await judge(again.images, failed);
    keepBetter(kept, again, rows);
  }
  return kept;
}

/** The seed of the i-th candidate or attempt after a sample's first. */
export function laterSeed(seed, i) {
  return (seed + BigInt(i) * SEED_STEP) % 2n ** 63n;
}

/** Picture i of `drawn` takes the place of that in row rows[i] of `kept` if its score is higher. */
export function keepBetter(kept, drawn, rows) {
  rows.forEach((row, i) => {
    if (drawn.scores[i] <= kept.scores[row]) return;
    kept.scores[row] = drawn.scores[i];
    kept.seeds[row] = drawn.seeds[i];
    copyRow(kept.images, drawn.images, row, i, drawn.seeds.length);
    copyRow(kept.embeddings.data, drawn.embeddings.data, row, i, drawn.seeds.length);
  });
}

/** Row i of `from`, which has `count` rows, to a row of `to`. */
function copyRow(to, from, row, i, count) {
  const size = from.length / count;
  to.set(from.subarray(i * size, (i + 1) * size), row * size);
}
