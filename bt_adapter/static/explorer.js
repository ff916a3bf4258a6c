// Attention over time of one clip, under the mouse and the keyboard: `default.render` for a notebook (anywidget),
// `standalone` for a file. `model` holds the data: see Explorer in nbs/workshop/explorer/views.ipynb. Text reaches
// the page by textContent only. The files explorer_*.js beside this one stand above it in one ES module.

function begin(model, el) {
  const info = model.get("info");
  make("style", { parent: el, text: STYLE });
  const root = make("section", { parent: el, class: "bta", "aria-label": info.title });
  const state = { frame: 0, row: Math.floor(info.rows / 2), column: Math.floor(info.columns / 2), pinned: false };
  Object.assign(state, { colour: "clip", side: "at", compare: "none", opacity: 0.85, grid: false, cut: null, lane: 0 });
  const none = () => ({ caption: "", note: "", effects: null, top: 0, heat: new Uint8Array(0) });
  const view = { model, info, root, state, on: {}, answers: [none(), none()], none, film: null, playing: null };
  const placed = (names) => !info.parts.length || names.split(" ").some((name) => info.parts.includes(name));
  view.part = (names, element) => (element.hidden = !placed(names)); // there with any of these parts
  view.words = wordsOf(info);
  view.numbers = numbers(view);
  view.colours = bytes(model.get("colours"));
  if (typeof DecompressionStream === "undefined") info.most = 0; // an old browser shows the CLS token alone
  const makers = [makeHead, makeControls, makePlayer, makeCaptions, makeInfo, makeStage, makeOverview, makeBars, makeExports];
  makers.forEach((maker) => maker(view));
  return view;
}

// ---- telling

const called = (state) => `layer ${state.layer + 1}, ${state.head ? `head ${state.head}` : "mean over heads"}`;

function sentence({ state, lanes, info, numbers, words }) {
  const begun = words.begin(`Row ${state.row + 1}, column ${state.column + 1}`, state.frame, state.side);
  const most = (lane) =>
    lane.shares().map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, 3)
      .map(([share, i]) => `${words.frame(numbers.frameIn(lane.clip, i))} ${percent(share)}`).join(", ");
  const other = state.compare === "clip" ? ` In ${info.clips[1]}: ${most(lanes[1])}.` : "";
  return `${begun} ${most(lanes[0])}.${other}`;
}

function heatSentence(view) {
  const { state, lanes, numbers } = view;
  if (wantsPatches(view)) return patchSentence(view);
  const { values } = lanes[state.lane];
  if (!values) return "";
  const own = values[state.frame * numbers.patches + numbers.patch()];
  if (state.colour === "spatial") return ` Its part of spatial attention: ${rounded(100 * own)}%.`;
  return ` Its ${state.colour === "relevance" ? "relevance" : COLOURS[state.colour]}: ${rounded(own)}.`;
}

function tell(view, aloud) {
  const text = sentence(view) + heatSentence(view);
  if (view.on.said.textContent !== text) view.on.said.textContent = text;
  if (aloud) view.on.aloud.textContent = text; // a screen reader hears the keyboard, not the mouse
}

function sayWhatIsMissing(view) {
  const { on, state, lanes, info, numbers, words } = view;
  const missing = state.colour === "relevance" && !lanes[state.lane].values;
  const shown = numbers.frameIn(lanes[state.lane].clip, state.frame);
  const untrained = info.trained && words.last(shown) > info.trained;
  const why = missing ? "No caption, no relevance: write one above and press Enter." : "";
  const noise = untrained ? `Noise, beyond the ${info.trained} frames of training: ${words.frame(shown)}.` : "";
  const late = wantsPatches(view) && !patchesThere(view) ? "Where this patch looks in its frame is on its way." : "";
  on.over.textContent = [why, late, noise].filter(Boolean).join(" ");
  on.over.hidden = !on.over.textContent;
}

// ---- drawing

function meaning(view) {
  const { info, state } = view;
  if (wantsPatches(view)) return patchMeaning(view);
  const hint = state.colour === "spatial" && info.most ? " Pin a patch to see where it looks in its frame." : "";
  return state.colour in UNITS ? `Colour: ${UNITS[state.colour][2]}.${hint}` : "";
}

function drawScales(view) {
  const { on, state, lanes, top } = view;
  const known = state.colour in UNITS;
  const text = meaning(view);
  if (on.unit.textContent !== text) on.unit.textContent = text;
  for (const { box, low, ramp, high, signed } of on.scales) {
    box.hidden = !known || !lanes.some((lane) => lane.values && lane.signed === signed);
    if (box.hidden) continue;
    const [least, most] = UNITS[state.colour];
    paintScale(view, ramp, signed);
    low.textContent = signed ? `A − B: −${most(top)}` : least;
    high.textContent = signed ? `+${most(top)}` : most(top);
    box.setAttribute("aria-label", `Colours from ${low.textContent} to ${high.textContent}`);
  }
}

function gaugeOf(share, signed) {
  if (!signed) return [0, within(share, 2)]; // full at 100%
  return share < 0 ? [0.5 + share / 2, -share / 2] : [0.5, share / 2];
}

function drawCell(view, lane, value, { cell, canvas, share, gauge, frame }) {
  paint(view, canvas, lane, frame, view.state.grid);
  const [left, width] = gaugeOf(value, lane.signed);
  share.textContent = lane.signed ? points(value) : percent(value);
  Object.assign(gauge.style, { left: `${100 * left}%`, width: `${100 * width}%` });
  cell.toggleAttribute("data-now", frame === view.state.frame);
}

function drawLane(view, row, lane) {
  const { info, state, words } = view;
  row.name.textContent = view.lanes.length > 1 ? lane.name : "";
  const shares = lane.shares();
  row.cells.forEach((cell, i) => drawCell(view, lane, shares[i], cell));
  const top = largest(range(info.frames ** 2).map((i) => lane.matrix(Math.floor(i / info.frames), i % info.frames)));
  matrixPicture(row.time.canvas, info.frames, (i, j) => lane.matrix(i, j) / (top || 1), lane.signed ? null : view.viridis);
  const what = lane.signed ? `−${percent(top)} (blue) to +${percent(top)} (orange)` : `0% (dark) to ${percent(top)} (yellow)`;
  const text = `This patch through time: ${words.time} that looks (down), ${words.time} it looks at (across). ${what}.`;
  row.time.text.textContent = view.lanes.length > 1 ? `${lane.name.split(":")[0].split(",")[0]}: ${what}.` : text;
  row.time.canvas.setAttribute("aria-label", `${text} Marked in the strip: ${words.frame(state.frame)}.`);
}

function draw(view, aloud = false) {
  const { on, state, model } = view;
  if (!view.film || !view.lanes || !model.get("weights").byteLength) return;
  if (state.colour === "spatial") weigh(view); // a pinned patch has a picture of its own
  if (wantsPatches(view)) askPatches(view, aloud);
  const { lanes } = view;
  paint(view, on.screen, lanes[state.lane], state.frame, true);
  on.rows.forEach((row, i) => drawLane(view, row, lanes[i]));
  tell(view, aloud);
  sayWhatIsMissing(view);
  on.pin.setAttribute("aria-pressed", state.pinned);
  on.pin.textContent = state.pinned ? "Free the patch" : "Pin the patch";
  view.changed();
}

function drawMeaning({ on, state, words: { time, where, what } }) {
  on.means.textContent =
    state.side === "at"
      ? `How the chosen patch shares out its ${what}, ${where}, ${called(state)}: a bar is full at 100%, all frames together make 100%.`
      : `How much of its ${what} the patch gives the chosen ${time}, ${where}, ${called(state)}: each ${time} has 100% of its own, where its bar is full.`;
}

function weigh(view) {
  view.lanes = view.numbers.lanes();
  view.state.lane = within(view.state.lane, view.lanes.length);
  view.top = view.numbers.scale(view.lanes);
  drawScales(view);
}

function redraw(view) {
  const { on } = view;
  weigh(view);
  if (on.rows?.length !== view.lanes.length) {
    makeLanes(view, view.lanes);
    wireLanes(view);
  }
  drawMeaning(view);
  drawOverview(view);
  drawBars(view);
  draw(view);
}

function drawOverview(view) {
  const { on, info, model, state, words } = view;
  const [values, t] = [bytes(model.get("overview")), info.frames];
  for (const { tile, button, canvas, box, layer, head } of on.tiles) {
    const at = (layer * (info.heads + 1) + head) * t * t;
    matrixPicture(canvas, t, (i, j) => values[at + i * t + j] / 255, view.viridis);
    button.setAttribute("aria-pressed", layer === state.layer && head === state.head);
    button.disabled = Boolean(info.held) && !info.held.includes(`${layer}/${head}`);
    if (button.disabled) button.title = "This map had no space in the file.";
    const cut = state.cut?.head === head && state.cut.layer === layer;
    tile.toggleAttribute("data-cut", cut);
    if (box) box.checked = !cut;
  }
  const first = info.clips.length > 1 ? ` Of ${info.clips[0]}.` : "";
  const ticks = info.effects ? " Untick a head or a frame, and see what the captions lose." : "";
  on.mapMeans.textContent =
    `The mean over patches: ${words.time} that looks (down), ${words.time} it looks at (across), dark 0% to yellow ${percent(info.overview_top)}; ` +
    `the same scale for all. Click to choose.${first}${ticks}`;
}

// ---- captions as bars

function rowsOfBars({ info, answers }) {
  const found = new Map(Object.entries(info.known));
  answers.forEach(({ caption, effects }) => effects && found.set(caption, effects));
  const rows = [...found].map(([caption, effects]) => ({ caption, effects }));
  return rows.sort((a, b) => b.effects[0][0] - a.effects[0][0]).slice(0, 10);
}

function oneBar(view, cell, effects, clip) {
  const { numbers, state } = view;
  const [before, now] = [numbers.cosine(effects, clip, null), numbers.cosine(effects, clip, state.cut)];
  const gauge = make("div", { parent: cell, class: clip ? "bta-gauge bta-second" : "bta-gauge" });
  make("div", { parent: gauge, style: `width: ${100 * Math.max(0, now)}%` });
  if (state.cut) make("div", { parent: gauge, class: "bta-before", style: `left: ${100 * Math.max(0, before)}%` });
  const shown = (value) => value.toFixed(2).replace("-", "−");
  return state.cut ? `${shown(before)} → ${shown(now)}` : shown(now);
}

function drawBars(view) {
  const { on, info, state, answers } = view;
  const clips = range(state.compare === "clip" ? 2 : 1);
  const focused = [...on.bars.querySelectorAll("button")].indexOf(document.activeElement);
  on.bars.replaceChildren();
  for (const { caption, effects } of rowsOfBars(view)) {
    const button = make("button", { parent: on.bars, type: "button", text: caption });
    button.setAttribute("aria-pressed", answers.some((answer) => answer.caption === caption));
    button.addEventListener("click", () => ask(view, 0, caption));
    const cell = make("div", { parent: on.bars });
    const texts = clips.map((clip) => oneBar(view, cell, effects, clip));
    make("b", { parent: on.bars, text: texts.join(" | ") });
  }
  on.bars.querySelectorAll("button")[focused]?.focus();
  const both = clips.length > 1 ? ` Above ${info.clips[0]}, below ${info.clips[1]}.` : "";
  on.barMeans.textContent = `Cosine of the clip and each caption: a bar is full at 1 and empty at 0 or less.${both} Click one to see its relevance.`;
  on.computed.textContent = info.effects ? whatWasCut(view) : "";
}

function whatWasCut({ info, numbers, state: { compare, cut } }) {
  if (!cut) return info.effects;
  const head = `Layer ${cut.layer + 1}, head ${cut.head} hands on nothing.`;
  const below = compare === "clip" && !cut.head ? `, in ${info.clips[1]} to frame ${numbers.frameIn(1, cut.frame) + 1}` : "";
  const frame = `Nobody attends to frame ${cut.frame + 1}${below}, through time, in all layers and heads.`;
  return `${cut.head ? head : frame} The thin line is the cosine before. ${info.effects}`;
}

function markFrames({ on, state }) {
  on.frameTicks.forEach((box, i) => {
    box.checked = state.cut?.frame !== i;
    box.closest(".bta-frame").toggleAttribute("data-cut", !box.checked);
  });
}

function cutOut(view, cut, box) {
  view.state.cut = box.checked ? null : cut; // one at a time: effects of several do not add up
  markFrames(view);
  drawOverview(view);
  drawBars(view);
  view.changed();
}

// ---- mouse, touch and keyboard

function placeUnder(view, event, canvas) {
  const box = canvas.getBoundingClientRect();
  const at = (share, count) => within(Math.floor(share * count), count);
  const row = at((event.clientY - box.top) / box.height, view.info.rows);
  return { row, column: at((event.clientX - box.left) / box.width, view.info.columns) };
}

function point(view, event, canvas, frame, lane) {
  if (view.state.pinned || event.pointerType === "touch") return;
  goTo(view, { ...placeUnder(view, event, canvas), frame, lane });
}

function pin(view, event, canvas, frame, lane) {
  const { state } = view;
  const place = { ...placeUnder(view, event, canvas), frame, lane };
  const again = state.pinned && Object.entries(place).every(([name, value]) => state[name] === value);
  state.pinned = !again;
  goTo(view, place);
}

function goTo(view, place, aloud = false) {
  Object.assign(view.state, place);
  draw(view, aloud);
}

function free(view) {
  view.state.pinned = false;
  draw(view);
}

function wireCanvas(view, canvas, frame, lane) {
  canvas.addEventListener("pointermove", (event) => point(view, event, canvas, frame(), lane()));
  canvas.addEventListener("click", (event) => pin(view, event, canvas, frame(), lane()));
}

function wireLanes(view) {
  view.on.rows.forEach(({ cells }, lane) =>
    cells.forEach(({ canvas, frame }) => wireCanvas(view, canvas, () => frame, () => lane)),
  );
  view.on.frameTicks.forEach((box, frame) =>
    box.addEventListener("change", () => cutOut(view, { frame }, box)),
  );
  markFrames(view);
}

function steps({ frames, rows, columns }) {
  const up = { ArrowUp: ["row", -1, rows], ArrowLeft: ["column", -1, columns], PageUp: ["frame", -1, frames] };
  const down = { ArrowDown: ["row", 1, rows], ArrowRight: ["column", 1, columns], PageDown: ["frame", 1, frames] };
  return { ...up, ...down };
}

function pressed(view, event) {
  const { state, info, on } = view;
  const known = steps(info);
  if (event.target !== on.stage) return; // a tick among the frames has keys of its own
  if (event.key === " ") toggle(view);
  else if (event.key === "Enter") {
    state.pinned = !state.pinned;
    draw(view, true);
  } else if (event.key in known) {
    const [axis, step, count] = known[event.key];
    state.pinned = true; // what the keyboard chose stays when the mouse moves
    goTo(view, { [axis]: within(state[axis] + step, count) }, true);
  } else return;
  event.preventDefault();
  event.stopPropagation(); // the notebook has uses of its own for these keys
}

function toggle(view) {
  if (view.playing) clearInterval(view.playing);
  const next = () => goTo(view, { frame: (view.state.frame + 1) % view.info.frames });
  view.playing = view.playing ? null : setInterval(next, 1000 / view.info.fps);
  view.on.play.textContent = view.playing ? "⏸ Pause" : "▶ Play";
}

// ---- to and from Python, or what stands in a file

function limit({ on, info }) {
  if (!info.held) return; // a notebook has every head
  [...on.head.options].forEach((o) => (o.disabled = !info.held.includes(`${on.layer.value}/${o.value}`)));
  if (on.head.selectedOptions[0].disabled) on.head.value = 0;
}

function choose(view) {
  const { on, state, model } = view;
  limit(view);
  Object.assign(state, { layer: Number(on.layer.value), head: Number(on.head.value) });
  model.set("layer", state.layer);
  model.set("head", state.head);
  model.save_changes();
}

function pick(view, layer, head) {
  view.on.layer.value = layer;
  limit(view);
  view.on.head.value = head;
  choose(view);
}

function ask(view, slot, caption) {
  view.on.captions[slot].value = caption;
  view.model.set("question", { slot, caption });
  view.model.save_changes();
}

function askAll(view) {
  const slots = view.state.compare === "caption" ? [0, 1] : [0];
  slots.forEach((slot) => view.on.captions[slot].value !== view.answers[slot].caption && ask(view, slot, view.on.captions[slot].value));
}

function hear(view) {
  const { model, answers, on } = view;
  const answer = model.get("answer");
  if (!answer.note) return;
  answers[answer.slot] = { ...view.none(), ...answer, heat: bytes(model.get("heat")).slice() };
  if (answers[answer.slot].heat.length) view.state.colour = on.colour.value = "relevance";
  on.note.textContent = answers.map(({ note }) => note).filter(Boolean).join(" ");
  redraw(view);
}

function settle(view) {
  const { on, state } = view;
  Object.assign(state, { colour: on.colour.value, side: on.side.value, compare: on.compare.value });
  Object.assign(state, { opacity: on.opacity.value / 100, grid: on.grid.checked });
  on.captions[1].parentElement.hidden = state.compare !== "caption";
  redraw(view);
}

function wire(view) {
  const { on, model } = view;
  on.layer.addEventListener("change", () => choose(view));
  on.head.addEventListener("change", () => choose(view));
  for (const name of ["colour", "side", "compare", "grid"]) on[name].addEventListener("change", () => settle(view));
  on.opacity.addEventListener("input", () => settle(view));
  on.play.addEventListener("click", () => toggle(view));
  on.pin.addEventListener("click", () => (view.state.pinned ? free(view) : goTo(view, { pinned: true })));
  on.ask.addEventListener("click", () => askAll(view));
  on.captions.forEach((box) => box.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") askAll(view);
  }));
  on.tiles.forEach(({ button, box, layer, head }) => {
    button.addEventListener("click", () => pick(view, layer, head));
    box?.addEventListener("change", () => cutOut(view, { layer, head }, box));
  });
  on.stage.addEventListener("keydown", (event) => pressed(view, event));
  view.root.addEventListener("keydown", (event) => event.key === "Escape" && free(view));
  wireCanvas(view, on.screen, () => view.state.frame, () => view.state.lane);
  wireExports(view);
}

// ---- what is taken along

// What the page says beside and over its pictures.
function linesOfSheet(view) {
  const { info, state, on, answers } = view;
  const asked = state.colour === "relevance" ? answers.map(({ note }) => note).filter(Boolean) : [];
  const warned = [...info.notices, on.over.textContent];
  return [info.title, `${called(state)}. ${on.said.textContent}`, on.means.textContent, on.unit.textContent, ...asked, ...warned].filter(Boolean);
}

function sheet(view) {
  const lanes = view.lanes.map((lane, at) => {
    const shares = lane.shares();
    const label = (i) => view.words.frame(view.numbers.frameIn(lane.clip, i));
    const share = (i) => (lane.signed ? points(shares[i]) : percent(shares[i]));
    const frame = ({ canvas }, i) => ({ canvas, label: label(i), share: share(i), part: gaugeOf(shares[i], lane.signed) });
    return { name: lane.name, frames: view.on.rows[at].cells.map(frame) };
  });
  const there = view.on.scales.filter(({ box }) => !box.hidden);
  const scales = there.map(({ low, ramp, high }) => ({ canvas: ramp, low: low.textContent, high: high.textContent }));
  return sheetOf(linesOfSheet(view), lanes, scales);
}

// The whole picture of each frame, beside its value at the chosen patch.
function heatColumns(view) {
  const { info, state, lanes, numbers } = view;
  if (!lanes[0].values) return { names: [], of: () => [] };
  const { patches } = numbers;
  const [what, facts] = wantsPatches(view) ? [patchColour(view), patchFacts(view)] : [state.colour, []];
  const places = range(patches).map((i) => `${what} at row ${Math.floor(i / info.columns) + 1} column ${(i % info.columns) + 1}`);
  const of = (lane, frame) => [
    ...facts.map(([, value]) => (lane.signed ? "" : value(lane, frame))),
    ...lane.values.subarray(frame * patches, (frame + 1) * patches),
  ];
  return { names: [...facts.map(([name]) => name), ...places], of };
}

function table(view) {
  const { state, lanes, numbers, words } = view;
  const heat = heatColumns(view);
  const names = ["lane", "layer", "head", "row", "column", "chosen frame", "frame", state.side === "at" ? "looks at" : words.column, state.colour];
  const facts = [state.layer + 1, state.head || "mean", state.row + 1, state.column + 1];
  const rows = lanes.flatMap((lane) =>
    lane.shares().map((share, i) => {
      const own = lane.values ? lane.values[i * numbers.patches + numbers.patch()] : "";
      const frames = [state.frame, i].map((frame) => words.number(numbers.frameIn(lane.clip, frame)));
      return [lane.name, ...facts, ...frames, share, own, ...heat.of(lane, i)];
    }),
  );
  return [[...names, ...heat.names], ...rows].map((row) => row.map(cellOf).join(",")).join("\n") + "\n";
}

function wireExports(view) {
  const { on } = view;
  on.SVG.addEventListener("click", () => download("attention.svg", svgAddress(sheet(view))));
  on.PNG.addEventListener("click", () => pngOf(sheet(view), (address) => download("attention.png", address)));
  on.CSV.addEventListener("click", () => download("attention.csv", `data:text/csv;charset=utf-8,${encodeURIComponent(table(view))}`));
}

// ---- the whole

function start(view) {
  const { on, model } = view;
  on.layer.value = model.get("layer");
  on.head.value = model.get("head");
  view.state.layer = Number(on.layer.value);
  view.state.head = Number(on.head.value);
  limit(view);
  wire(view);
  return createImageBitmap(new Blob([bytes(model.get("film"))], { type: "image/webp" })).then((image) => {
    view.film = image;
    settle(view);
    hear(view);
  });
}

function render({ model, el, changed = () => {} }) {
  const view = begin(model, el);
  view.changed = () => changed(view);
  view.viridis = bytes(model.get("viridis"));
  const heard = { "change:weights": () => redraw(view), "change:answer": () => hear(view) };
  heard["change:patches_of"] = () => hearPatches(view);
  for (const [name, call] of Object.entries(heard)) model.on(name, call);
  view.ready = start(view);
  const watch = new ResizeObserver(() => draw(view));
  watch.observe(view.root);
  const leave = () => {
    if (view.playing) clearInterval(view.playing);
    watch.disconnect();
    for (const [name, call] of Object.entries(heard)) model.off(name, call);
  };
  return Object.assign(leave, { view });
}

// What Python does in a notebook, from maps that a file carries.
function carried(data) {
  const decode = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const state = { layer: 0, head: 0, answer: {}, heat: decode(""), patches_of: {}, info: data.info };
  for (const name of ["film", "colours", "viridis", "overview"]) state[name] = decode(data[name]);
  const listeners = {};
  function put(values) {
    Object.assign(state, values);
    for (const name of Object.keys(values)) (listeners[`change:${name}`] ?? []).forEach((f) => f());
  }
  function reply({ slot, caption }) {
    const found = Object.hasOwn(data.answers, caption) ? data.answers[caption] : null;
    const unknown = `This file has no map for “${caption}”: choose one of its captions, or type in the notebook.`;
    const { heat, ...answer } = found ?? { heat: "", note: unknown, top: 0, effects: null };
    put({ heat: decode(heat), answer: { slot, caption, ...answer } });
  }
  function lookUp(asked) {
    const [layer, head] = asked.split("/"); // a head that had no space is told by the mean over heads
    const found = Object.hasOwn(data.patches, asked) ? head : 0;
    put({ patches: decode(data.patches[`${layer}/${found}`]), patches_of: { asked, head: Number(found) } });
  }
  function answer(name) {
    if (name === "question") return reply(state.question);
    if (name === "wanted") return lookUp(state.wanted);
    const [weights, weights_top, spatial, spatial_top] = data.maps[`${state.layer}/${state.head}`];
    put({ weights_top, spatial: decode(spatial), spatial_top, weights: decode(weights) });
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

// The state of a file in its address, so that a link opens what is seen.
function linkOf({ state, answers }) {
  const { layer, head, frame, row, column, colour, side, compare, grid, cut } = state;
  const known = { layer: layer + 1, head, frame: frame + 1, row: row + 1, column: column + 1, colour, side, compare };
  Object.assign(known, { opacity: Math.round(100 * state.opacity), lane: state.lane + 1 });
  if (state.pinned) known.pin = 1;
  if (grid) known.grid = 1;
  if (cut) known.cut = cut.head ? `${cut.layer + 1}.${cut.head}` : cut.frame + 1;
  answers.forEach(({ caption }, i) => caption && (known[i ? "against" : "caption"] = caption));
  return `#${new URLSearchParams(known)}`;
}

function cutOf(text, info) {
  const [first, head] = (text ?? "").split(".").map(Number);
  if (!info.effects || !Number.isInteger(first) || first < 1) return null;
  if (head === undefined) return first <= info.frames ? { frame: first - 1 } : null;
  return first <= info.layers && head >= 1 && head <= info.heads ? { layer: first - 1, head } : null;
}

function openLink(view, link) {
  const { info, on, state } = view;
  const asked = new URLSearchParams(link.replace(/^#/, ""));
  const number = (name, other, count) => within(Math.floor(Number(asked.get(name) ?? other)) || 0, count);
  for (const [name, count] of [["frame", info.frames], ["row", info.rows], ["column", info.columns]])
    state[name] = within(number(name, state[name] + 1, count + 1) - 1, count);
  state.pinned = asked.has("pin");
  on.grid.checked = asked.has("grid");
  on.opacity.value = number("opacity", on.opacity.value, 101);
  for (const name of ["colour", "side", "compare"])
    if ([...on[name].options].some((o) => o.value === asked.get(name))) on[name].value = asked.get(name);
  pick(view, within(number("layer", 1, info.layers + 1) - 1, info.layers), number("head", 0, info.heads + 1));
  settle(view);
  ["caption", "against"].forEach((name, slot) => asked.get(name) && ask(view, slot, asked.get(name)));
  if ([...on.colour.options].some((o) => o.value === asked.get("colour"))) on.colour.value = asked.get("colour");
  state.cut = cutOf(asked.get("cut"), info);
  state.lane = Math.max(0, number("lane", 1, 4) - 1); // `redraw` keeps it among those that are there
  settle(view); // an answer chose a colour of its own
  markFrames(view);
}

export function standalone(el, data) {
  let opened = false;
  let waiting = null;
  const write = (view) => history.replaceState(null, "", linkOf(view));
  const changed = (view) => {
    clearTimeout(waiting); // browsers refuse many changes of an address in a short time
    if (opened) waiting = setTimeout(write, 250, view);
  };
  const link = location.hash;
  const { view } = render({ model: carried(data), el, changed });
  view.ready.then(() => {
    if (link) openLink(view, link);
    opened = true;
  });
}

export default { render };
