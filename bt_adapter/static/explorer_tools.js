// Small things: elements, numbers, colours, what is saved.

function make(tag, { parent, text, ...attributes } = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const percent = (share) => `${Math.round(100 * share)}%`;
const signed = (whole) => (whole ? `${whole < 0 ? "−" : "+"}${Math.abs(whole)}` : "0");
const points = (share) => signed(Math.round(100 * share));
const within = (index, count) => Math.min(count - 1, Math.max(0, index));
const range = (count) => Array.from({ length: count }, (_, i) => i);
const largest = (values) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
const rounded = (value) => (Math.abs(value) < 5e-4 ? "0" : `${Number(value.toPrecision(2))}`).replace("-", "−");

function labelled(parent, name, element, kind = "") {
  const label = make("label", { parent, class: kind });
  make("span", { parent: label, text: name });
  element.setAttribute("aria-label", name);
  label.append(element);
  return element;
}

function choice(parent, name, options) {
  const select = labelled(parent, name, make("select"));
  options.forEach(([value, text]) => make("option", { parent: select, value, text }));
  return select;
}

function tick(parent, name, text = "") {
  const label = make("label", { parent, class: "bta-tick" });
  const box = make("input", { parent: label, type: "checkbox", "aria-label": name });
  if (text !== "") make("span", { parent: label, text });
  return box;
}

// A canvas with one pixel of its own for each of the screen, so that nothing is blurred. One that is not placed has a
// size for what is saved.
function sharpen(canvas, ratio) {
  const wide = Math.max(1, Math.round((canvas.clientWidth || 220) * (window.devicePixelRatio || 1)));
  const high = Math.max(1, Math.round(wide * ratio));
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  return [wide, high];
}

// Red, green, blue and opacity of a share of the scale, -1 to 1; the frame shows through what is cool.
function tint(colours, share, opacity) {
  const strength = Math.min(1, Math.abs(share));
  const at = 3 * Math.round(255 * strength);
  const warm = share < 0 ? [0, 114, 178] : [230, 159, 0];
  const rgb = colours ? colours.subarray(at, at + 3) : warm; // no colours: a difference
  return [...rgb, Math.round(255 * opacity * strength ** 0.6)];
}

// A t x t matrix of shares as a small picture, a pixel a number.
function matrixPicture(canvas, count, share, colours) {
  [canvas.width, canvas.height] = [count, count];
  const image = new ImageData(count, count);
  for (let at = 0; at < count * count; at++) {
    const value = share(Math.floor(at / count), at % count);
    const [r, g, b, a] = tint(colours, value, 1);
    image.data.set(colours ? [r, g, b, 255] : [r, g, b, a], 4 * at);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function download(name, address) {
  make("a", { href: address, download: name }).click();
}

// A cell of a CSV that no spreadsheet takes for a formula.
function cellOf(value) {
  const text = String(value);
  const safe = typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
