// The numbers of the page: base64 arrays, decoded when a chart first asks for them.

function decode(text, Kind) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

const doubles = (text) => decode(text, Float64Array);
const floats = (text) => decode(text, Float32Array);

const page = JSON.parse(document.getElementById("data").textContent);
const decoded = new Map(); // what was decoded before

function once(key, make) {
  if (!decoded.has(key)) decoded.set(key, make());
  return decoded.get(key);
}

// The x of every row of a stage: optimizer steps, or tokens trained on.
function axis(run, stage, kind) {
  return once(`${run} ${stage} ${kind}`, () => doubles(page.runs[run].tables[stage][kind]));
}

function hasTokens() {
  return page.runs.every((run) => Object.values(run.tables).every((table) => table.tokens.length > 0));
}

// One line of a chart: its values beside its x, without the rows that lack it.
class Line {
  constructor(spec) {
    Object.assign(this, spec); // run, stage, name, label, color
    this.values = once(`${spec.run} ${spec.stage} column ${spec.name}`, () =>
      floats(page.runs[spec.run].tables[spec.stage].columns[spec.name]),
    );
    this.rows = [];
    this.values.forEach((value, row) => Number.isNaN(value) || this.rows.push(row));
  }

  xs() {
    return axis(this.run, this.stage, view.kind);
  }

  // What uPlot draws: undefined where there is no row to speak of (it draws on), null (a gap) where the value is infinite.
  drawn() {
    return Array.from(this.values, (value) => (Number.isNaN(value) ? undefined : Number.isFinite(value) ? value : null));
  }

  // The value that holds at x: that of the window which x lies in; in validation, of the latest pass.
  at(x) {
    const xs = this.xs();
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[this.rows[middle]] < x) low = middle + 1;
      else high = middle;
    }
    const exact = low < this.rows.length && xs[this.rows[low]] === x;
    if (!exact && (this.stage !== "train" || low === this.rows.length)) low -= 1;
    return low < 0 ? undefined : this.values[this.rows[low]];
  }
}
