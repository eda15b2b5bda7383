// The pictures on the page, each a canvas with its seed and a button that saves it.

export class PictureGrid {
  constructor(element) {
    this.element = element;
    this.figures = [];
  }

  /** Show N pictures: pixels 0 .. 255 (N, C, H, W), and a {caption, seed} for each. */
  show(pixels, shape, labels) {
    if (this.figures.length !== labels.length || this.figures[0]?.seed !== labels[0].seed) {
      this.figures = labels.map(() => newFigure(shape));
      this.element.replaceChildren(...this.figures.map(({ figure }) => figure));
    }
    const size = shape.reduce((a, b) => a * b);
    labels.forEach((label, i) => paint(this.figures[i], pixels.subarray(i * size, (i + 1) * size), shape, label));
  }
}

function newFigure([, height, width]) {
  const figure = document.createElement("figure");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.setAttribute("role", "img");
  const save = Object.assign(document.createElement("a"), { textContent: "save" });
  const seedShown = document.createElement("span");
  const line = document.createElement("figcaption");
  line.append(seedShown, save);
  figure.append(canvas, line);
  return { figure, canvas, save, seedShown, seed: null };
}

function paint(entry, pixels, [channels, height, width], { caption, seed }) {
  const image = new ImageData(width, height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels === 1 ? i : c * plane + i];
    image.data[4 * i + 3] = 255;
  }
  entry.canvas.getContext("2d").putImageData(image, 0, 0);
  entry.canvas.setAttribute("aria-label", `${caption || "no caption"}, seed ${seed}`);
  entry.seed = seed;
  entry.seedShown.textContent = `seed ${seed}`;
  entry.save.download = `${slug(caption)}-${seed}.png`;
  entry.save.href = entry.canvas.toDataURL();
  entry.save.setAttribute("aria-label", `save the picture of seed ${seed}`);
}

function slug(caption) {
  return caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "image";
}
