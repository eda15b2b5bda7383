// Fetch the pipeline's files, with progress, and open it.

import * as ort from "./runtime/ort.wasm.min.mjs";
import { Networks } from "./networks.js";
import { Pipeline } from "./pipeline.js";
import { Tokenizer } from "./tokenizer.js";

/** onProgress({loaded, total}) is told bytes. */
export async function openPipeline(onProgress) {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  const description = await (await fetchFile("model/lite.json")).json();
  const sizes = description.sizes;
  const total = Object.values(sizes).reduce((a, b) => a + b, 0);
  let loaded = 0;
  const fetchBytes = async (name) => {
    const response = await fetchFile(`model/${name}`);
    const chunks = [];
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      loaded += value.length;
      onProgress({ loaded, total });
    }
    return new Uint8Array(await new Blob(chunks).arrayBuffer());
  };
  const networks = new Networks(ort, fetchBytes, Object.keys(sizes));
  const tokenizerBytes = await fetchBytes("tokenizer.json");
  const tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(tokenizerBytes)), description.context, description.tokens);
  for (const file of Object.keys(sizes)) if (file.endsWith(".onnx")) await networks.open(file.slice(0, -".onnx".length));
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("worker.js").catch(() => {});
  return new Pipeline(description, tokenizer, networks);
}

async function fetchFile(path) {
  const response = await fetch(new URL(path, import.meta.url));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
}
