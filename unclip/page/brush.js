// The brush: a canvas of the image's own pixels above it. Its strokes are sent as one bit for each pixel.
(() => {
  const canvas = () => document.querySelector(".brush canvas");
  const contextOf = (target) => target.getContext("2d", {willReadFrequently: true});
  let last = null; // where the pointer was, while it is down

  function prepareBrush() { // a new canvas shows the strokes of the link that led here
    const target = canvas();
    const strokes = atob(target?.dataset.strokes ?? "");
    for (let i = 0; i < strokes.length * 8; i++) {
      const isBrushed = strokes.charCodeAt(i >> 3) & (128 >> (i & 7));
      if (isBrushed) dot(contextOf(target), i % target.width, Math.floor(i / target.width));
    }
    target?.removeAttribute("data-strokes");
    return target;
  }

  function withStrokes(values, place) { // the values of a click
    const target = prepareBrush();
    if (target) values[place] = packed(target);
    return values;
  }

  function packed(target) { // a bit for each pixel, row by row, in base64
    const {data} = contextOf(target).getImageData(0, 0, target.width, target.height);
    const bytes = new Uint8Array(Math.ceil(data.length / 32));
    for (let i = 0; i < data.length / 4; i++) if (data[4 * i + 3]) bytes[i >> 3] |= 128 >> (i & 7);
    return bytes.some(Boolean) ? btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")) : "";
  }

  function dot(context, x, y) {
    context.fillStyle = "#ff5a36";
    context.fillRect(x, y, 1, 1);
  }

  function brushTo(target, x, y) { // from where the pointer was
    const radius = target.width / 16;
    const moments = Math.ceil(Math.hypot(x - last.x, y - last.y)) + 1;
    for (let i = 0; i <= moments; i++) {
      const centre = {x: last.x + ((x - last.x) * i) / moments, y: last.y + ((y - last.y) * i) / moments};
      for (let row = Math.floor(centre.y - radius); row <= centre.y + radius; row++) {
        for (let column = Math.floor(centre.x - radius); column <= centre.x + radius; column++) {
          const distance = Math.hypot(column + 0.5 - centre.x, row + 0.5 - centre.y);
          if (distance <= Math.max(radius, 0.75)) dot(contextOf(target), column, row);
        }
      }
    }
    last = {x, y};
  }

  for (const name of ["pointerdown", "pointermove"]) {
    document.addEventListener(name, (event) => {
      const target = event.target;
      if (!target.matches?.(".brush canvas") || (name === "pointermove" && !last)) return;
      const box = target.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * target.width;
      const y = ((event.clientY - box.top) / box.height) * target.height;
      if (name === "pointerdown") {
        target.setPointerCapture(event.pointerId);
        last = {x, y};
      }
      brushTo(target, x, y);
    });
  }
  for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { last = null; });

  document.addEventListener("click", (event) => {
    if (event.target.closest?.(".clear")) contextOf(canvas()).clearRect(0, 0, canvas().width, canvas().height);
  });

  Object.assign(window.unclip, {prepareBrush, withStrokes});
})();
