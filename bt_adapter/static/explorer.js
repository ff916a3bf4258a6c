// Attention over time of one clip, under the mouse and the keyboard.
// One ES module for both homes: `default.render` for a notebook (anywidget), `standalone` for a file.
// `model` holds the data: see Explorer in nbs/workshop/explorer/views.ipynb. Text reaches the page by textContent only.

const ORANGE = "#e69f00";
const STYLE = `
.bta { --ink: #1b1b1b; --soft: #5f5f5f; --line: #c9c9c9; box-sizing: border-box; max-width: 980px;
  padding: 14px; border: 1px solid var(--line); border-radius: 8px; background: #fff; color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; color-scheme: light; }
.bta * { box-sizing: border-box; }
.bta-bar { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: end; margin-bottom: 12px; }
.bta label { display: grid; gap: 2px; font-size: 12px; color: var(--soft); }
.bta-break { flex-basis: 100%; height: 0; }
.bta .bta-caption { flex: 1 1 240px; }
.bta select, .bta input, .bta button { font: inherit; font-size: 14px; height: 32px; padding: 0 8px;
  color: var(--ink); background: #fff; border: 1px solid #8c8c8c; border-radius: 5px; }
.bta input { width: 100%; }
.bta button { cursor: pointer; min-width: 74px; }
.bta button:hover { background: #f0f0f0; }
.bta :focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.bta-info { display: flex; gap: 14px; justify-content: space-between; align-items: end; flex-basis: 100%;
  min-height: 1.45em; }
.bta-note { margin: 0; overflow-wrap: anywhere; }
.bta-scale { display: flex; gap: 6px; align-items: center; font-size: 12px; color: var(--soft);
  white-space: nowrap; }
.bta-scale[hidden] { display: none; }
.bta-scale i { width: 110px; height: 10px; border-radius: 3px; }
.bta-stage { display: grid; grid-template-columns: minmax(180px, 320px) 1fr; gap: 16px; padding: 4px;
  border-radius: 5px; align-items: start; }
@media (max-width: 620px) { .bta-stage { grid-template-columns: 1fr; } }
.bta canvas { display: block; width: 100%; height: auto; border-radius: 3px; cursor: crosshair;
  touch-action: none; }
.bta .bta-screen { position: sticky; top: 8px; }
.bta-strip { display: grid; grid-template-columns: repeat(var(--across), 1fr); gap: 8px; }
.bta-frame { padding: 3px; border: 2px solid transparent; border-radius: 6px; }
.bta-frame[data-now] { border-color: ${ORANGE}; }
.bta-share { display: flex; justify-content: space-between; font-size: 12px; margin-top: 3px; }
.bta-share span { color: var(--soft); }
.bta-gauge { height: 6px; background: #e4e4e4; border-radius: 3px; overflow: hidden; }
.bta-gauge div { height: 100%; background: #0072b2; }
.bta-said { margin: 12px 0 0; min-height: 2.9em; font-variant-numeric: tabular-nums; }
.bta-keys { margin: 2px 0 0; font-size: 12px; color: var(--soft); }`;

function make(tag, { parent, text, ...attributes } = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const percent = (share) => `${Math.round(100 * share)}%`;

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

function render({ model, el }) {
  const { frames, rows, columns, layers, heads, width, height, fps, captions, held } =
    model.get("info");
  const patches = rows * columns;
  const place = { frame: 0, row: Math.floor(rows / 2), column: Math.floor(columns / 2) };
  let film = null;
  let playing = null;

  // ---- what is on the page
  make("style", { parent: el, text: STYLE });
  const root = make("section", { parent: el, class: "bta", "aria-label": "Attention over time" });
  const bar = make("div", { parent: root, class: "bta-bar" });
  const range = (n, name) => Array.from({ length: n }, (_, i) => [i, `${name} ${i + 1}`]);
  const layer = choice(bar, "Layer", range(layers, "layer"));
  const head = choice(bar, "Head", [[0, "all, mean"], ...range(heads, "head").map(([i, t]) => [i + 1, t])]);
  const show = choice(bar, "Colour", [
    ["clip", "the clip"],
    ["received", "attention received"],
    ["relevance", "relevance of the caption"],
  ]);
  const play = make("button", { parent: bar, type: "button", text: "▶ Play" });
  make("div", { parent: bar, class: "bta-break" });
  const box = make("input", { type: "text", placeholder: "what happens here? press Enter" });
  const caption = labelled(bar, "Caption", box, "bta-caption");
  const ask = make("button", { parent: bar, type: "button", text: "Show" });
  const info = make("div", { parent: bar, class: "bta-info" });
  const note = make("p", { parent: info, class: "bta-note", role: "status" });
  const scale = make("div", { parent: info, class: "bta-scale", hidden: "" });
  make("span", { parent: scale, text: "nothing" });
  const ramp = make("i", { parent: scale });
  make("span", { parent: scale, text: "hottest patch" });
  const stage = make("div", {
    parent: root,
    class: "bta-stage",
    tabindex: 0,
    role: "application",
    "aria-label": "Patches: arrow keys move, Page Up and Page Down change the frame",
  });
  const screen = make("canvas", { parent: stage, class: "bta-screen" });
  const across = `--across: ${frames <= 8 ? Math.min(frames, 4) : frames <= 18 ? 6 : 8}`;
  const strip = make("div", { parent: stage, class: "bta-strip", style: across });
  const cells = Array.from({ length: frames }, (_, i) => {
    const cell = make("div", { parent: strip, class: "bta-frame" });
    const canvas = make("canvas", { parent: cell });
    const line = make("div", { parent: cell, class: "bta-share" });
    make("span", { parent: line, text: i + 1 });
    const share = make("b", { parent: line });
    const gauge = make("div", { parent: make("div", { parent: cell, class: "bta-gauge" }) });
    return { cell, canvas, share, gauge };
  });
  const said = make("p", { parent: root, class: "bta-said", "aria-live": "polite" });
  make("p", {
    parent: root,
    class: "bta-keys",
    text:
      "Point at a patch, or press Tab until the frames have a blue ring and use the arrow keys; " +
      "Page Up and Page Down change the frame, Space plays.",
  });
  if (captions.length) {
    const list = make("datalist", { parent: root, id: `bta-${Math.random().toString(36).slice(2)}` });
    captions.forEach((value) => make("option", { parent: list, value }));
    caption.setAttribute("list", list.id);
  }

  // ---- numbers
  const weight = (from, to) => {
    const patch = place.row * columns + place.column;
    const stored = bytes(model.get("weights"))[(patch * frames + from) * frames + to];
    return (stored / 255) * model.get("weights_top");
  };
  function received() {
    const weights = bytes(model.get("weights"));
    const sums = new Float32Array(frames * patches);
    for (let patch = 0; patch < patches; patch++)
      for (let from = 0; from < frames; from++)
        for (let to = 0; to < frames; to++)
          sums[to * patches + patch] += weights[(patch * frames + from) * frames + to];
    return sums;
  }
  function heats() {
    // shares of the hottest patch (frames, patches), or null for the clip as it is
    if (show.value === "clip") return null;
    const values = show.value === "received" ? received() : bytes(model.get("heat"));
    if (!values.length) return null;
    const top = values.reduce((a, b) => Math.max(a, b), 0) || 1;
    return Float32Array.from(values, (v) => v / top);
  }
  let heat = null;

  // ---- drawing
  function heatImage(frame) {
    const image = new ImageData(columns, rows);
    for (let patch = 0; patch < patches; patch++) {
      const share = heat[frame * patches + patch];
      const colour = 3 * Math.round(255 * share);
      image.data.set(colours.subarray(colour, colour + 3), 4 * patch);
      image.data[4 * patch + 3] = 255 * (0.2 + 0.65 * share);
    }
    const small = make("canvas", { width: columns, height: rows });
    small.getContext("2d").putImageData(image, 0, 0);
    return small;
  }
  function paint(canvas, frame, wide) {
    const high = Math.round((wide * height) / width);
    if (canvas.width !== wide) [canvas.width, canvas.height] = [wide, high];
    const brush = canvas.getContext("2d");
    const from = [(frame % 8) * width, Math.floor(frame / 8) * height, width, height];
    brush.drawImage(film, ...from, 0, 0, wide, high); // eight frames in a row of the film
    if (heat) {
      brush.globalCompositeOperation = "saturation";
      brush.fillStyle = "black";
      brush.fillRect(0, 0, wide, high);
      brush.globalCompositeOperation = "source-over";
      brush.fillStyle = "rgb(255 255 255 / 25%)"; // heat must show on dark frames too
      brush.fillRect(0, 0, wide, high);
      brush.drawImage(heatImage(frame), 0, 0, wide, high);
    }
    const box = [(place.column * wide) / columns, (place.row * high) / rows, wide / columns, high / rows];
    const here = frame === place.frame;
    const thick = Math.max(1.5, wide / 110) * (here ? 1.5 : 1);
    for (const [colour, line] of [["black", thick + 2], [here ? ORANGE : "white", thick]]) {
      brush.strokeStyle = colour;
      brush.lineWidth = line;
      brush.strokeRect(...box);
    }
  }
  function tell(shares) {
    const order = shares.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]);
    const most = order.slice(0, 3).map(([share, i]) => `frame ${i + 1} ${percent(share)}`);
    const where = `Row ${place.row + 1}, column ${place.column + 1} of frame ${place.frame + 1}`;
    let text = `${where} looks at ${most.join(", ")}.`;
    if (heat && show.value === "relevance") {
      const own = heat[place.frame * patches + place.row * columns + place.column];
      text += ` Its relevance is ${own.toFixed(2)} of the hottest patch's.`;
    }
    if (said.textContent !== text) said.textContent = text;
  }
  function draw() {
    if (!film || !model.get("weights").byteLength) return;
    const shares = cells.map((_, i) => weight(place.frame, i));
    const top = Math.max(...shares) || 1;
    paint(screen, place.frame, 640);
    cells.forEach(({ cell, canvas, share, gauge }, i) => {
      paint(canvas, i, 220);
      share.textContent = percent(shares[i]);
      gauge.style.width = percent(shares[i] / top);
      cell.toggleAttribute("data-now", i === place.frame);
    });
    tell(shares);
  }
  function redraw() {
    heat = heats();
    scale.hidden = !heat;
    draw();
  }

  // ---- mouse and keyboard
  function point(event, canvas, frame) {
    const box = canvas.getBoundingClientRect();
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    place.column = at((event.clientX - box.left) / box.width, columns);
    place.row = at((event.clientY - box.top) / box.height, rows);
    place.frame = frame;
    draw();
  }
  for (const kind of ["pointermove", "pointerdown"]) {
    screen.addEventListener(kind, (event) => point(event, screen, place.frame));
    cells.forEach(({ canvas }, i) => canvas.addEventListener(kind, (event) => point(event, canvas, i)));
  }
  const steps = {
    ArrowUp: ["row", -1, rows],
    ArrowDown: ["row", 1, rows],
    ArrowLeft: ["column", -1, columns],
    ArrowRight: ["column", 1, columns],
    PageUp: ["frame", -1, frames],
    PageDown: ["frame", 1, frames],
  };
  stage.addEventListener("keydown", (event) => {
    if (event.key === " ") toggle();
    else if (event.key in steps) {
      const [axis, step, count] = steps[event.key];
      place[axis] = Math.min(count - 1, Math.max(0, place[axis] + step));
      draw();
    } else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has uses of its own for these keys
  });
  function toggle() {
    if (playing) clearInterval(playing);
    playing = playing
      ? null
      : setInterval(() => {
          place.frame = (place.frame + 1) % frames;
          draw();
        }, 1000 / fps);
    play.textContent = playing ? "⏸ Pause" : "▶ Play";
  }
  play.addEventListener("click", toggle);

  // ---- to and from Python
  function limit() {
    if (!held) return; // a notebook has every head
    [...head.options].forEach((o) => (o.disabled = !held.includes(`${layer.value}/${o.value}`)));
    if (head.selectedOptions[0].disabled) head.value = 0;
  }
  function choose() {
    limit();
    model.set("layer", Number(layer.value));
    model.set("head", Number(head.value));
    model.save_changes();
  }
  function submit() {
    model.set("caption", caption.value);
    model.save_changes();
  }
  layer.addEventListener("change", choose);
  head.addEventListener("change", choose);
  show.addEventListener("change", redraw);
  ask.addEventListener("click", submit);
  caption.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") submit();
  });
  const heard = {
    "change:weights": redraw,
    "change:heat": () => {
      if (bytes(model.get("heat")).length) show.value = "relevance";
      redraw();
    },
    "change:note": () => (note.textContent = model.get("note")),
  };
  for (const [name, call] of Object.entries(heard)) model.on(name, call);

  const colours = bytes(model.get("colours"));
  const stops = [0, 36, 73, 109, 146, 182, 219, 255].map((i) => `rgb(${colours.subarray(3 * i, 3 * i + 3)})`);
  ramp.style.background = `linear-gradient(to right, ${stops})`;
  caption.value = model.get("caption");
  layer.value = model.get("layer");
  head.value = model.get("head");
  note.textContent = model.get("note");
  if (bytes(model.get("heat")).length) show.value = "relevance";
  limit();
  createImageBitmap(new Blob([bytes(model.get("film"))], { type: "image/webp" })).then((image) => {
    film = image;
    redraw();
  });
  return () => {
    if (playing) clearInterval(playing);
    for (const [name, call] of Object.entries(heard)) model.off(name, call);
  };
}

// What Python does in a notebook, from maps that a file carries.
function carried(data) {
  const decode = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const state = { layer: 0, head: 0, caption: "", note: data.note, heat: decode("") };
  for (const name of ["film", "colours"]) state[name] = decode(data[name]);
  state.info = data.info;
  const listeners = {};
  function put(values) {
    Object.assign(state, values);
    for (const name of Object.keys(values)) (listeners[`change:${name}`] ?? []).forEach((f) => f());
  }
  function answer(name) {
    if (name === "caption") {
      const found = Object.hasOwn(data.heats, state.caption) ? data.heats[state.caption] : null;
      if (found) put({ heat: decode(found.heat), note: found.note });
      else {
        const unknown = `This file has no map for “${state.caption}”: `;
        put({ heat: decode(""), note: `${unknown}choose one of its captions, or type in the notebook.` });
      }
    } else {
      const [weights, top] = data.maps[`${state.layer}/${state.head}`];
      put({ weights_top: top, weights: decode(weights) });
    }
  }
  answer("layer");
  const changed = new Set();
  return {
    get: (name) => state[name],
    set: (name, value) => {
      if (state[name] !== value) changed.add(name);
      state[name] = value;
    },
    save_changes: () => {
      const names = [...changed];
      changed.clear();
      names.forEach(answer);
    },
    on: (name, call) => (listeners[name] ??= []).push(call),
    off: () => {},
  };
}

export function standalone(el, data) {
  render({ model: carried(data), el });
}

export default { render };
