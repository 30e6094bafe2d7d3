// The pages work without this file; it follows Airflow's theme, leaves Airflow's frame by its own links, and moves in the heat map.
"use strict";

// The page around this one, if it is Airflow's (same origin); null when opened by itself.
function around() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
}

// Airflow keeps its theme as a class of its <html>, and remembers a choice under "theme"; the system decides where there is none.
function followTheme() {
  const outer = around();
  const root = document.documentElement;
  const apply = () => {
    const stored = localStorage.getItem("theme");
    const chosen = outer
      ? ["dark", "light"].find((name) => outer.document.documentElement.classList.contains(name))
      : ["dark", "light"].find((name) => name === stored);
    root.classList.remove("dark", "light");
    if (chosen) root.classList.add(chosen);
  };
  apply();
  if (outer) {
    new MutationObserver(apply).observe(outer.document.documentElement, { attributes: true, attributeFilter: ["class"] });
  }
  window.addEventListener("storage", apply);
}

// The frame may neither replace the page around it nor open windows; that page itself may.
function leaveFrame(event) {
  const link = event.target.closest("a[data-out]");
  const outer = around();
  if (!link || !outer || event.defaultPrevented) return;
  event.preventDefault();
  const made = outer.document.createElement("a");
  made.href = link.href;
  if (link.dataset.out === "new" || event.metaKey || event.ctrlKey) {
    made.target = "_blank";
    made.rel = "noopener noreferrer";
  }
  made.hidden = true;
  outer.document.body.append(made);
  made.click();
  made.remove();
}

// One stop for the tab key; arrows move, Enter opens a feature's day.
function heatMap(table) {
  const days = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.day);
  const cells = () => [...table.tBodies[0].rows].map((row) => [...row.cells]);
  const name = (cell) => cell.parentElement.cells[0].textContent.trim();
  const open = (cell) => {
    const address = `${table.dataset.base}${encodeURIComponent(name(cell))}?day=${days[cell.cellIndex]}`;
    window.location.assign(address);
  };
  const isDay = (cell) => cell && cell.tagName === "TD" && cell.title;
  const reach = (cell) => {
    table.querySelector("td[tabindex]")?.removeAttribute("tabindex");
    cell.tabIndex = 0;
  };
  const words = { s0: "none", s1: "small", s2: "moderate", s3: "large" };
  const focus = (cell) => {
    reach(cell);
    cell.setAttribute("aria-label", `${name(cell)}, ${days[cell.cellIndex]}: ${words[cell.className]}, PSI ${cell.title}`);
    cell.focus();
  };
  const last = [...table.tBodies[0].rows[0].cells].reverse().find(isDay);
  if (last) reach(last);
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (isDay(cell)) open(cell);
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!isDay(cell)) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(cell);
    } else if (moves[event.key]) {
      event.preventDefault();
      const [down, right] = moves[event.key];
      const next = cells()[cell.parentElement.sectionRowIndex + down]?.[cell.cellIndex + right];
      if (isDay(next)) focus(next);
    }
  });
}

followTheme();
document.addEventListener("click", leaveFrame);
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.heat").forEach(heatMap);
  document.querySelectorAll("figure.chart, .scroll, .tall").forEach((box) => {
    if (box.querySelector("table.heat, svg")) box.scrollLeft = box.scrollWidth; // the newest days are on the right
  });
});
