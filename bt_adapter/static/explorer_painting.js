// Frames with their heat, the legend in the same colours, and the mark of the patch.

function heatPicture(view, lane, frame) {
  const { rows, columns } = view.info;
  const image = new ImageData(columns, rows);
  for (let patch = 0; patch < rows * columns; patch++) {
    const share = lane.values[frame * rows * columns + patch] / (view.top || 1);
    image.data.set(tint(lane.signed ? null : view.colours, share, view.state.opacity), 4 * patch);
  }
  const small = make("canvas", { width: columns, height: rows });
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

function drawGrid(brush, wide, high, { rows, columns }) {
  brush.strokeStyle = "rgb(150 150 150 / 70%)";
  brush.lineWidth = 1;
  brush.beginPath();
  for (let i = 1; i < columns; i++) {
    const x = Math.round((i * wide) / columns) + 0.5;
    brush.moveTo(x, 0);
    brush.lineTo(x, high);
  }
  for (let i = 1; i < rows; i++) {
    const y = Math.round((i * high) / rows) + 0.5;
    brush.moveTo(0, y);
    brush.lineTo(wide, y);
  }
  brush.stroke();
}

function drawBox(brush, wide, high, view, here) {
  const { info, state } = view;
  const box = [(state.column * wide) / info.columns, (state.row * high) / info.rows, wide / info.columns, high / info.rows];
  const thick = Math.max(1.5, wide / 110) * (here ? 1.5 : 1);
  for (const [colour, line] of [["black", thick + 2], [here ? ORANGE : "white", thick]]) {
    brush.strokeStyle = colour;
    brush.lineWidth = line;
    brush.setLineDash(state.pinned ? [] : [2 * thick, 2 * thick]); // a pinned patch has a whole line
    brush.strokeRect(...box);
  }
}

function paint(view, canvas, lane, frame, gridded) {
  const { info, numbers } = view;
  const [wide, high] = sharpen(canvas, info.height / info.width);
  const brush = canvas.getContext("2d");
  brush.setTransform(1, 0, 0, 1, 0, 0);
  brush.imageSmoothingEnabled = true;
  const tile = info.frame_of[lane.clip][numbers.frameIn(lane.clip, frame)];
  const from = [(tile % 8) * info.width, Math.floor(tile / 8) * info.height, info.width, info.height];
  brush.drawImage(view.film, ...from, 0, 0, wide, high); // eight frames in a row of the film
  brush.imageSmoothingEnabled = false; // patches are squares and no blur
  if (lane.values) brush.drawImage(heatPicture(view, lane, frame), 0, 0, wide, high);
  if (gridded) drawGrid(brush, wide, high, info);
  drawBox(brush, wide, high, view, frame === view.state.frame);
}

function paintScale(view, canvas, signed) {
  [canvas.width, canvas.height] = [256, 2];
  const image = new ImageData(256, 2);
  for (let x = 0; x < 256; x++)
    for (const [y, ground] of [[0, 0], [1, 255]]) {
      // over black and over white, as it is mixed into the frames
      const share = signed ? x / 127.5 - 1 : x / 255;
      const [r, g, b, a] = tint(signed ? null : view.colours, share, view.state.opacity);
      const mixed = [r, g, b].map((part) => part * (a / 255) + ground * (1 - a / 255));
      image.data.set([...mixed, 255], 4 * (256 * y + x));
    }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
