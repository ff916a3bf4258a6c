// How the explorer looks: colours of JupyterLab where there are any, else those of the reader's system.

const ORANGE = "#e69f00";
const STYLE = `
.bta { --ink: var(--jp-ui-font-color1, #1b1b1b); --soft: var(--jp-ui-font-color2, #5a5a5a);
  --line: var(--jp-border-color1, #c9c9c9); --paper: var(--jp-layout-color1, #fff);
  --raised: var(--jp-layout-color2, #f1f1f1); --trough: var(--jp-layout-color3, #dedede); --accent: #0072b2;
  --second: #a34700; container-type: inline-size; box-sizing: border-box; max-width: 1180px; padding: 14px;
  border: 1px solid var(--line); border-radius: 8px; background: var(--paper); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .bta { --ink: var(--jp-ui-font-color1, #ececec);
  --soft: var(--jp-ui-font-color2, #b4b4b4); --line: var(--jp-border-color1, #4b4b4b);
  --paper: var(--jp-layout-color1, #161616); --raised: var(--jp-layout-color2, #262626);
  --trough: var(--jp-layout-color3, #3a3a3a); } }
@media (prefers-color-scheme: dark) { :root:not(:has([data-jp-theme-light="true"])) .bta {
  --accent: #56b4e9; --second: #f0a04b; } }
[data-jp-theme-light="false"] .bta { --accent: #56b4e9; --second: #f0a04b; }
.bta * { box-sizing: border-box; }
.bta [hidden] { display: none !important; }
.bta h2 { margin: 0; font-size: 19px; line-height: 1.25; }
.bta h3 { margin: 0 0 2px; font-size: 14px; }
.bta p { margin: 0; overflow-wrap: anywhere; }
.bta-about, .bta-means, .bta-keys { color: var(--soft); font-size: 12.5px; }
.bta-head { margin-bottom: 12px; }
.bta-notice { margin-top: 6px; padding: 6px 10px; border-left: 4px solid ${ORANGE}; background: var(--raised); }
.bta-bar { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: end; margin-bottom: 10px; }
.bta label { display: grid; gap: 2px; font-size: 12px; color: var(--soft); min-width: 0; }
.bta .bta-caption { flex: 1 1 240px; }
.bta .bta-tick { display: flex; gap: 4px; align-items: center; }
.bta select, .bta input[type=text], .bta button { font: inherit; font-size: 14px; height: 34px; padding: 0 8px;
  max-width: 100%; color: var(--ink); background: var(--paper); border: 1px solid #8c8c8c; border-radius: 5px; }
.bta input[type=text] { width: 100%; }
.bta input[type=range] { width: 110px; height: 34px; margin: 0; accent-color: var(--accent); }
.bta input[type=checkbox] { width: 15px; height: 15px; margin: 0; accent-color: var(--accent); }
.bta button { cursor: pointer; }
.bta button:hover { background: var(--raised); }
.bta :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.bta-info { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; margin-bottom: 10px; }
.bta-note { flex: 1 1 240px; min-width: min(100%, 240px); }
.bta-legend { display: contents; }
.bta-scale { display: flex; flex-wrap: wrap; gap: 2px 7px; align-items: center; font-size: 12px; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.bta-scale canvas { width: 130px; height: 16px; image-rendering: pixelated; border: 1px solid var(--line); }
.bta-stage { display: grid; grid-template-columns: minmax(180px, 330px) minmax(0, 1fr); gap: 12px 18px; padding: 4px;
  border-radius: 5px; align-items: start; }
.bta-stage:has(> [hidden]:first-child) { grid-template-columns: minmax(0, 1fr); }
.bta-frame canvas, .bta-screen canvas { display: block; width: 100%; height: auto; border-radius: 3px;
  cursor: crosshair; touch-action: pan-y pinch-zoom; }
.bta-screen { position: relative; }
.bta-over { position: absolute; inset: auto 8px 8px; padding: 6px 10px; border-radius: 4px; background: #000d;
  color: #fff; font-size: 13px; pointer-events: none; }
.bta-times { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 10px; }
.bta-time { flex: 1 1 90px; max-width: 230px; min-width: 90px; font-size: 12px; color: var(--soft); }
.bta-time canvas { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated;
  border: 1px solid var(--line); }
.bta-lane + .bta-lane { margin-top: 12px; }
.bta-strip { display: grid; grid-template-columns: repeat(var(--across), minmax(0, 1fr)); gap: 6px; margin-top: 4px; }
.bta-frame { padding: 3px; border: 2px solid transparent; border-radius: 6px; min-width: 0; }
.bta-frame[data-now] { border-color: ${ORANGE}; }
.bta-frame[data-untrained] { background: repeating-linear-gradient(45deg, var(--trough) 0 4px, transparent 4px 9px); }
.bta-frame[data-cut] canvas { opacity: .3; }
.bta-share { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 4px; font-size: 12px; margin-top: 3px;
  font-variant-numeric: tabular-nums; }
.bta-share .bta-tick { color: var(--soft); }
.bta-gauge { position: relative; height: 7px; background: var(--trough); border-radius: 3px; overflow: hidden; }
.bta-gauge div { position: absolute; top: 0; height: 100%; background: var(--accent); }
.bta-gauge .bta-before { width: 2px; background: var(--ink); }
.bta-said { margin: 10px 0 0; min-height: 2.9em; font-variant-numeric: tabular-nums; }
.bta-aloud { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.bta-below { display: flex; flex-wrap: wrap; gap: 0 28px; }
.bta-below > section { flex: 1 1 390px; min-width: min(100%, 320px); }
.bta-section { margin-top: 16px; padding-top: 12px; border-top: 1px solid var(--line); }
.bta-tiles { display: grid; grid-template-columns: max-content repeat(var(--heads), minmax(30px, 88px)); gap: 5px;
  justify-content: start;
  align-items: start; overflow-x: auto; padding: 4px; font-size: 12px; color: var(--soft); }
.bta-tiles > span { align-self: center; text-align: center; white-space: nowrap; }
.bta-tile { display: grid; gap: 2px; justify-items: center; min-width: 0; }
.bta .bta-tile button { display: block; width: 100%; height: auto; padding: 2px; border: 2px solid transparent;
  background: none; }
.bta .bta-tile button[aria-pressed=true] { border-color: ${ORANGE}; }
.bta .bta-tile button:disabled { cursor: not-allowed; }
.bta .bta-tile button:disabled canvas { filter: grayscale(1) opacity(.55); }
.bta-tile[data-cut] canvas { opacity: .25; }
.bta-tile canvas { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }
.bta-said-bars { display: grid; grid-template-columns: minmax(0, 3fr) minmax(90px, 2fr) auto; gap: 5px 12px;
  align-items: center; margin-top: 6px; font-variant-numeric: tabular-nums; }
.bta .bta-said-bars button { height: auto; min-height: 28px; padding: 3px 6px; text-align: left; border-color: transparent;
  overflow-wrap: anywhere; }
.bta .bta-said-bars button[aria-pressed=true] { border-color: ${ORANGE}; font-weight: 600; }
.bta-said-bars .bta-gauge + .bta-gauge { margin-top: 3px; }
.bta-gauge.bta-second div:not(.bta-before) { background: var(--second); }
@container (max-width: 620px) {
  .bta-stage { grid-template-columns: minmax(0, 1fr); }
  .bta-strip { --across: 4 !important; }
  .bta-said-bars { grid-template-columns: minmax(0, 1fr) auto; }
  .bta-said-bars button { grid-column: 1 / -1; }
}
@container (max-width: 330px) { .bta-strip { --across: 2 !important; } }
@media (pointer: coarse) { .bta input[type=checkbox] { width: 22px; height: 22px; } }`;
