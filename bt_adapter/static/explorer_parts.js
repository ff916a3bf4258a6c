// What stands on the page, part by part. Each maker puts its elements into `view.on`.

const KEYS =
  "Point at a patch; click or tap to pin it, once more or Esc to free it. Or press Tab until the frames have a ring: " +
  "arrow keys move, Page Up and Page Down change the frame, Enter pins, Space plays.";
const COLOURS = {
  clip: "the clip",
  received: "attention received",
  given: "attention given",
  spatial: "spatial attention",
  relevance: "relevance of the caption",
};

function makeHead(view) {
  const head = make("header", { parent: view.root, class: "bta-head" });
  make("h2", { parent: head, text: view.info.title });
  make("p", { parent: head, class: "bta-about", text: view.info.about });
  for (const notice of view.info.notices) make("p", { parent: head, class: "bta-notice", text: notice });
  view.part("title", head);
}

function makeControls({ info, root, on, part, words }) {
  const bar = make("div", { parent: root, class: "bta-bar" });
  on.layer = choice(bar, "Layer", range(info.layers).map((i) => [i, `layer ${i + 1}`]));
  const heads = range(info.heads).map((i) => [i + 1, `head ${i + 1}`]);
  on.head = choice(bar, "Head", [[0, "all, mean"], ...heads]);
  const there = { clip: true, received: !info.joint, given: info.joint, spatial: info.spatial, relevance: info.asks };
  on.colour = choice(bar, "Colour", Object.entries(COLOURS).filter(([name]) => there[name]));
  on.side = choice(bar, "The patch", [["at", "looks at"], ["by", words.by]]);
  const beside = [["none", "nothing"]];
  if (info.clips.length > 1) beside.push(["clip", info.clips[1]]);
  if (info.asks) beside.push(["caption", "another caption"]);
  on.compare = choice(bar, "Compare with", beside);
  on.opacity = labelled(bar, "Opacity", make("input", { type: "range", min: 0, max: 100, value: 85 }));
  on.grid = tick(bar, "Grid of patches", "grid");
  part("controls", bar);
}

function makePlayer({ root, on, part }) {
  const bar = make("div", { parent: root, class: "bta-bar" });
  on.play = make("button", { parent: bar, type: "button", text: "▶ Play" });
  on.pin = make("button", { parent: bar, type: "button", text: "Pin the patch", "aria-pressed": "false" });
  part("player", bar);
}

function makeCaptions({ info, root, on, part }) {
  const bar = make("div", { parent: root, class: "bta-bar" });
  const list = make("datalist", { parent: root, id: `bta-${Math.random().toString(36).slice(2)}` });
  info.captions.forEach((value) => make("option", { parent: list, value }));
  const box = (name) => {
    const input = make("input", { type: "text", list: list.id, placeholder: "what happens here? press Enter" });
    return labelled(bar, name, input, "bta-caption");
  };
  on.captions = [box("Caption"), box("Caption B")];
  on.ask = make("button", { parent: bar, type: "button", text: "Show" });
  part("caption", bar);
  if (!info.asks) bar.hidden = true;
}

function makeInfo({ root, on, part }) {
  const line = make("div", { parent: root, class: "bta-info" });
  on.note = make("p", { parent: line, class: "bta-note", role: "status" });
  const legend = make("div", { parent: line, class: "bta-legend" });
  on.scales = [false, true].map((signed) => {
    const box = make("div", { parent: legend, class: "bta-scale", role: "img", hidden: "" });
    const [low, ramp, high] = ["span", "canvas", "span"].map((tag) => make(tag, { parent: box }));
    box.title = "Above as over a black picture, below as over a white one.";
    return { box, low, ramp, high, signed };
  });
  on.unit = make("p", { parent: root, class: "bta-means" });
  for (const element of [legend, on.unit]) part("screen strip", element);
}

function makeStage({ root, on, part }) {
  const name = "Patches: arrow keys move, Page Up and Page Down change the frame, Enter pins, Escape frees";
  on.stage = make("div", { parent: root, class: "bta-stage", tabindex: 0, role: "application", "aria-label": name });
  const left = make("div", { parent: on.stage });
  on.screenBox = make("div", { parent: left, class: "bta-screen" });
  on.screen = make("canvas", { parent: on.screenBox });
  on.over = make("div", { parent: on.screenBox, class: "bta-over", hidden: "" });
  on.times = make("div", { parent: left, class: "bta-times" });
  const right = make("div", { parent: on.stage });
  on.means = make("p", { parent: right, class: "bta-means" });
  on.lanes = make("div", { parent: right });
  on.said = make("p", { parent: root, class: "bta-said" });
  on.aloud = make("p", { parent: root, class: "bta-aloud", "aria-live": "polite" });
  part("screen", on.screenBox);
  part("matrix", on.times);
  part("screen matrix", left);
  part("strip", right);
  const keys = make("p", { parent: root, class: "bta-keys", text: KEYS });
  for (const element of [on.stage, on.said, keys]) part("screen matrix strip", element);
}

function makeFrame(view, strip, lane, laneAt, i) {
  const { info, on, words } = view;
  const cell = make("div", { parent: strip, class: "bta-frame" });
  const canvas = make("canvas", { parent: cell });
  const line = make("div", { parent: cell, class: "bta-share" });
  const frame = view.numbers.frameIn(lane.clip, i);
  const number = words.number(frame);
  const box = info.effects && laneAt === 0 ? tick(line, `frame ${number} takes part`, number) : null;
  if (!box) make("span", { parent: line, text: number });
  const share = make("b", { parent: line });
  const gauge = make("div", { parent: make("div", { parent: cell, class: "bta-gauge" }) });
  if (info.trained && words.last(frame) > info.trained) {
    cell.setAttribute("data-untrained", "");
    make("span", { parent: line, text: "not trained" });
  }
  if (box) on.frameTicks.push(box);
  return { cell, canvas, share, gauge, frame: i };
}

function makeLanes(view, lanes) {
  const { info, on } = view;
  const across = lanes.length > 1 ? Math.min(info.frames, 8) : info.frames <= 8 ? Math.min(info.frames, 4) : 6;
  on.lanes.replaceChildren();
  on.times.replaceChildren();
  on.frameTicks = [];
  on.rows = lanes.map((lane, laneAt) => {
    const row = make("div", { parent: on.lanes, class: "bta-lane" });
    const name = make("h3", { parent: row });
    const strip = make("div", { parent: row, class: "bta-strip", style: `--across: ${across}` });
    const time = make("div", { parent: on.times, class: "bta-time" });
    const picture = { canvas: make("canvas", { parent: time, role: "img" }), text: make("p", { parent: time }) };
    return { name, time: picture, cells: range(info.frames).map((i) => makeFrame(view, strip, lane, laneAt, i)) };
  });
}

function makeTile(view, grid, layer, head) {
  const { info, on } = view;
  const tile = make("div", { parent: grid, class: "bta-tile" });
  const called = head ? `head ${head}` : "mean over heads";
  const name = `layer ${layer + 1}, ${called}`;
  const button = make("button", { parent: tile, type: "button", "aria-label": name, title: name });
  const canvas = make("canvas", { parent: button });
  const box = head && info.effects ? tick(tile, `${name} takes part`) : null;
  on.tiles.push({ tile, button, canvas, box, layer, head });
}

function makeOverview(view) {
  const { info, root, on, part } = view;
  on.below = make("div", { parent: root, class: "bta-below" });
  const section = make("section", { parent: on.below, class: "bta-section", "aria-label": "Layers and heads" });
  make("h3", { parent: section, text: "All layers and heads" });
  on.mapMeans = make("p", { parent: section, class: "bta-means" });
  const grid = make("div", { parent: section, class: "bta-tiles", style: `--heads: ${info.heads + 1}` });
  on.tiles = [];
  make("span", { parent: grid });
  ["mean", ...range(info.heads).map((i) => i + 1)].forEach((text) => make("span", { parent: grid, text }));
  for (const layer of range(info.layers)) {
    make("span", { parent: grid, text: `layer ${layer + 1}` });
    for (const head of range(info.heads + 1)) makeTile(view, grid, layer, head);
  }
  part("overview", section);
}

function makeBars({ on, info, part }) {
  const section = make("section", { parent: on.below, class: "bta-section", "aria-label": "Captions and their cosines" });
  make("h3", { parent: section, text: "How well captions fit" });
  on.barMeans = make("p", { parent: section, class: "bta-means" });
  on.bars = make("div", { parent: section, class: "bta-said-bars" });
  on.computed = make("p", { parent: section, class: "bta-means" });
  part("bars", section);
  if (!info.asks) section.hidden = true;
}

function makeExports({ root, on, part }) {
  const bar = make("div", { parent: root, class: "bta-bar bta-section" });
  for (const kind of ["PNG", "SVG", "CSV"]) on[kind] = make("button", { parent: bar, type: "button", text: `Save ${kind}` });
  part("export", bar);
}
