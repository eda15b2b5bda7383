// Open a pipeline: fetch its files, with progress, and keep them for the next visit.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { keptFile } from "./keeping.js";
import { Networks } from "./networks.js";
import { Pipeline } from "./pipeline.js";
import { Tokenizer } from "./tokenizer.js";

/** site: the content of site.json; entry: one of its pipelines; onProgress({loaded, total}) is told bytes. */
export async function openPipeline(site, entry, onProgress) {
  let loaded = 0;
  let total = 0;
  const fetched = new Map(); // until all is open; several networks share a file

  const download = async ({ path, sha256, size }) => {
    total += size;
    const response = await keptFile(path, sha256);
    const chunks = [];
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      loaded += value.length;
      onProgress({ loaded, total });
    }
    return inflate(new Blob(chunks));
  };
  const fetchFile = (name) => {
    if (!fetched.has(name)) fetched.set(name, download(entry.files[`${name}.gz`]));
    return fetched.get(name);
  };
  const json = async (name) => JSON.parse(new TextDecoder().decode(await fetchFile(name)));

  const [description, tokens] = await Promise.all([json("lite.json"), json("tokenizer.json")]);
  const tokenizer = new Tokenizer(tokens, description.context, description.tokens);
  const networks = new Networks(ort, fetchFile, description.weights);
  const pipeline = new Pipeline(description, tokenizer, networks);
  networks.files(pipeline.needed).forEach(fetchFile);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary ??= await download(site.runtime);
  for (const name of pipeline.needed) await networks.open(name);
  for (const name of pipeline.neededLater) networks.open(name).catch(() => {}); // opened again where it is used
  fetched.clear();
  return pipeline;
}

/** The content of a file that was compressed by gzip. Some hosts make the browser inflate it already. */
async function inflate(blob) {
  const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const isCompressed = start[0] === 0x1f && start[1] === 0x8b;
  const stream = isCompressed ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
