// What is seen, as an SVG: for a paper, and drawn once more for a PNG.

// The name of SVG's elements, asked of the browser: this file names no address.
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild.namespaceURI;

function element(tag, parent, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function oneFrame(sheet, { canvas, label, share, part }, x, y, wide, high) {
  const soft = { fill: "#555555", "font-size": 12 };
  element("image", sheet, { href: canvas.toDataURL(), x, y, width: wide, height: high });
  element("text", sheet, { x, y: y + high + 15, ...soft }, label);
  element("text", sheet, { x: x + wide, y: y + high + 15, "text-anchor": "end", "font-size": 12 }, share);
  element("rect", sheet, { x, y: y + high + 20, width: wide, height: 5, fill: "#dedede" });
  const left = x + wide * part[0];
  element("rect", sheet, { x: left, y: y + high + 20, width: wide * part[1], height: 5, fill: "#0072b2" });
}

// A sentence in lines of so many letters at most.
function wrapped(line, letters) {
  const lines = [];
  for (const word of line.split(" ")) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && longer.length <= letters) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

// lines: sentences; lanes: [{ name, frames: [{ canvas, label, share, part }] }]; scales: [{ canvas, low, high }].
function sheetOf(lines, lanes, scales) {
  const across = Math.min(8, lanes[0].frames.length);
  const [wide, gap] = [110, 8];
  const one = lanes[0].frames[0].canvas;
  const high = (wide * one.height) / one.width;
  const width = Math.max(560, across * (wide + gap) + 12);
  const sheet = element("svg", null, { width, "font-family": "sans-serif", "font-size": 13 });
  element("rect", sheet, { width: "100%", height: "100%", fill: "white" });
  let y = 22;
  for (const line of lines.flatMap((text) => wrapped(text, width / 6.8))) {
    element("text", sheet, { x: 10, y }, line);
    y += 18;
  }
  for (const lane of lanes) {
    element("text", sheet, { x: 10, y: y + 6, "font-weight": "bold" }, lane.name);
    y += 14;
    lane.frames.forEach((frame, i) => {
      const [column, row] = [i % across, Math.floor(i / across)];
      oneFrame(sheet, frame, 10 + column * (wide + gap), y + row * (high + 34), wide, high);
    });
    y += Math.ceil(lane.frames.length / across) * (high + 34) + 10;
  }
  for (const { canvas, low, high } of scales) {
    element("text", sheet, { x: 200, y: y + 12, "text-anchor": "end" }, low);
    const place = { x: 208, y, width: 130, height: 16, preserveAspectRatio: "none" };
    element("image", sheet, { href: canvas.toDataURL(), ...place });
    element("text", sheet, { x: 346, y: y + 12 }, high);
    y += 24;
  }
  sheet.setAttribute("height", y + 6);
  sheet.setAttribute("viewBox", `0 0 ${width} ${y + 6}`);
  return new XMLSerializer().serializeToString(sheet);
}

const svgAddress = (text) => `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;

function pngOf(text, then) {
  const image = new Image();
  image.addEventListener("load", () => {
    const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    then(canvas.toDataURL("image/png"));
  });
  image.src = svgAddress(text);
}
