// Captions -> token ids: byte-level BPE as the tokenizers library computes it from tokenizer.json.

const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
const CLIP_WORDS = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu; // OpenAI's
const PLAIN = /^[ -%'-~\t\r\n]*$/; // text that cleaning changes in white space alone

export class Tokenizer {
  /** json: the content of tokenizer.json; context: the longest caption in tokens; special: {start, end, pad}. */
  constructor(json, context, special) {
    const model = json.model;
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.ranks = new Map(model.merges.map((merge, rank) => [Array.isArray(merge) ? merge.join(" ") : merge, rank]));
    this.wordEnd = model.end_of_word_suffix ?? "";
    this.isOwn = !this.wordEnd; // else it is the tokenizer of a pretrained CLIP
    this.cleans = Boolean(json.cleaning);
    this.context = context;
    this.special = special;
    this.letters = byteLetters();
  }

  /** Start, tokens, end and padding: as many ids as the text tower reads. `cut` says whether tokens were left out. */
  encode(caption) {
    const tokens = this.tokens(caption);
    const limit = this.context - 2;
    const ids = [this.special.start, ...tokens.slice(0, limit), this.special.end];
    const padding = Array(this.context - ids.length).fill(this.special.pad);
    return { ids: [...ids, ...padding], cut: tokens.length > limit };
  }

  tokens(caption) {
    if (this.cleans && !PLAIN.test(caption))
      throw new Error("this CLIP reads letters of English, digits and punctuation on this page; the caption has others");
    const text = caption.normalize("NFC").toLowerCase().replace(/\s+/gu, " ").trim();
    if (!text) return [];
    const pieces = (this.isOwn ? ` ${text}`.match(PIECES) : text.match(CLIP_WORDS)) ?? [];
    const bytes = new TextEncoder();
    return pieces.flatMap((piece) => {
      const symbols = [...bytes.encode(piece)].map((byte) => this.letters[byte]);
      symbols[symbols.length - 1] += this.wordEnd;
      return this.merge(symbols);
    });
  }

  /** Join the pair of the lowest rank until none is left, and look the symbols up. */
  merge(symbols) {
    for (;;) {
      let best = -1;
      let lowest = Infinity;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = this.ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Infinity;
        if (rank < lowest) [best, lowest] = [i, rank];
      }
      if (best < 0) return symbols.map((symbol) => this.vocabulary.get(symbol));
      symbols = [...symbols.slice(0, best), symbols[best] + symbols[best + 1], ...symbols.slice(best + 2)];
    }
  }
}

/** A visible letter for each of the 256 bytes, as GPT-2 chose them. */
function byteLetters() {
  const isVisible = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
  let extra = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isVisible(byte) ? byte : extra++));
}
