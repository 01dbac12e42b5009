"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");

// Draw a figure. Its texts and lines have the colours of the page by name, so that they follow it
// between light and dark and to paper; only tips know one scheme.
function draw(script) {
  const place = document.getElementById(script.dataset.for);
  const spec = JSON.parse(script.textContent);
  const [ink, soft, line] = ["var(--ink)", "var(--soft)", "var(--line)"];
  const texts = { labelColor: soft, titleColor: soft };
  const look = {
    axis: { ...texts, gridColor: line, domainColor: line, tickColor: line },
    header: texts,
    legend: { ...texts, labelColor: ink },
  };
  spec.config.background = "transparent";
  for (const key in look) Object.assign(spec.config[key], look[key]);
  fitLegends(spec, place.clientWidth);
  const tooltip = { theme: dark.matches ? "dark" : "light" };
  vegaEmbed(place, spec, { renderer: "svg", actions: false, tooltip }).catch(console.error);
}

// Give legends as many columns as fit.
function fitLegends(spec, width) {
  const colour = spec.encoding?.color;
  if (colour?.legend) {
    const longest = Math.max(...colour.scale.domain.map((name) => `${name}`.length));
    colour.legend.columns = Math.max(1, Math.floor(width / (7 * longest + 45)));
  }
  for (const layer of spec.layer ?? []) fitLegends(layer, width);
}

function drawAll() {
  document.querySelectorAll("script[data-for]").forEach(draw);
}

drawAll();
dark.addEventListener("change", drawAll);

// Sort a table by the column whose heading is clicked: numbers by value, missing ones last.
function sort(head) {
  const up = head.ariaSort !== "ascending";
  const index = head.cellIndex;
  const body = head.closest("table").tBodies[0];
  const numeric = head.classList.contains("n");
  const key = (row) => {
    const cell = row.cells[index];
    return numeric ? parseFloat(cell.dataset.v) : cell.textContent;
  };
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return (up ? 1 : -1) * x.localeCompare(y, "en", { numeric: true });
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return (up ? 1 : -1) * (x - y);
  };
  for (const other of head.parentElement.cells) other.ariaSort = "none";
  head.ariaSort = up ? "ascending" : "descending";
  body.append(...Array.from(body.rows).sort(compare));
}

document.querySelectorAll(".sortable th button").forEach((button) => {
  button.addEventListener("click", () => sort(button.parentElement));
});
