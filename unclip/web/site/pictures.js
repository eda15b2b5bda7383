// Pictures of the visitor's, read as the pipeline's own images were: made square, resized, on white.

import { roundHalfToEven } from "./levels.js";
import { resize } from "./resizing.js";

/** A file -> pixels 0 .. 255 (C, H, W) as a Uint8ClampedArray. Rejects for a file that is no picture. */
export async function pictureToPixels(file, [channels, size], fit) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white"; // what is transparent becomes white
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const pixels = withChannels(context.getImageData(0, 0, width, height).data, channels);
  const { box, part, corner } = placeInSquare(width, height, size, fit);
  const resized = width === size && height === size ? pixels : resize({ pixels, width, channels }, box, part);
  const square = new Uint8ClampedArray(channels * size * size).fill(255);
  for (let y = 0; y < part[1]; y++)
    for (let x = 0; x < part[0]; x++)
      for (let c = 0; c < channels; c++)
        square[(c * size + corner[1] + y) * size + corner[0] + x] = resized[(y * part[0] + x) * channels + c];
  return square;
}

/** Red, green, blue, alpha -> colour, or grey by Pillow's weights. */
function withChannels(data, channels) {
  const pixels = new Uint8ClampedArray((data.length / 4) * channels);
  for (let i = 0; i < data.length / 4; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 1) pixels[i] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    else pixels.set([red, green, blue], 3 * i);
  }
  return pixels;
}

/** Which box of an oblong picture is resized to which size, and where it lies in the square: unclip/fitting.py. */
export function placeInSquare(width, height, size, fit) {
  if (fit === "crop") {
    const side = Math.min(width, height);
    const left = (width - side) / 2;
    const top = (height - side) / 2;
    return { box: [left, top, left + side, top + side], part: [size, size], corner: [0, 0] };
  }
  const box = [0, 0, width, height];
  if (fit === "stretch") return { box, part: [size, size], corner: [0, 0] };
  const longest = Math.max(width, height);
  const part = [width, height].map((length) => Math.max(1, roundHalfToEven((length / longest) * size)));
  return { box, part, corner: part.map((length) => roundHalfToEven((size - length) / 2)) };
}
