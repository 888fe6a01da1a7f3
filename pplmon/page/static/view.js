// What all charts share: the kind of x, the range that is shown, and the x under the cursor.

const view = { kind: "steps", range: null, at: null };
const charts = [];

function whole() {
  const spans = charts.map((chart) => chart.span());
  const low = Math.min(...spans.map((span) => span[0]));
  const high = Math.max(...spans.map((span) => span[1]));
  return high > low ? [low, high] : [low - 1, high + 1];
}

function shownRange() {
  return view.range ?? whole();
}

// Show x from low to high in every chart. A range as wide as the run is no zoom.
function show(low, high) {
  const [first, last] = whole();
  const width = Math.min(high - low, last - first);
  const start = Math.min(Math.max(low, first), last - width);
  view.range = width >= (last - first) * 0.999 || width <= 0 ? null : [start, start + width];
  for (const chart of charts) chart.range(...shownRange());
  document.getElementById("unzoom").disabled = view.range === null;
  remember();
}

function zoom(factor, center) {
  const [low, high] = shownRange();
  const least = (whole()[1] - whole()[0]) / 1e5;
  if ((high - low) * factor < least) return;
  show(center - (center - low) * factor, center + (high - center) * factor);
}

function unzoom() {
  show(...whole());
}

// Put the cursor of every chart at x; null takes it away, and the last values are shown again.
function point(x) {
  view.at = x;
  for (const chart of charts) chart.point(x);
}

function useAxis(kind) {
  if (kind === view.kind) return;
  view.kind = kind;
  view.range = null;
  for (const chart of charts) chart.refill();
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.setAttribute("aria-pressed", String(button.dataset.axis === kind));
  }
  unzoom();
  point(null);
}
