// Noise levels: x = alpha x_0 + sigma noise. The same as unclip/lite/levels.py.

const SIGMA_RANGE = [80, 0.02];
const RHO = 7;
export const CLEAN = { t: 0, alpha: 1, sigma: 0, told: 0 };

export class Process {
  /** table: alpha^2 of each step of a variance-preserving process, or null for the straight path. */
  constructor(table) {
    this.table = table;
    if (table) {
      const logs = table.map((abar) => 0.5 * Math.log(1 / abar - 1));
      this.boundaries = logs.slice(1).map((log, i) => (log + logs[i]) / 2);
    }
  }

  /** The level at time t; `told` is the number that the network is told. */
  level(t) {
    if (!this.table) return { t, alpha: 1 - t, sigma: t, told: 1000 * t };
    const step = Math.round(t * this.table.length) - 1;
    return { t, alpha: Math.sqrt(this.table[step]), sigma: Math.sqrt(1 - this.table[step]), told: step };
  }

  timeAtShare(share) {
    return this.table ? (share * (this.table.length - 1) + 1) / this.table.length : share;
  }

  /** The times at which sigma / alpha has these descending values, strictly descending. */
  distinctTimesAt(ratios) {
    if (!this.table) return ratios.map((ratio) => ratio / (1 + ratio));
    const steps = ratios.map((ratio) => lowerBound(this.boundaries, Math.log(ratio)));
    for (let i = 1; i < steps.length; i++) steps[i] = Math.min(steps[i], steps[i - 1] - 1);
    return steps.map((step, i) => (Math.max(step, steps.length - 1 - i) + 1) / this.table.length);
  }

  levels(spacing, steps) {
    return spacing === "karras" ? this.karrasLevels(steps) : this.evenLevels(steps);
  }

  evenLevels(steps) {
    const count = this.table ? this.table.length : 0;
    const time = (i) => (this.table ? roundHalfToEven(count - (i * count) / steps) / count : 1 - i / steps);
    return [...Array.from({ length: steps }, (_, i) => this.level(time(i))), CLEAN];
  }

  karrasLevels(steps) {
    const [highest, lowest] = SIGMA_RANGE.map((sigma) => sigma ** (1 / RHO));
    const share = (i) => (steps === 1 ? 0 : i / (steps - 1));
    const ratios = Array.from({ length: steps }, (_, i) => (highest + (lowest - highest) * share(i)) ** RHO);
    return [...this.distinctTimesAt(ratios).map((t) => this.level(t)), CLEAN];
  }

  /** The levels of a consistency model's calls: pure noise, then `further` ones between the two given ratios. */
  consistencyLevels(steps, [second, last]) {
    const further = steps - 1;
    const share = (i) => (further === 1 ? 0.5 : i / (further - 1));
    const ratios = Array.from({ length: further }, (_, i) => second ** (1 - share(i)) * last ** share(i));
    return [...this.distinctTimesAt([SIGMA_RANGE[0], ...ratios]).map((t) => this.level(t)), CLEAN];
  }
}

/** The number of sorted values below x. */
function lowerBound(values, x) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** As Python rounds. */
export function roundHalfToEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}
