// The token heatmaps: pointing at a token, or walking to it with the arrow keys, tells what is known of it.

function heatmap(map) {
  const told = map.parentElement.querySelector(".told");
  const cells = [...map.querySelectorAll("span")];
  map.setAttribute("role", "listbox");
  map.setAttribute("aria-label", "Text around the worst tokens; the arrow keys go from token to token");
  for (const cell of cells) {
    cell.setAttribute("role", "option");
    cell.tabIndex = -1;
  }
  const choose = (cell, focus) => {
    for (const other of map.querySelectorAll("[aria-selected=true]")) {
      other.setAttribute("aria-selected", "false");
      other.tabIndex = -1;
    }
    cell.setAttribute("aria-selected", "true");
    cell.tabIndex = 0;
    told.textContent = tell(cell);
    if (focus) cell.focus();
  };
  map.addEventListener("mouseover", (event) => cells.includes(event.target) && choose(event.target, false));
  map.addEventListener("click", (event) => cells.includes(event.target) && choose(event.target, true));
  map.addEventListener("focusin", (event) => cells.includes(event.target) && choose(event.target, false));
  map.addEventListener("keydown", (event) => {
    const now = cells.indexOf(event.target);
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: cells.length - 1 }[event.key];
    if (next === undefined || !cells[next]) return;
    event.preventDefault();
    choose(cells[next], true);
  });
  const first = cells.find((cell) => "gravest" in cell.dataset) ?? cells[0];
  choose(first, false);
  map.scrollTop = first.offsetTop - map.offsetTop - map.clientHeight / 2;
}

function tell(cell) {
  const { loss, p, target, predicted, top } = cell.dataset;
  const parts = [`target ${target ?? `“${cell.textContent}”`}`];
  if (loss === undefined) parts.push("not scored");
  else parts.push(`loss ${loss} nats`);
  if (p !== undefined) parts.push(`p(target) ${p}`);
  if (predicted !== undefined) parts.push(`predicted ${predicted}${top === undefined ? "" : `, p ${top}`}`);
  return parts.join(" · ");
}
