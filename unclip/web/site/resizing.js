// Pillow's bicubic filter, by which Python resizes pictures.

/**
 * Resize a box of a picture: pixels 0 .. 255 (H, W, C), box [left, top, right, bottom], to size [width, height].
 * Returns a Uint8ClampedArray (height, width, C).
 */
export function resize({ pixels, width, channels }, [left, top, right, bottom], [newWidth, newHeight]) {
  const height = pixels.length / (width * channels);
  const columns = filters(left, right, width, newWidth);
  const rows = filters(top, bottom, height, newHeight);
  const narrow = new Uint8ClampedArray(height * newWidth * channels); // rounded in between, as Pillow does
  for (let y = 0; y < height; y++)
    columns.forEach(({ first, weights }, x) => {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        weights.forEach((weight, i) => (sum += weight * pixels[(y * width + first + i) * channels + c]));
        narrow[(y * newWidth + x) * channels + c] = sum;
      }
    });
  const result = new Uint8ClampedArray(newHeight * newWidth * channels);
  const line = newWidth * channels;
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < line; x++) {
      let sum = 0;
      weights.forEach((weight, i) => (sum += weight * narrow[(first + i) * line + x]));
      result[y * line + x] = sum;
    }
  });
  return result;
}

/** For each new pixel the first old one that it reads, and the weights of those from there on. */
function filters(start, end, length, newLength) {
  const scale = (end - start) / newLength;
  const widening = Math.max(scale, 1);
  return Array.from({ length: newLength }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * widening + 0.5));
    const stop = Math.min(length, Math.trunc(centre + 2 * widening + 0.5));
    const weights = Array.from({ length: stop - first }, (_, k) => bicubic((first + k - centre + 0.5) / widening));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

function bicubic(x) {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}
