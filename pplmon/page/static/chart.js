// One figure: its lines in uPlot, and what all figures are told: the range, the cursor, another kind of x.

class Chart {
  constructor(figure, spec) {
    Object.assign(this, { figure, spec });
    this.plot = figure.querySelector(".plot");
    this.lines = spec.lines.map((line) => new Line(line));
    this.wide = figure.classList.contains("wide");
    this.runs = new Set(this.lines.map((line) => line.run));
    this.readout = new Readout(this);
    this.refill(false);
    this.u = new uPlot(this.options(), this.data, this.plot);
    this.sharing = false; // the cursor is being set from elsewhere
    listen(this);
    new ResizeObserver(() => this.resize()).observe(this.plot);
    this.point(null);
  }

  refill(draw = true) {
    this.events = eventsOf(this.runs);
    const tables = new Map();
    this.lines.forEach((line, i) => {
      const key = `${line.run} ${line.stage}`;
      if (!tables.has(key)) tables.set(key, { xs: line.xs(), columns: [], places: [] });
      tables.get(key).columns.push(line.drawn());
      tables.get(key).places.push(i);
    });
    const parts = [...tables.values()];
    const joined = uPlot.join(parts.map((part) => [part.xs, ...part.columns]));
    this.data = [joined[0]];
    parts.flatMap((part) => part.places).forEach((place, i) => (this.data[this.series(place)] = joined[i + 1]));
    if (draw) this.u.setData(this.data, false);
  }

  // The place of a line among uPlot's series: it draws them in order, and what comes first with us is to lie on top.
  series(line) {
    return this.lines.length - line;
  }

  span() {
    const xs = this.data[0];
    return [xs[0], xs[xs.length - 1]];
  }

  range(min, max) {
    this.u.setScale("x", { min, max });
    this.readout.fill();
  }

  // The x of the data nearest to x.
  nearest(x) {
    return this.data[0][this.u.valToIdx(x)];
  }

  point(x) {
    this.sharing = true;
    const [low, high] = this.span();
    const inside = x !== null && x >= low && x <= high;
    this.u.setCursor(inside ? { left: this.u.valToPos(x, "x"), top: 1 } : { left: -10, top: -10 }, false);
    this.sharing = false;
    this.readout.show(x);
  }

  height() {
    return this.plot.clientWidth < 480 ? 220 : this.wide ? 300 : 240;
  }

  resize() {
    const size = { width: this.plot.clientWidth, height: this.height() };
    if (size.width > 0 && (size.width !== this.u.width || size.height !== this.u.height)) this.u.setSize(size);
  }

  options() {
    const { spec } = this;
    const axisLook = { stroke: () => theme.soft, grid: { stroke: () => theme.grid, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    return {
      width: Math.max(this.plot.clientWidth, 100),
      height: this.height(),
      legend: { show: false },
      padding: [12, 14, 0, 0],
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: () => shownRange() },
        y: this.scale(),
      },
      axes: [
        { ...axisLook, size: 28, values: (_, ticks) => ticks.map((tick) => (tick % 1 ? "" : short(tick))) },
        { ...axisLook, size: 46, ...(spec.logarithmic ? { filter: sparse, grid: { ...axisLook.grid, filter: sparse } } : {}), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
      ],
      series: [{}, ...this.lines.map((line, i) => this.look(line, i)).reverse()],
      bands: spec.band ? [{ series: [this.series(spec.band[1]), this.series(spec.band[0])], fill: () => `${lineColor(this.lines[spec.band[1]].color)}33` }] : [],
      hooks: {
        drawAxes: [(u) => spec.distribution !== null && paintLosses(u, spec.distribution), (u) => drawMarks(u, this.events, this.wide && this.events.length <= 6)],
        setCursor: [(u) => this.sharing || point(u.cursor.left < 0 ? null : this.nearest(u.posToVal(u.cursor.left, "x")))],
        setSelect: [(u) => this.select(u)],
      },
    };
  }

  scale() {
    const { spec } = this;
    if (spec.logarithmic) return { distr: 3 };
    if (spec.distribution !== null) return { range: [0, losses(spec.distribution).edges.at(-1) * 1.06] };
    // From 0 on, but for values below it.
    const below = { min: { pad: 0.06 }, max: { pad: 0.06 } }, above = { min: { pad: 0, hard: 0 }, max: { pad: 0.06 } };
    return { range: (_, min, max) => (min === null ? [null, null] : uPlot.rangeNum(min, max, min < 0 ? below : above)) };
  }

  look(line, i) {
    const few = line.stage !== "train";
    const strong = few || i === 0 || page.runs.length > 1; // of one run's numbers the first is to be seen first; runs are equal
    return {
      label: line.label,
      stroke: () => lineColor(line.color) + (strong ? "" : "b0"),
      width: strong ? 2 : 1.25,
      dash: lineDash(line),
      points: { ...(few ? { show: true } : {}), size: few ? 6 : 4, fill: () => lineColor(line.color) },
    };
  }

  select(u) {
    const { left, width } = u.select;
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (width > 3) show(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
  }
}

// Of a logarithmic axis only 1, 2 and 5 of each decade.
function sparse(_, ticks) {
  return ticks.map((tick) => (["1", "2", "5"].includes(tick.toExponential()[0]) ? tick : null));
}
