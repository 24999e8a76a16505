"use strict";
// Draws each figure from the JSON in the page; redraws when the width or the colours change.
const page = JSON.parse(document.getElementById("figures-data").textContent);
const darkQuery = matchMedia("(prefers-color-scheme: dark)");
const MOST_COLUMNS = 3, GAP = 18;

const filled = (figure, view) => figure.rows.map((row, i) => {
  const whole = {...row};
  view.columns.forEach((name, j) => { whole[name] = view.values[i][j]; });
  return whole;
});

function widthOf(place) {
  // a figure inside closed details has no width of its own
  return place.clientWidth || document.querySelector("main").clientWidth - 40;
}

function laidOut(view, width) {
  const spec = structuredClone(view.spec);
  const {left, least, panels} = spec.usermeta;
  const side = Math.min(left, Math.round(width * 0.42));
  const room = width - side - 16;
  const columns = Math.max(1, Math.min(panels, MOST_COLUMNS, Math.floor((room + GAP) / (least + GAP))));
  const each = Math.floor((room - (columns - 1) * GAP) / columns);
  const inner = spec.facet ? spec.spec : spec;
  inner.width = Math.max(120, Math.min(each, panels > 1 ? 520 : 760));
  if (spec.facet) {
    spec.columns = columns;
    spec.facet.header.labelLimit = inner.width;
  }
  return spec;
}

function themed(width) {
  const config = structuredClone(darkQuery.matches ? page.themes.dark : page.themes.light);
  config.legend.columns = Math.max(1, Math.floor(width / 190));
  config.legend.gradientLength = Math.min(300, Math.round(width * 0.5));
  config.axis.labelLimit = Math.min(220, Math.round(width * 0.4));
  return config;
}

async function draw(figure) {
  const place = document.getElementById("chart-" + figure.id);
  const chooser = document.getElementById("view-" + figure.id);
  const view = figure.views[chooser ? chooser.selectedIndex : 0];
  const width = widthOf(place);
  const spec = laidOut(view, width);
  spec.data = {values: filled(figure, view)};
  const known = {dark: darkQuery.matches, letters: Math.floor(width * 0.42 / 6.2)};
  for (const param of spec.params || []) if (param.name in known) param.value = known[param.name];
  const caption = document.getElementById("caption-" + figure.id);
  caption.textContent = view.caption;
  place.setAttribute("aria-label", view.caption);
  try {
    if (place.drawn) place.drawn.finalize();
    place.drawn = await vegaEmbed(place, spec, {
      renderer: "svg", actions: false, config: themed(width),
      tooltip: {theme: darkQuery.matches ? "dark" : "light"},
    });
  } catch (error) {
    place.textContent = "This chart could not be drawn: " + error;
    console.error(error);
  }
  fillTable(figure, view);
}

function fillTable(figure, view) {
  const box = document.getElementById("numbers-" + figure.id);
  if (!box || !box.open) return;
  const measured = Object.entries({value: view.label, low: "95 % from", high: "to"});
  const columns = [
    ...Object.entries(figure.shown), ...measured.filter(([name]) => view.columns.includes(name)),
  ];
  const rows = filled(figure, view);
  const isNumber = (name) => rows.some((row) => typeof row[name] === "number");
  const table = document.createElement("table");
  const line = (cells, tag) => {
    const tr = document.createElement("tr");
    for (const [text, right] of cells) {
      const cell = document.createElement(tag);
      cell.textContent = text;
      if (right) cell.className = "number";
      tr.append(cell);
    }
    return tr;
  };
  const spell = (v) => v === null || v === undefined ? "" : String(v);
  const head = document.createElement("thead"), body = document.createElement("tbody");
  head.append(line(columns.map(([name, title]) => [title, isNumber(name)]), "th"));
  for (const row of rows) {
    body.append(line(columns.map(([name]) => [spell(row[name]), isNumber(name)]), "td"));
  }
  table.append(head, body);
  box.querySelector(".scroll").replaceChildren(table);
}

async function drawAll() {
  for (const figure of page.figures) await draw(figure);
  document.documentElement.dataset.drawn = "yes";
}

for (const figure of page.figures) {
  const chooser = document.getElementById("view-" + figure.id);
  if (chooser) chooser.addEventListener("change", () => draw(figure));
  const box = document.getElementById("numbers-" + figure.id);
  if (box) box.addEventListener("toggle", () => {
    fillTable(figure, figure.views[chooser ? chooser.selectedIndex : 0]);
  });
}

function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);

let last = innerWidth, timer = 0;
addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(() => { if (innerWidth !== last) { last = innerWidth; drawAll(); } }, 200);
});
darkQuery.addEventListener("change", drawAll);
drawAll().then(openTarget);
