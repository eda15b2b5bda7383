// The page: reads the form, draws with the chosen pipeline, and shows the pictures as they are denoised.

import { PictureGrid } from "./grid.js";
import { freshFile } from "./keeping.js";
import { openPipeline } from "./loading.js";
import { pictureToPixels } from "./pictures.js";

const find = (id) => document.getElementById(id);
const form = find("controls");
const grid = new PictureGrid(find("pictures"));
const IN_ADDRESS = { caption: "caption", seed: "seed", n: "number", steps: "steps" }; // name -> id of the input

let site = null; // the content of site.json
const opened = {}; // name of a pipeline -> Promise of it
let pipeline = null; // the one that is shown
let running = null; // the AbortController of the drawing that is under way

if (document.documentElement.className !== "old") start();

async function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  form.addEventListener("change", showMode);
  find("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  find("share").addEventListener("input", () => (find("share-shown").textContent = `${find("share").value}%`));
  showMode();
  try {
    site = await (await freshFile("site.json")).json();
  } catch (error) {
    tellFailure(error);
    return;
  }
  const asked = new URLSearchParams(location.search).get("pipeline");
  const first = site.pipelines.find(({ name }) => name === asked) ?? site.pipelines[0];
  showPipelines(first);
  if (await choose(first)) {
    readAddress();
    navigator.serviceWorker?.register("worker.js").catch(() => {}); // it only serves later visits
  }
}

function showPipelines(chosen) {
  find("pipelines").hidden = site.pipelines.length < 2;
  for (const entry of site.pipelines) {
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "pipeline", value: entry.name });
    radio.checked = entry === chosen;
    radio.addEventListener("change", () => choose(entry));
    const label = document.createElement("label");
    label.append(radio, Object.assign(document.createElement("span"), { textContent: entry.name }));
    find("pipelines").append(label);
  }
}

/** Show a pipeline, fetching it when it is first chosen. Returns whether it is shown. */
async function choose(entry) {
  running?.abort();
  pipeline = null;
  find("draw").disabled = true;
  say("Loading ...");
  showProgress(0);
  opened[entry.name] ??= openPipeline(site, entry, ({ loaded, total }) => {
    const waits = !pipeline || running; // not for what is opened meanwhile
    if (isChosen(entry) && waits) showProgress(loaded / total, `${megabytes(loaded)} of ${megabytes(total)} MB`);
  });
  try {
    const open = await opened[entry.name];
    if (!isChosen(entry)) return false;
    pipeline = open;
  } catch (error) {
    delete opened[entry.name];
    if (isChosen(entry)) tellFailure(error);
    return false;
  }
  const [channels, height, width] = pipeline.imageShape;
  find("picture-hint").textContent = `It is made ${width} x ${height}${channels === 1 ? " and grey" : ""}, and stays here.`;
  find("steps").max = pipeline.mostSteps;
  find("steps").value = pipeline.ownSteps;
  showExamples(entry.examples);
  find("draw").disabled = false;
  showProgress(0);
  say("Ready.");
  return true;
}

function isChosen({ name }) {
  return new FormData(form).get("pipeline") === name;
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
  find("caption").value = captions[0] ?? "";
  find("second").value = captions[1] ?? "";
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
  const drawing = pipeline;
  const n = find("number").valueAsNumber;
  const seed = BigInt(find("seed").value);
  const asked = await prepare(n, seed);
  if (!asked || running !== mine) return;
  find("stop").hidden = false;
  say("Drawing ...");
  const began = performance.now();
  const onStep = ({ step, steps, pixels, shape }) => {
    showProgress(step / steps, `step ${step} of ${steps}`);
    grid.show(pixels, shape, asked.labels);
    bringIntoView(find("pictures").parentElement);
    return new Promise((resolve) => setTimeout(resolve)); // let the browser paint
  };
  try {
    const steps = find("steps").valueAsNumber;
    const { pixels, shape } = await asked.draw(drawing, { n, seed, steps, signal: mine.signal, onStep });
    mine.signal.throwIfAborted();
    grid.show(pixels, shape, asked.labels);
    grid.finish();
    say(`${n === 1 ? "One picture" : `${n} pictures`} in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    writeAddress();
  } catch (error) {
    if (running === mine && pipeline) say(error.name === "AbortError" ? "Stopped." : `Drawing failed: ${error.message}`);
  } finally {
    if (running === mine) {
      running = null;
      if (document.activeElement === find("stop")) find("draw").focus();
      find("stop").hidden = true;
    }
  }
}

/** Labels of the pictures that the form asks for, and a function that draws them; null if it cannot be drawn. */
async function prepare(n, seed) {
  const caption = find("caption").value;
  const labelled = (text) => Array.from({ length: n }, (_, i) => ({ caption: text, seed: seed + BigInt(i) }));
  if (mode() === "mix") {
    const second = find("second").value;
    const share = find("share").valueAsNumber / 100;
    return { labels: labelled(`${caption} + ${second}`), draw: (by, options) => by.mix(caption, second, share, options) };
  }
  if (mode() === "vary") {
    const file = find("picture").files[0];
    if (!file) {
      say("Choose a picture first.");
      return null;
    }
    try {
      const own = await pictureToPixels(file, pipeline.imageShape, pipeline.description.fit);
      return { labels: labelled(file.name), draw: (by, options) => by.vary(own, options) };
    } catch {
      say(`${file.name} is no picture that this browser can read.`);
      return null;
    }
  }
  return { labels: labelled(caption), draw: (by, options) => by.draw(caption, options) };
}

/** The address reproduces the picture: ?pipeline=...&caption=...&seed=...&n=...&steps=... */
function writeAddress() {
  if (mode() !== "draw") return;
  const query = new URLSearchParams();
  if (site.pipelines.length > 1) query.set("pipeline", new FormData(form).get("pipeline"));
  for (const [name, id] of Object.entries(IN_ADDRESS)) query.set(name, find(id).value);
  history.replaceState(null, "", `?${query}`);
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const [name, id] of Object.entries(IN_ADDRESS)) if (query.has(name)) find(id).value = query.get(name);
}

/** Scroll to what a small screen does not show. */
function bringIntoView(element) {
  if (element.getBoundingClientRect().top > innerHeight / 2) element.scrollIntoView();
}

function say(text) {
  find("message").textContent = text;
}

function tellFailure(error) {
  say(`The networks could not be loaded (${error.message}). Reload the page to try again.`);
}

/** share: 0 .. 1; detail: the same in words, for the eye. */
function showProgress(share, detail = "") {
  find("progress").value = share;
  find("detail").textContent = detail;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}
