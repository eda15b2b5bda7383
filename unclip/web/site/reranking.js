// Which of several candidate embeddings is kept for each caption: unclip/lite/reranking.py.

const SAME_MEANING = 0.95; // cosine from which a caption means the same as the nearest class caption

/**
 * candidates: unit embeddings (K N, D), the first ones of all captions, then the second ones, and so on.
 * text: features of N captions; classes: embeddings of the class captions; scale: CLIP's factor on cosines.
 * Returns the number of the candidate for each caption; 0 for an empty one.
 */
export function chooseCandidates(candidates, text, { count, classes, scale, threshold }) {
  const dim = candidates.dims[1];
  const number = candidates.dims[0] / count;
  const captionRow = (row) => text.embedding.data.subarray(row * dim, (row + 1) * dim);
  const candidateRow = (k, row) => candidates.data.subarray((k * count + row) * dim, (k * count + row + 1) * dim);
  return Array.from({ length: count }, (_, row) => {
    if (text.empty.data[row]) return 0;
    const caption = captionRow(row);
    const own = Array.from({ length: number }, (_, k) => dot(candidateRow(k, row), caption));
    if (!classes.length) return indexOfLargest(own);
    const toClasses = classes.map((embedding) => dot(caption, embedding));
    const highest = Math.max(...toClasses);
    const isSame = toClasses.map((cosine) => cosine >= highest - 1e-4 && cosine > SAME_MEANING);
    const logOdds = own.map((cosine, k) => {
      const others = classes.filter((_, c) => !isSame[c]).map((embedding) => scale * dot(candidateRow(k, row), embedding));
      return scale * cosine - logSumExp(others);
    });
    const passing = isSame.some(Boolean) ? logOdds.findIndex((odds) => 1 / (1 + Math.exp(-odds)) >= threshold) : -1;
    return passing >= 0 ? passing : indexOfLargest(logOdds);
  });
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function indexOfLargest(values) {
  return values.indexOf(Math.max(...values));
}

function logSumExp(values) {
  const highest = Math.max(...values);
  return highest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - highest), 0));
}
