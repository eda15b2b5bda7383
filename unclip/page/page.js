// The page's own part in the browser: keys, the picked picture, saving files, and the history of this visit.
window.unclip = (() => {
  const KEPT = 24; // results in the history
  const SENT = 200; // longest side of a picture that is sent to another tab
  let isFilled = false;

  const isVisible = (element) => element && element.offsetParent !== null;
  const panel = () => [...document.querySelectorAll(".tab")].find(isVisible);
  const picks = () => [...(panel()?.querySelectorAll(".pick") ?? [])];
  const pick = () => picks().find((p) => p.getAttribute("aria-pressed") === "true") ?? picks()[0];

  // --- asking for an answer ---

  async function go(slug) {
    for (let tries = 0; tries < 40; tries++) { // a tab is placed when it is opened first
      const button = document.querySelector(`#tab-${slug} .go`);
      if (button && isVisible(document.querySelector(`#tab-${slug}`))) return button.click();
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  function start() { // what a tab shows at first is drawn when it is opened
    const tab = panel();
    const isEmpty = tab && !tab.querySelector(".result .unclip");
    if (isFilled && isEmpty && !tab.querySelector(".problem")) go(tab.id.replace("tab-", ""));
  }

  function filled() {
    isFilled = true;
    showHistory();
    setTimeout(start, 50);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !panel()) return;
    event.preventDefault();
    event.stopPropagation();
    document.activeElement?.dispatchEvent(new Event("change", {bubbles: true}));
    go(panel().id.replace("tab-", ""));
  }, true);

  // --- the picked picture ---

  document.addEventListener("click", (event) => {
    const chosen = event.target.closest?.(".pick");
    if (chosen) {
      picks().forEach((p) => p.setAttribute("aria-pressed", String(p === chosen)));
      showPicked();
    }
    const copy = event.target.closest?.(".copy");
    if (copy) {
      navigator.clipboard.writeText(copy.parentElement.nextElementSibling.textContent);
      copy.textContent = "Copied";
    }
    if (event.target.id === "save" && pick()) savePicture();
    if (event.target.id === "zip" && picks().length) saveAll();
  });

  function showPicked() {
    const chosen = pick();
    chosen?.setAttribute("aria-pressed", "true");
    document.getElementById("picked").textContent = chosen ? chosen.dataset.name : "no picture yet";
  }

  function picked() {
    const chosen = pick();
    return chosen ? [shrunk(chosen.querySelector("img"), SENT), chosen.dataset.caption] : ["", ""];
  }

  function shrunk(image, side) { // a data URL of at most this many pixels a side
    const scale = side / Math.max(image.naturalWidth, image.naturalHeight);
    return scale >= 1 ? image.src : scaled(image, scale).toDataURL("image/png");
  }

  function scaled(image, scale) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(image.naturalWidth * scale);
    canvas.height = Math.round(image.naturalHeight * scale);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = scale < 1; // enlarged by nearest neighbour
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  document.addEventListener("input", (event) => { // the slider above some frames
    const flip = event.target.closest?.(".flip");
    if (!flip) return;
    const frame = flip.parentElement.querySelectorAll(".film figure")[event.target.value];
    flip.querySelector("img").src = frame.querySelector("img").src;
    flip.querySelector("figcaption").textContent = frame.querySelector("figcaption").textContent;
    event.target.setAttribute("aria-valuetext", frame.querySelector("figcaption").textContent);
  });

  // --- files ---

  const bytesOf = (url) => Uint8Array.from(atob(url.split(",")[1]), (letter) => letter.charCodeAt(0));
  const size = () => Number(document.getElementById("size").value);

  function enlarged(image, factor) { // a PNG that keeps the text of the picture
    const source = bytesOf(image.src);
    if (factor === 1) return source;
    const target = bytesOf(scaled(image, factor).toDataURL("image/png"));
    const texts = chunks(source).filter((chunk) => chunk.type === "iTXt").map((chunk) => chunk.bytes);
    return joined([target.subarray(0, 33), ...texts, target.subarray(33)]); // behind the signature and the header
  }

  function chunks(png) {
    const view = new DataView(png.buffer, png.byteOffset);
    const found = [];
    for (let start = 8; start < png.length;) {
      const end = start + 12 + view.getUint32(start);
      found.push({type: String.fromCharCode(...png.subarray(start + 4, start + 8)), bytes: png.subarray(start, end)});
      start = end;
    }
    return found;
  }

  function joined(parts) {
    const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      whole.set(part, at);
      at += part.length;
    }
    return whole;
  }

  function save(bytes, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], {type}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  function savePicture() {
    save(enlarged(pick().querySelector("img"), size()), "image/png", `${safe(pick().dataset.name)}.png`);
  }

  function saveAll() {
    const files = picks().map((p, i) => ({
      name: `${String(i).padStart(3, "0")} ${safe(p.dataset.name)}.png`,
      bytes: enlarged(p.querySelector("img"), size()),
    }));
    save(zip(files), "application/zip", "unclip.zip");
  }

  const safe = (name) => name.replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 80);

  function zip(files) { // without compression: PNGs are compressed already
    const encoder = new TextEncoder();
    const bodies = [];
    const directory = [];
    let offset = 0;
    for (const {name, bytes} of files) {
      const title = encoder.encode(name);
      const common = [u16(20), u16(0x800), u16(0), u32(0x210000), u32(crc32(bytes)), u32(bytes.length),
        u32(bytes.length), u16(title.length), u16(0)];
      const local = joined([u32(0x04034b50), ...common, title, bytes]);
      directory.push(joined([u32(0x02014b50), u16(20), ...common, u16(0), u16(0), u16(0), u32(0), u32(offset), title]));
      bodies.push(local);
      offset += local.length;
    }
    const index = joined(directory);
    const end = [u32(0x06054b50), u32(0), u16(files.length), u16(files.length), u32(index.length), u32(offset), u16(0)];
    return joined([...bodies, index, ...end]);
  }

  const u16 = (value) => new Uint8Array([value & 255, value >>> 8]);
  const u32 = (value) => joined([u16(value & 65535), u16(value >>> 16)]);

  function crc32(bytes) {
    let crc = ~0;
    for (const byte of bytes) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc >>> 0;
  }

  // --- the history, which the browser keeps until the visit ends ---

  const past = () => JSON.parse(sessionStorage.getItem("unclip-history") ?? "[]");

  function finished(slug) {
    const tab = document.getElementById(`tab-${slug}`);
    const link = tab?.querySelector(".again")?.getAttribute("href");
    for (const drop of document.querySelectorAll(".upload-container[aria-label]")) {
      drop.removeAttribute("aria-label"); // gradio's differs from the text that is seen
    }
    if (isVisible(tab)) showPicked();
    if (!link || link === past()[0]?.link) return;
    if (isVisible(tab)) history.replaceState(null, "", link);
    const shown = [...tab.querySelectorAll(".pick")];
    const pictures = [shown[0], shown.at(-1)].filter(Boolean).map((p) => shrunk(p.querySelector("img"), 96));
    const name = new URLSearchParams(link).get("caption")?.split("\n")[0] ?? tab.getAttribute("aria-label") ?? slug;
    let entries = [{link, name: `${slug}: ${name}`, pictures}, ...past().filter((e) => e.link !== link)].slice(0, KEPT);
    while (entries.length) {
      try {
        sessionStorage.setItem("unclip-history", JSON.stringify(entries));
        break;
      } catch { // the browser's space is full
        entries = entries.slice(0, -1);
      }
    }
    showHistory();
  }

  function showHistory() {
    const section = document.getElementById("history");
    if (!section) return;
    section.hidden = !past().length;
    section.querySelector(".past").replaceChildren(...past().map(({link, name, pictures}) => {
      const entry = document.createElement("a");
      entry.href = link;
      entry.title = name;
      for (const source of pictures) entry.append(Object.assign(new Image(), {src: source, alt: ""}));
      entry.append(document.createElement("br"), name);
      return entry;
    }));
  }

  return {go, start, filled, finished, picked};
})();
