// A page that follows a run reloads itself; what its reader had chosen is kept over that.

const KEPT = "pplmon";

function remember() {
  const open = [...document.querySelectorAll("details[id]")].filter((d) => d.open).map((d) => d.id);
  try {
    sessionStorage.setItem(KEPT + location.pathname, JSON.stringify({ kind: view.kind, range: view.range, open, top: scrollY }));
  } catch {
    // No storage here (a notebook's frame): nothing is kept.
  }
}

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT + location.pathname));
  } catch {
    return null;
  }
}

function recall(kept) {
  if (kept === null || !page.follow) return;
  useAxis(kept.kind);
  if (kept.range) show(...kept.range);
  for (const found of document.querySelectorAll("details[id]")) found.open = kept.open.includes(found.id);
  scrollTo(0, kept.top);
}

function follow() {
  if (!page.follow) return;
  setInterval(() => {
    const busy = document.hidden || document.activeElement?.closest(".plot, .map");
    if (busy) return; // not from under the reader's hands
    remember();
    location.reload();
  }, page.follow * 1000);
}
