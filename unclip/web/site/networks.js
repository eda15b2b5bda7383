// The exported networks, computed by ONNX Runtime Web: its WebAssembly, one thread.

export class Networks {
  /** ort: the module onnxruntime-web/wasm; fetchBytes(file) -> Promise of a Uint8Array; files: names of all files. */
  constructor(ort, fetchBytes, files) {
    this.ort = ort;
    this.fetchBytes = fetchBytes;
    this.files = new Set(files);
    this.sessions = {};
  }

  has(name) {
    return this.files.has(`${name}.onnx`);
  }

  /** Fetch and open a network, once. */
  open(name) {
    this.sessions[name] ??= this.fetchBytes(`${name}.onnx`).then((bytes) =>
      this.ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }),
    );
    return this.sessions[name];
  }

  /** Compute a network; inputs are in the order in which it was exported. */
  async run(name, inputs) {
    const session = await this.open(name);
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
