// Colours come from the style sheet, so that a page follows the reader's choice of light or dark.

const theme = {};

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  for (const name of ["ink", "soft", "grid", "paper", "warning", "critical", "info"]) theme[name] = named(name);
  theme.lines = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => named(`line${i}`));
  theme.heat = [0, 1, 2, 3, 4].map((i) => named(`heat${i}`).split(" ").map(Number));
}

const lineColor = (i) => theme.lines[i % theme.lines.length];

// Where colours are told apart badly, dashes help: val is dashed, and so is every second round of colours.
const lineDash = (line) => (line.stage.startsWith("val") ? [7, 4] : line.stage.startsWith("test") ? [2, 3] : line.color >= 8 ? [12, 3, 2, 3] : []);

function heatColor(t) {
  const at = Math.min(Math.max(t, 0), 1) * (theme.heat.length - 1);
  const i = Math.min(Math.floor(at), theme.heat.length - 2);
  const mixed = theme.heat[i].map((c, k) => Math.round(c + (theme.heat[i + 1][k] - c) * (at - i)));
  return `rgb(${mixed.join(" ")})`;
}

function onThemeChange(redraw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);
}
