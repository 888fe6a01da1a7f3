// Begin: figures as their specifications say, heatmaps as they are opened.

const kept = remembered(); // before charts are shown, and remembered anew
readTheme();
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const spec = page.charts[figure.dataset.chart];
  charts.push(new Chart(figure, spec));
}
if (charts.length > 0) unzoom();

onThemeChange(() => {
  readTheme();
  for (const chart of charts) chart.u.redraw(false);
});

document.getElementById("unzoom").addEventListener("click", unzoom);
for (const button of document.querySelectorAll("[data-axis]")) {
  button.hidden = !hasTokens();
  button.addEventListener("click", () => useAxis(button.dataset.axis));
}
for (const link of document.querySelectorAll("a[data-event]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    openEvent(link.dataset.event);
  });
}
for (const map of document.querySelectorAll(".map")) {
  const within = map.closest("details");
  if (within.open) heatmap(map);
  else within.addEventListener("toggle", () => heatmap(map), { once: true });
}

recall(kept);
follow();
