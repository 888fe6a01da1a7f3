// Numbers as text, at a length for reading.

function brief(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "−infinite";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6) return short(value);
  return size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function short(value) {
  for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= unit) return `${Number((value / unit).toPrecision(3))}${name}`;
  }
  return String(Number(value.toPrecision(3)));
}

function place(x) {
  return view.kind === "tokens" ? `${short(x)} tokens` : `step ${Math.round(x).toLocaleString("en")}`;
}
