// Zoom and cursor by wheel, touch and keys. A mouse's drag is uPlot's own.

function listen(chart) {
  const { u, plot } = chart;
  const over = u.over;
  const xOf = (event) => u.posToVal(event.clientX - over.getBoundingClientRect().left, "x");
  over.addEventListener("wheel", (event) => wheel(event, chart, xOf(event)), { passive: false });
  over.addEventListener("dblclick", unzoom);
  over.addEventListener("mousemove", () => (over.style.cursor = eventNear(u, u.cursor.left, chart.events) ? "pointer" : ""));
  over.addEventListener("mousedown", () => plot.focus({ preventScroll: true }));
  over.addEventListener("click", (event) => {
    const near = eventNear(u, event.clientX - over.getBoundingClientRect().left, chart.events);
    if (near) openEvent(near.key);
  });
  plot.addEventListener("keydown", (event) => keys(event, chart));
  plot.addEventListener("blur", () => point(null));
  touches(chart, xOf);
}

// The wheel scrolls the page, as everywhere, until a chart is chosen by a click or the keyboard, or Ctrl is held.
function wheel(event, chart, x) {
  if (!event.ctrlKey && !event.metaKey && document.activeElement !== chart.plot) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 0.8 : 1.25, x);
}

function keys(event, chart) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const xs = chart.data[0];
  const [low, high] = shownRange();
  const first = xs.findIndex((x) => x >= low);
  const last = xs.findLastIndex((x) => x <= high);
  const now = view.at === null ? last : chart.u.valToIdx(view.at);
  const stride = event.shiftKey ? Math.max(10, Math.round((last - first) / 50)) : 1;
  const move = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: first, End: last }[event.key];
  if (move !== undefined) {
    const x = xs[Math.min(Math.max(move, first), last)];
    point(x);
    chart.readout.say(x);
  } else if (event.key === "PageUp" || event.key === "PageDown") {
    toEvent(chart, event.key === "PageDown");
  } else if (event.key === "Enter") {
    const here = chart.events.find((found) => found.x === view.at);
    if (here) openEvent(here.key);
  } else if (event.key === "+" || event.key === "=") zoom(0.5, view.at ?? (low + high) / 2);
  else if (event.key === "-") zoom(2, view.at ?? (low + high) / 2);
  else if (event.key === "0" || event.key === "Escape") unzoom();
  else return;
  event.preventDefault();
}

function toEvent(chart, forward) {
  const at = view.at ?? (forward ? -Infinity : Infinity);
  const xs = chart.events.map((event) => event.x).sort((a, b) => a - b);
  const x = forward ? xs.find((other) => other > at) : xs.findLast((other) => other < at);
  if (x === undefined) return;
  const [low, high] = shownRange();
  if (x < low || x > high) show(x - (high - low) / 2, x + (high - low) / 2);
  point(x);
  chart.readout.say(x);
}

// One finger sideways moves the cursor (up and down still scrolls the page), two fingers zoom.
function touches(chart, xOf) {
  const down = new Map();
  const { over } = chart.u;
  over.style.touchAction = "pan-y";
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") down.set(event.pointerId, event);
  });
  over.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const other = [...down.values()].find((finger) => finger.pointerId !== event.pointerId);
    if (!other) point(chart.nearest(xOf(event)));
    else {
      const before = Math.abs(down.get(event.pointerId).clientX - other.clientX);
      const after = Math.abs(event.clientX - other.clientX);
      if (before > 5 && after > 5) zoom(before / after, (xOf(event) + xOf(other)) / 2);
    }
    down.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) over.addEventListener(end, (event) => down.delete(event.pointerId));
}
