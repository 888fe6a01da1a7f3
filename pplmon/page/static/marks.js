// Alerts on a chart: a dashed line with a triangle at its top, at the step of the alert.

function eventsOf(runs) {
  return [...runs].flatMap((run) => {
    const tokens = once(`${run} event tokens`, () => doubles(page.runs[run].eventTokens));
    return page.runs[run].events.map((event, i) => ({ ...event, x: view.kind === "tokens" ? tokens[i] : event.step }));
  });
}

// ``named``: few enough that each can say its step.
function drawMarks(u, events, named) {
  const { ctx, bbox } = u;
  const size = 5 * devicePixelRatio;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.font = `${12 * devicePixelRatio}px system-ui`;
  for (const event of events) {
    if (event.x < u.scales.x.min || event.x > u.scales.x.max) continue;
    const x = Math.round(u.valToPos(event.x, "x", true));
    ctx.strokeStyle = ctx.fillStyle = theme[event.severity];
    ctx.globalAlpha = events.length > 20 ? 0.3 : 0.7;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.beginPath();
    ctx.moveTo(x - size, bbox.top - size);
    ctx.lineTo(x + size, bbox.top - size);
    ctx.lineTo(x, bbox.top + size);
    ctx.fill();
    if (named) ctx.fillText(`${event.severity === "info" ? "notice" : "alert"}, ${place(event.x)}`, x + 1.6 * size, bbox.top + size);
  }
  ctx.restore();
}

// The event whose mark is within a few pixels of the cursor.
function eventNear(u, left, events) {
  const distance = (event) => Math.abs(u.valToPos(event.x, "x") - left);
  const near = events.filter((event) => distance(event) < 6).sort((a, b) => distance(a) - distance(b));
  return near[0];
}

function openEvent(key) {
  const found = document.getElementById(key);
  found.open = true;
  found.scrollIntoView({ block: "start" });
  found.querySelector("summary").focus({ preventScroll: true });
}
