// A chart's values at the cursor, in its legend, in its data table, and as a sentence for a screen reader.

class Readout {
  constructor(chart) {
    this.chart = chart;
    this.where = chart.figure.querySelector(".where");
    this.live = chart.figure.querySelector(".live");
    this.table = chart.figure.querySelector(".rows");
    this.values = chart.lines.map((line, i) => this.entry(line, i));
    this.details = chart.figure.querySelector("details");
    this.details.addEventListener("toggle", () => this.fill());
  }

  entry(line, i) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const value = document.createElement("output");
    const label = document.createElement("span");
    label.textContent = line.label;
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "show or hide this line";
    button.append(swatch(line, i), label, value);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(on));
      this.chart.u.setSeries(this.chart.series(i), { show: on });
    });
    item.append(button);
    this.chart.figure.querySelector(".legend").append(item);
    return value;
  }

  show(x) {
    const at = x ?? this.chart.span()[1];
    this.where.textContent = x === null ? `last, ${place(at)}` : place(at);
    this.values.forEach((value, i) => (value.textContent = brief(this.chart.lines[i].at(at))));
  }

  say(x) {
    const { lines, events, spec } = this.chart;
    const unit = spec.unit === "nats" ? " nats" : "";
    const parts = lines.map((line) => `${line.label} ${brief(line.at(x))}${unit}`);
    const here = events.filter((event) => event.x === x);
    const alerts = here.map((event) => `${event.severity === "info" ? "notice" : `${event.severity} alert`} here, Enter opens it`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (this.live.textContent = `${place(x)}: ${[...parts, ...alerts].join(", ")}`), 100);
  }

  // The points of the shown range as a table: all of them, or some, with the extremes of every line among them.
  fill() {
    if (!this.details.open) return;
    const [low, high] = shownRange();
    const xs = this.chart.data[0].filter((x) => x >= low && x <= high);
    const kept = some(xs, this.chart, 200);
    const note = kept.length < xs.length ? `${kept.length} of ${xs.length.toLocaleString("en")} points; zoom in for the others.` : "";
    const head = [view.kind === "tokens" ? "tokens" : "step", ...this.chart.lines.map((line) => line.label)];
    const table = document.createElement("table");
    table.createTHead().append(row(head, "th"));
    const body = table.createTBody();
    for (const x of kept) body.append(row([x.toLocaleString("en"), ...this.chart.lines.map((line) => brief(line.at(x)))], "td"));
    this.table.replaceChildren(note, table);
  }
}

function row(cells, kind) {
  const made = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement(kind);
    if (kind === "th") cell.scope = "col";
    cell.textContent = text;
    made.append(cell);
  }
  return made;
}

function some(xs, chart, most) {
  if (xs.length <= most) return [...xs];
  const there = new Set(xs);
  const kept = new Set(chart.events.map((event) => event.x).filter((x) => there.has(x)));
  for (let i = 0; i < most; i++) kept.add(xs[Math.floor((i * (xs.length - 1)) / (most - 1))]);
  for (const line of chart.lines) {
    const values = xs.map((x) => line.at(x) ?? NaN);
    const lowest = values.reduce((best, value, i) => (value < values[best] ? i : best), 0);
    const highest = values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
    kept.add(xs[lowest]).add(xs[highest]);
  }
  return [...kept].sort((a, b) => a - b);
}

function swatch(line, i) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const stroke = document.createElementNS("http://www.w3.org/2000/svg", "path");
  made.setAttribute("viewBox", "0 0 22 10");
  made.setAttribute("aria-hidden", "true");
  stroke.setAttribute("d", "M1 5h20");
  stroke.style.stroke = `var(--line${line.color % 8})`;
  stroke.style.strokeWidth = i === 0 ? 3 : 2;
  stroke.style.strokeDasharray = lineDash(line).join(" ");
  made.append(stroke);
  return made;
}
