// Where the patches of a frame look within it: what a pinned patch shows in place of its frame’s video CLS token.
// They come when they are wanted, deflated: see nbs/workshop/explorer/patches.ipynb.

const wantsPatches = ({ info, state }) => Boolean(info.most) && state.pinned && state.colour === "spatial";
const askedFor = ({ layer, head }) => `${layer}/${head}`;
const patchesThere = ({ patches, state }) => (patches?.asked === askedFor(state) ? patches : null);

function askPatches(view, aloud) {
  const [asked, { model }] = [askedFor(view.state), view];
  if (view.asked === asked) return;
  Object.assign(view, { asked, aloud });
  if (model.get("patches_of").asked === asked) return hearPatches(view);
  model.set("wanted", asked);
  model.save_changes();
}

function inflated(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Of each patch of each frame of each clip: its largest share, what CLS gets, what patches give it, and a byte for each other.
function unpacked({ clips, frames, rows, columns }, data) {
  const count = clips.length * frames * rows * columns;
  const scales = new Float32Array(data, 0, 3);
  const scaled = (fine, at, full) => Float32Array.from(fine, (x) => (x / full) * scales[at]);
  const tops = scaled(new Uint16Array(data, 12, count), 0, 65535);
  const [cls, got] = [1, 2].map((i) => scaled(new Uint8Array(data, 12 + (1 + i) * count, count), i, 255));
  return { tops, cls, got, values: new Uint8Array(data, 12 + 4 * count) };
}

function hearPatches(view) {
  const { asked, head } = view.model.get("patches_of");
  return inflated(bytes(view.model.get("patches"))).then((data) => {
    if (asked !== askedFor(view.state)) return; // another layer or head was chosen meanwhile
    view.patches = { asked, head, ...unpacked(view.info, data) };
    draw(view, view.aloud);
  });
}

// In every frame: where the patch at the chosen place looks, or who looks at it.
function patchHeat(view, clip) {
  const [{ info, numbers, state }, found] = [view, patchesThere(view)];
  if (!found) return null;
  const { patches } = numbers;
  return Float32Array.from(range(info.frames * patches), (i) => {
    const frame = (clip * info.frames + numbers.frameIn(clip, Math.floor(i / patches))) * patches;
    const [from, to] = state.side === "at" ? [numbers.patch(), i % patches] : [i % patches, numbers.patch()];
    return (found.values[(frame + from) * patches + to] / 255) * found.tops[frame + from];
  });
}

// How much of a frame is drawn: of all that the patch gives, CLS included, or of all that patches give it.
function drawnOf(view, lane, frame) {
  const [{ info, numbers, state }, { cls, got }] = [view, patchesThere(view)];
  const { patches } = numbers;
  const row = lane.values.subarray(frame * patches, (frame + 1) * patches);
  const at = (lane.clip * info.frames + numbers.frameIn(lane.clip, frame)) * patches + numbers.patch();
  const sum = row.reduce((a, b) => a + b, 0);
  return { row, share: state.side === "at" ? sum : sum / (got[at] || 1), cls: cls[at] };
}

const toldLane = ({ state, lanes }) => lanes[lanes[state.lane].signed ? 0 : state.lane]; // a difference gives no shares

function patchMeaning(view) {
  const [{ info, numbers, state }, found, lane] = [view, patchesThere(view), toldLane(view)];
  if (!found) return "Colour: spatial attention of the pinned patch.";
  const own = called({ ...state, head: found.head });
  const looks = state.side === "at";
  const what = looks
    ? `spatial attention of the pinned patch, ${own}: in every frame, what share of its attention the patch at this place gives each patch of that frame.`
    : `spatial attention to the pinned patch, ${own}: in every frame, what share of its attention each patch of that frame gives the one at this place.`;
  const mean = found.head === state.head ? "" : ` Head ${state.head} had no space in this file.`;
  if (info.most === numbers.patches) return `Colour: ${what}${mean}`;
  const share = percent(drawnOf(view, lane, state.frame).share);
  const part = `${share} of ${looks ? "its attention" : "what patches give it"}`;
  const frame = `frame ${numbers.frameIn(lane.clip, state.frame) + 1}`;
  return `Colour: ${what}${mean} Shortened to fit this file: each patch with the ${info.most} of ${numbers.patches} that it looks at most; in ${frame} that is ${part}.`;
}

function patchSentence(view) {
  const [{ info, state }, lane] = [view, toldLane(view)];
  if (!lane.values) return "";
  const { row, cls } = drawnOf(view, lane, state.frame);
  const name = (i) => (i === view.numbers.patch() ? "itself" : `row ${Math.floor(i / info.columns) + 1}, column ${(i % info.columns) + 1}`);
  const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3);
  const whose = state.side === "by" ? " of its attention" : "";
  const most = order.map((i, at) => `${name(i)} (${rounded(100 * row[i])}%${at ? "" : whose})`).join(", ");
  if (state.side === "by") return ` In its frame it is looked at most by ${most}.`;
  return ` In its frame it looks most at ${most}; the video CLS token gets ${rounded(100 * cls)}%.`;
}

// What a CSV says of it: the name of the numbers, and what else it knows of a frame.
function patchColour(view) {
  const mean = patchesThere(view).head === view.state.head ? "" : " (mean over heads)";
  return `spatial, the patch ${view.state.side === "at" ? "looks at" : "is looked at by"}${mean},`;
}

function patchFacts(view) {
  const drawn = ["part that is drawn", (lane, frame) => drawnOf(view, lane, frame).share];
  const cls = ["spatial, the patch looks at the video CLS token", (lane, frame) => drawnOf(view, lane, frame).cls];
  return view.state.side === "at" ? [drawn, cls] : [drawn];
}
