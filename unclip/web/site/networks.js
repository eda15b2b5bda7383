// The exported networks, computed by ONNX Runtime Web: its WebAssembly, one thread.

import { pick, tensor } from "./tensors.js";

const ROWS_AT_ONCE = { decoder_step: 8, fast_decoder_step: 8, upsampler_step: 1 }; // between them the page can react

export class Networks {
  /**
   * ort: the module of onnxruntime-web; fetchFile(name) -> Promise of a Uint8Array;
   * weights: the name of each network -> that of the file of its weights, which several may share.
   */
  constructor(ort, fetchFile, weights) {
    this.ort = ort;
    this.fetchFile = fetchFile;
    this.weights = weights;
    this.sessions = {};
  }

  has(name) {
    return name in this.weights;
  }

  /** The files of these networks. */
  files(names) {
    return [...new Set(names.flatMap((name) => [`${name}.onnx`, this.weights[name]]))];
  }

  /** Fetch and open a network, once; again if that failed. */
  open(name) {
    this.sessions[name] ??= this.create(name).catch((error) => {
      delete this.sessions[name];
      throw error;
    });
    return this.sessions[name];
  }

  async create(name) {
    const [model, data] = await Promise.all(this.files([name]).map((file) => this.fetchFile(file)));
    const externalData = [{ path: this.weights[name], data }];
    return this.ort.InferenceSession.create(model, { executionProviders: ["wasm"], externalData });
  }

  /** Compute a network; inputs are in the order in which it was exported. Rows do not depend on one another. */
  async run(name, inputs) {
    const session = await this.open(name);
    const count = inputs[0].dims[0];
    const size = ROWS_AT_ONCE[name] ?? count;
    if (count <= size) return this.runAtOnce(session, inputs);
    const parts = [];
    for (let start = 0; start < count; start += size) {
      const rows = Array.from({ length: Math.min(size, count - start) }, (_, i) => start + i);
      parts.push(await this.runAtOnce(session, inputs.map((input) => pick(input, rows))));
      await new Promise((resolve) => setTimeout(resolve));
    }
    return parts[0].map((_, output) => joinRows(parts.map((part) => part[output])));
  }

  async runAtOnce(session, inputs) {
    const feed = {};
    session.inputNames.forEach((input, i) => {
      feed[input] = new this.ort.Tensor(inputs[i].type, inputs[i].data, inputs[i].dims);
    });
    const outputs = await session.run(feed);
    return session.outputNames.map((output) => {
      const { data, dims, type } = outputs[output];
      return { data, dims: [...dims], type };
    });
  }
}

function joinRows(parts) {
  const [{ data, dims, type }] = parts;
  const joined = new data.constructor(parts.reduce((sum, part) => sum + part.data.length, 0));
  let place = 0;
  for (const part of parts) {
    joined.set(part.data, place);
    place += part.data.length;
  }
  return tensor(joined, [parts.reduce((sum, part) => sum + part.dims[0], 0), ...dims.slice(1)], type);
}
