// Tensors as ONNX Runtime takes them: {data, dims, type}.

export function tensor(data, dims, type = "float32") {
  return { data, dims, type };
}

/** The rows with these numbers, each as often as it is named. */
export function pick({ data, dims, type }, rows) {
  const size = data.length / dims[0];
  const picked = new data.constructor(rows.length * size);
  rows.forEach((row, i) => picked.set(data.subarray(row * size, (row + 1) * size), i * size));
  return tensor(picked, [rows.length, ...dims.slice(1)], type);
}

/** The rows with these numbers of each tensor of an object, such as a caption's features. */
export function pickEach(tensors, rows) {
  return Object.fromEntries(Object.entries(tensors).map(([name, values]) => [name, pick(values, rows)]));
}

export function concat(first, second) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/** Rows (N, D) divided by their lengths. */
export function normalise({ data, dims }) {
  const [rows, dim] = dims;
  const unit = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    let square = 0;
    for (let i = 0; i < dim; i++) square += data[row * dim + i] ** 2;
    for (let i = 0; i < dim; i++) unit[row * dim + i] = data[row * dim + i] / Math.sqrt(square);
  }
  return tensor(unit, dims);
}
