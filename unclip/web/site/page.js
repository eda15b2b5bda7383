// The page: reads the form, draws with the pipeline, and shows the pictures as they are denoised.

import { openPipeline } from "./loading.js";
import { pictureToPixels } from "./pictures.js";
import { PictureGrid } from "./grid.js";

const find = (id) => document.getElementById(id);
const form = find("controls");
const grid = new PictureGrid(find("pictures"));
let pipeline = null;
let running = null; // the AbortController of the drawing that is under way

start();

async function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  form.addEventListener("change", showMode);
  find("stop").addEventListener("click", () => running?.abort());
  find("share").addEventListener("input", () => (find("share-shown").textContent = `${find("share").value}%`));
  showMode();
  if (typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined") {
    say("This browser is too old for the page: it needs WebAssembly. Firefox 115, Chrome 110 or Safari 17 would do.");
    return;
  }
  try {
    pipeline = await openPipeline(({ loaded, total }) => {
      find("progress").value = loaded / total;
      say(`Loading: ${megabytes(loaded)} of ${megabytes(total)} MB`);
    });
  } catch (error) {
    say(`The networks could not be loaded (${error.message}). Reload the page to try again.`);
    return;
  }
  find("steps").value = pipeline.ownSteps;
  const [channels, height, width] = pipeline.imageShape;
  find("picture-hint").textContent = `It is cut to a square and made ${width} x ${height}${channels === 1 ? ", grey" : ""}.`;
  showExamples(pipeline.description.examples ?? []);
  readAddress();
  find("draw").disabled = false;
  say("Ready.");
}

function showExamples(captions) {
  find("examples").replaceChildren(
    ...captions.map((caption) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: caption });
      button.addEventListener("click", () => {
        find("caption").value = caption;
        draw();
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  find("caption").value ||= captions[0] ?? "";
  find("second").value ||= captions[1] ?? "";
}

function mode() {
  return new FormData(form).get("mode");
}

function showMode() {
  for (const element of form.querySelectorAll("[data-modes]"))
    element.hidden = !element.dataset.modes.split(" ").includes(mode());
}

async function draw() {
  if (!pipeline || !form.reportValidity()) return;
  running?.abort(); // a second click replaces the first
  const mine = new AbortController();
  running = mine;
  const n = find("number").valueAsNumber;
  const seed = find("seed").valueAsNumber;
  const options = { n, seed, signal: mine.signal, settings: pipeline.settingsFor(find("steps").valueAsNumber) };
  options.onStep = ({ step, steps, pixels }) => {
    find("progress").value = step / steps;
    say(`Step ${step} of ${steps}`);
    grid.show(pixels, pipeline.imageShape, labels);
    return new Promise((resolve) => setTimeout(resolve)); // let the browser paint
  };
  const { labels, call } = await prepare(options);
  if (!call) return;
  find("stop").hidden = false;
  const began = performance.now();
  try {
    const { pixels } = await call();
    grid.show(pixels, pipeline.imageShape, labels);
    say(`${n === 1 ? "One picture" : `${n} pictures`} in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    writeAddress();
  } catch (error) {
    if (running === mine) say(error.name === "AbortError" ? "Stopped." : `Drawing failed: ${error.message}`);
  } finally {
    if (running === mine) find("stop").hidden = true;
  }

  async function prepare() {
    const caption = find("caption").value;
    const labelled = (text) => Array.from({ length: n }, (_, i) => ({ caption: text, seed: seed + i }));
    if (mode() === "mix") {
      const second = find("second").value;
      const share = find("share").valueAsNumber / 100;
      return { labels: labelled(`${caption} + ${second}`), call: () => pipeline.mix(caption, second, share, options) };
    }
    if (mode() === "vary") {
      const file = find("picture").files[0];
      if (!file) {
        say("Choose a picture first.");
        return {};
      }
      try {
        const own = await pictureToPixels(file, pipeline.imageShape);
        return { labels: labelled(file.name), call: () => pipeline.vary(own, options) };
      } catch {
        say(`${file.name} is no picture that this browser can read.`);
        return {};
      }
    }
    return { labels: labelled(caption), call: () => pipeline.draw(caption, options) };
  }
}

/** The address reproduces the picture: ?caption=...&seed=...&n=...&steps=... */
function writeAddress() {
  if (mode() !== "draw") return;
  const query = new URLSearchParams();
  for (const [name, id] of [["caption", "caption"], ["seed", "seed"], ["n", "number"], ["steps", "steps"]])
    query.set(name, find(id).value);
  history.replaceState(null, "", `?${query}`);
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const [name, id] of [["caption", "caption"], ["seed", "seed"], ["n", "number"], ["steps", "steps"]])
    if (query.has(name)) find(id).value = query.get(name);
}

function say(text) {
  find("message").textContent = text;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}
