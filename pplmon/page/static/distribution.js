// The loss of all tokens over time: one column a window, one cell a bucket, painted beneath a chart's lines.

function losses(run) {
  return once(`${run} distribution`, () => {
    const given = page.runs[run].distribution;
    const arrays = { edges: floats(given.edges), shares: floats(given.shares) };
    for (const name of ["starts", "ends", "startTokens", "endTokens"]) arrays[name] = doubles(given[name]);
    return arrays;
  });
}

function paintLosses(u, run) {
  const { edges, shares, ...arrays } = losses(run);
  const [starts, ends] = view.kind === "tokens" ? [arrays.startTokens, arrays.endTokens] : [arrays.starts, arrays.ends];
  const buckets = edges.length - 1;
  const heights = Array.from(edges, (edge) => Math.round(u.valToPos(edge, "y", true)));
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (let column = 0; column < ends.length; column++) {
    if (ends[column] < u.scales.x.min || starts[column] > u.scales.x.max) continue;
    const left = Math.floor(u.valToPos(starts[column], "x", true));
    const width = Math.max(1, Math.ceil(u.valToPos(ends[column], "x", true)) - left);
    for (let bucket = 0; bucket < buckets; bucket++) {
      const share = shares[column * buckets + bucket];
      if (share <= 0) continue;
      const density = share / (edges[bucket + 1] - edges[bucket]);
      ctx.fillStyle = heatColor((Math.log10(density) + 5) / 5); // from one token in 100,000 a nat to all of them
      ctx.fillRect(left, heights[bucket + 1], width, heights[bucket] - heights[bucket + 1]);
    }
  }
  ctx.restore();
}
