// The pictures on the page, each a canvas with its seed and a link that saves it.

export class PictureGrid {
  constructor(element) {
    this.element = element;
    this.figures = [];
  }

  /** Show N pictures: pixels 0 .. 255 (N, C, H, W), the shape of one, and a {caption, seed} for each. */
  show(pixels, shape, labels) {
    const [, height, width] = shape;
    if (!this.shows(labels)) {
      this.figures = labels.map(newFigure);
      this.element.replaceChildren(...this.figures.map(({ figure }) => figure));
    }
    const size = shape.reduce((a, b) => a * b);
    this.figures.forEach(({ canvas, save }, i) => {
      if (canvas.width !== width) Object.assign(canvas, { width, height });
      canvas.getContext("2d").putImageData(toImage(pixels.subarray(i * size, (i + 1) * size), shape), 0, 0);
      save.hidden = true;
    });
  }

  /** The pictures are done, and can be saved. */
  finish() {
    for (const { canvas, save } of this.figures) {
      save.href = canvas.toDataURL();
      save.hidden = false;
    }
  }

  shows(labels) {
    const own = this.figures.map(({ label }) => `${label.seed} ${label.caption}`);
    return own.length === labels.length && labels.every(({ seed, caption }, i) => own[i] === `${seed} ${caption}`);
  }
}

function newFigure(label) {
  const { caption, seed } = label;
  const canvas = document.createElement("canvas");
  canvas.width = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${caption || "no caption"}, seed ${seed}`);
  const save = Object.assign(document.createElement("a"), { textContent: "save", hidden: true });
  save.download = `${slug(caption)}-${seed}.png`;
  save.setAttribute("aria-label", `save the picture of seed ${seed}`);
  const line = document.createElement("figcaption");
  line.append(Object.assign(document.createElement("span"), { textContent: `seed ${seed}` }), save);
  const figure = document.createElement("figure");
  figure.append(canvas, line);
  return { figure, canvas, save, label };
}

function toImage(pixels, [channels, height, width]) {
  const image = new ImageData(width, height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels === 1 ? i : c * plane + i];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

function slug(caption) {
  return caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "image";
}
