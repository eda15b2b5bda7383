// Which of several candidate embeddings is kept for each caption: unclip/lite/reranking.py.

const SAME_MEANING = 0.95; // cosine from which a caption means the same as the nearest class caption

/**
 * candidates: unit embeddings (K N, D), the first ones of all captions, then the second ones, and so on.
 * text: features of N captions; classes: embeddings of the class captions; scale: CLIP's factor on cosines.
 * Returns the number of the candidate for each caption; 0 for an empty one.
 */
export function chooseCandidates(candidates, text, { count, classes, scale, threshold }) {
  const number = candidates.dims[0] / count;
  return Array.from({ length: count }, (_, row) => {
    if (text.empty.data[row]) return 0;
    const caption = rowOf(text.embedding, row);
    const own = Array.from({ length: number }, (_, k) => rowOf(candidates, k * count + row));
    if (!classes.length) return indexOfLargest(own.map((candidate) => dot(candidate, caption)));
    const { logOdds, isClassCaption } = captionLogOdds(own, caption, classes, scale);
    const passing = isClassCaption ? logOdds.findIndex((odds) => sigmoid(odds) >= threshold) : -1;
    return passing >= 0 ? passing : indexOfLargest(logOdds);
  });
}

/** Whether the first candidate of each caption is always kept, so that no other need be drawn. */
export function keepsFirst(text, { classes, threshold }) {
  return Array.from(text.empty.data, (empty, row) => {
    return Boolean(empty) || (threshold === 0 && sameMeaning(rowOf(text.embedding, row), classes).some(Boolean));
  });
}

/**
 * CLIP's probabilities that pictures show their captions' classes; 1 for a caption that is no class's own.
 * embeddings: the pictures' unit embeddings (N, D); text, classes, scale: as above.
 */
export function imageProbabilities(embeddings, text, { classes, scale }) {
  return Array.from(text.empty.data, (empty, row) => {
    if (empty || !classes.length) return 1;
    const caption = rowOf(text.embedding, row);
    const { logOdds, isClassCaption } = captionLogOdds([rowOf(embeddings, row)], caption, classes, scale);
    return isClassCaption ? sigmoid(logOdds[0]) : 1;
  });
}

/** The log odds that CLIP gives a caption for each candidate, and whether it is a class's own caption. */
function captionLogOdds(candidates, caption, classes, scale) {
  const isSame = sameMeaning(caption, classes);
  const others = classes.filter((_, c) => !isSame[c]);
  const logOdds = candidates.map(
    (candidate) => scale * dot(candidate, caption) - logSumExp(others.map((embedding) => scale * dot(candidate, embedding))),
  );
  return { logOdds, isClassCaption: isSame.some(Boolean) };
}

/** For each class, whether its caption means the same as this one. */
function sameMeaning(caption, classes) {
  const toClasses = classes.map((embedding) => dot(caption, embedding));
  const highest = Math.max(...toClasses);
  return toClasses.map((cosine) => cosine >= highest - 1e-4 && cosine > SAME_MEANING);
}

function rowOf({ data, dims }, row) {
  return data.subarray(row * dims[1], (row + 1) * dims[1]);
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
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
