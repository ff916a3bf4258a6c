// The numbers behind the pictures. Clip 0 is the clip, clip 1 the one beside it.
// `info.frame_of[clip][i]` is the tile of the film that shows frame i of a clip; `info.pairs[i]` is the
// frame of clip 1 that stands below frame i of clip 0: of a clip played backwards, the same picture.

function numbers(view) {
  const { model, info, state, answers } = view;
  const { frames, rows, columns } = info;
  const patches = rows * columns;
  const patch = () => state.row * columns + state.column;
  const frameIn = (clip, frame) => (clip ? info.pairs[frame] : frame);

  let weights = null;

  function weight(clip, from, to, where = patch()) {
    const at = ((clip * patches + where) * frames + frameIn(clip, from)) * frames + frameIn(clip, to);
    return (weights[at] / 255) * model.get("weights_top");
  }
  function shares(clip) {
    const here = state.frame;
    return range(frames).map((i) => (state.side === "at" ? weight(clip, here, i) : weight(clip, i, here)));
  }
  function received(clip) {
    const sums = new Float32Array(frames * patches);
    for (let frame = 0; frame < frames; frame++)
      for (let where = 0; where < patches; where++)
        for (let from = 0; from < frames; from++)
          sums[frame * patches + where] += weight(clip, from, frame, where);
    return sums;
  }
  function stored(values, clip, top) {
    if (!values.length) return null;
    return Float32Array.from(range(frames * patches), (i) => {
      const frame = frameIn(clip, Math.floor(i / patches));
      return (values[(clip * frames + frame) * patches + (i % patches)] / 255) * top;
    });
  }
  function heat(clip, slot) {
    if (state.colour === "received") return received(clip);
    if (wantsPatches(view)) return patchHeat(view, clip);
    if (state.colour === "spatial") return stored(bytes(model.get("spatial")), clip, model.get("spatial_top"));
    if (state.colour === "relevance") return stored(answers[slot].heat, clip, answers[slot].top);
    if (state.colour === "given") return received(clip);
    return null;
  }
  function lane(name, clip, slot) {
    const matrix = (i, j) => weight(clip, i, j);
    return { name, clip, values: heat(clip, slot), shares: () => shares(clip), matrix, signed: false };
  }
  function difference(a, b) {
    const both = a.values && b.values;
    const values = both ? a.values.map((value, i) => value - b.values[i]) : null;
    const matrix = (i, j) => a.matrix(i, j) - b.matrix(i, j);
    const minus = () => range(frames).map((i) => a.shares()[i] - b.shares()[i]);
    return { name: "A − B, the difference in percentage points", clip: 0, values, shares: minus, matrix, signed: true };
  }
  function lanes() {
    // what stands in rows below one another
    weights = bytes(model.get("weights"));
    if (state.compare === "none") return [lane(info.clips[0], 0, 0)];
    const [clip, slot] = state.compare === "clip" ? [1, 0] : [0, 1];
    const called = (i) => (state.compare === "clip" ? info.clips[i] : `“${answers[i].caption || "no caption yet"}”`);
    const [a, b] = [lane(`A: ${called(0)}`, 0, 0), lane(`B: ${called(1)}`, clip, slot)];
    return [a, b, difference(a, b)];
  }
  function scale(found) {
    // the value of the strongest colour: one for all that stands beside one another
    if (state.colour === "relevance") {
      const fits = [info.best, ...answers.filter(({ effects }) => effects).map(({ top, effects }) => [effects[0][0], top])];
      return fits.reduce((best, one) => (one[0] > best[0] ? one : best))[1]; // of the caption that fits best
    }
    return largest(found.flatMap((one) => (one.values ? [largest(one.values)] : [])));
  }
  function cosine(effects, clip, cut) {
    if (!cut) return effects[clip][0];
    if (cut.head) return effects[clip][cut.layer * info.heads + cut.head];
    return effects[clip][1 + info.layers * info.heads + frameIn(clip, cut.frame)]; // the frame that stands below the tick
  }
  return { patches, patch, frameIn, lanes, scale, cosine };
}

const UNITS = {
  received: ["0", (top) => `${rounded(top)} × an even share`, "temporal attention that a patch receives from all frames, in this layer and head"],
  spatial: ["0%", (top) => `${rounded(100 * top)}%`, "spatial attention: what share of its frame’s video CLS token a patch gets, in this layer and head"],
  given: ["0", (top) => `${rounded(top)} × an even share`, "attention that the patch at this place gives the whole frame, from all frames, in this layer and head"],
  relevance: ["0", (top) => `${rounded(top)} or more, scaled to the cosine`, "relevance, scaled: all patches of a caption add up to its cosine, and the strongest colour is that of the caption that fits best"],
};

// How frames are called, and what a share of attention is a share of. `info.step` frames make one time of a model;
// in a `joint` one a patch looks at all places, and a share is what a whole time gets.
function wordsOf({ step, joint }) {
  const time = step > 1 ? "time" : "frame";
  const number = (i) => (step > 1 ? `${i * step + 1} to ${(i + 1) * step}` : i + 1);
  const frame = (i) => `frame${step > 1 ? "s" : ""} ${number(i)}`;
  const own = {
    what: "temporal attention",
    where: `at its own place in each ${time}`,
    by: "is looked at by",
    column: "is looked at by",
    begin: (place, i, side) => `${place} of ${frame(i)} ${side === "at" ? "looks at" : "is looked at by"}`,
  };
  const whole = {
    what: "attention",
    where: `all places of a ${time} together`,
    by: `of each ${time} looks at this one`,
    column: "is looked at from here",
    begin: (place, i, side) => (side === "at" ? `${place} of ${frame(i)} looks at` : `${place} looks at ${frame(i)} from`),
  };
  return { time, number, frame, last: (i) => (i + 1) * step, ...(joint ? whole : own) };
}
