// Samplers: plain functions of an asynchronous denoise(x, level) -> x0. The same as unclip/lite/samplers.py.
// All arrays are Float32Array of rows x count numbers; noise(count) draws as many.

/** Ho et al. 2020, algorithm 2. */
export async function ddpm(denoise, x, levels, noise) {
  for (const [level, lower] of pairs(levels)) {
    const x0 = await denoise(x, level);
    const alpha = level.alpha / lower.alpha;
    const variance = level.sigma ** 2 - alpha ** 2 * lower.sigma ** 2;
    const ofX0 = (lower.alpha * variance) / level.sigma ** 2;
    const ofX = (alpha * lower.sigma ** 2) / level.sigma ** 2;
    const deviation = Math.sqrt((variance * lower.sigma ** 2) / level.sigma ** 2);
    const fresh = lower.sigma > 0 ? noise() : null;
    x = x.map((value, i) => ofX0 * x0[i] + ofX * value + (fresh ? deviation * fresh[i] : 0));
  }
  return x;
}

/** Song et al. 2020, eq. 12. */
export async function ddim(denoise, x, levels, noise, { eta = 0 } = {}) {
  for (const [level, lower] of pairs(levels)) {
    const x0 = await denoise(x, level);
    const stepVariance = level.sigma ** 2 - (level.alpha / lower.alpha) ** 2 * lower.sigma ** 2;
    const variance = (eta ** 2 * lower.sigma ** 2 * stepVariance) / level.sigma ** 2;
    const ofNoise = Math.sqrt(Math.max(lower.sigma ** 2 - variance, 0));
    const fresh = variance > 0 ? noise() : null;
    x = x.map((value, i) => {
      const eps = (value - level.alpha * x0[i]) / level.sigma;
      return lower.alpha * x0[i] + ofNoise * eps + (fresh ? Math.sqrt(variance) * fresh[i] : 0);
    });
  }
  return x;
}

/** DPM-Solver++(2M): Lu et al. 2022, algorithm 2. */
export async function dpmpp(denoise, x, levels) {
  let previous = null;
  let lastStep = 0;
  for (const [level, lower] of pairs(levels)) {
    const x0 = await denoise(x, level);
    if (lower.sigma === 0) return x0;
    const step = logSnr(lower) - logSnr(level);
    const extrapolation = previous ? step / (2 * lastStep) : 0;
    const before = previous ?? x0;
    const ofX = lower.sigma / level.sigma;
    const ofTarget = lower.alpha * Math.expm1(-step);
    x = x.map((value, i) => ofX * value - ofTarget * (x0[i] + extrapolation * (x0[i] - before[i])));
    previous = x0;
    lastStep = step;
  }
  return x;
}

/** Song et al. 2023, algorithm 1. */
export async function consistency(denoise, x, levels, noise) {
  for (const [level, lower] of pairs(levels)) {
    x = await denoise(x, level);
    if (lower.sigma > 0) {
      const fresh = noise();
      x = x.map((value, i) => lower.alpha * value + lower.sigma * fresh[i]);
    }
  }
  return x;
}

export const SAMPLERS = { ddpm, ddim, dpmpp, consistency };

/** The clean sample that a network's output at x stands for. */
export function x0FromOutput(prediction, output, x, { alpha, sigma }) {
  if (prediction === "x0") return output;
  if (prediction === "eps") return x.map((value, i) => (value - sigma * output[i]) / alpha);
  if (prediction === "v") return x.map((value, i) => alpha * value - sigma * output[i]);
  return x.map((value, i) => value - sigma * output[i]); // velocity
}

function logSnr({ alpha, sigma }) {
  return alpha > 0 ? Math.log(alpha / sigma) : -Infinity;
}

function* pairs(levels) {
  for (let i = 0; i + 1 < levels.length; i++) yield [levels[i], levels[i + 1]];
}
