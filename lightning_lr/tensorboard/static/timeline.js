// Timeline: the chart of the story, its tooltip, its zoom, and the buttons that do the same.

import { make, writeNumber, writeStep, writeSteps } from "./text.js";
import { figureOf, readAt } from "./figure.js";
import { causeName } from "./choices.js";
import { describeRange, drawnRange, wholeRange } from "./range.js";
import { CHART_CONFIG } from "./palette.js";

export function timeline(place, { state, Plotly, open, zoom }) {
  const chart = make("div", { class: "chart", role: "img" });
  const tip = make("div", { class: "tip", hidden: true });
  const cursor = make("div", { class: "cursor", hidden: true });
  const where = make("span", { class: "hint" });
  const signs = make("span", { class: "signs", title: "the true value is under the mouse" });
  const button = (text, label, move) => make("button", { type: "button", text, "aria-label": label, onclick: () => zoom(moved(move)) });
  const tools = make("div", { class: "tools", role: "toolbar", "aria-label": "Steps that are shown" }, [
    button("◀", "earlier", (low, high) => [low - (high - low) / 2, high - (high - low) / 2]),
    button("▶", "later", (low, high) => [low + (high - low) / 2, high + (high - low) / 2]),
    button("+", "zoom in", (low, high) => [low + (high - low) / 4, high - (high - low) / 4]),
    button("−", "zoom out", (low, high) => [low - (high - low) / 2, high + (high - low) / 2]),
    button("whole run", "the whole run", () => null),
    where,
    signs,
  ]);
  place.append(tools, make("div", { class: "frame" }, [chart, cursor, tip]));
  let figure = null;
  let hovered = null;
  let listening = false;

  function moved(move) {
    const [first, last] = wholeRange(state);
    const next = move(...(state.range ?? [first, last]));
    if (!next || (next[0] <= first && next[1] >= last)) return null;
    const width = Math.max(4, Math.min(next[1] - next[0], last - first));
    const low = Math.min(Math.max(next[0], first), last - width);
    return [low, low + width];
  }

  async function draw() {
    where.textContent = state.chosenRuns().length ? describeRange(state) : "no run is chosen";
    chart.setAttribute("aria-label", `Rates, factors and losses, ${describeRange(state)}; the table below has every mark`);
    const charts = await Plotly;
    if (!chart.clientWidth) return;
    const before = figure?.layout;
    figure = figureOf(state, chart.clientWidth, drawnRange(state));
    // what lay under the mouse lies elsewhere now
    if (before && (before.width !== figure.layout.width || String(before.xaxis.range) !== String(figure.layout.xaxis.range))) leave();
    signs.textContent = figure.signs;
    await charts.react(chart, figure.data, figure.layout, CHART_CONFIG);
    if (!listening) listen();
  }

  function listen() {
    listening = true;
    chart.on("plotly_relayout", (event) => {
      const [low, high] = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
      if (low !== undefined && high !== undefined) zoom(moved(() => [low, high]));
    });
    chart.on("plotly_doubleclick", () => zoom(null));
    chart.on("plotly_hover", (event) => {
      hovered = figure.targets[event.points[0].customdata] ?? null;
      show(event.event);
    });
    chart.on("plotly_unhover", () => {
      hovered = null;
    });
    chart.on("plotly_click", (event) => {
      const target = figure.targets[event.points[0].customdata];
      if (!target?.mark) return;
      leave();
      open(target.run, target.mark);
    });
    chart.addEventListener("mousemove", show);
    chart.addEventListener("mouseleave", leave);
  }

  function leave() {
    hovered = null;
    tip.hidden = cursor.hidden = true;
  }

  function stepAt(event) {
    const { margin, width } = figure.layout;
    const [low, high] = figure.layout.xaxis.range;
    const share = (event.clientX - chart.getBoundingClientRect().left - margin.l) / (width - margin.l - margin.r);
    const [first, last] = wholeRange(state);
    return share < 0 || share > 1 ? null : Math.min(Math.max(Math.round(low + share * (high - low)), first), last);
  }

  function placeOf(step) {
    const { margin, width, xaxis } = figure.layout;
    const [low, high] = xaxis.range;
    return margin.l + ((step - low) / (high - low)) * (width - margin.l - margin.r);
  }

  function show(event) {
    if (!figure || !event) return;
    const step = hovered ? hovered.mark?.step_end ?? hovered.edge.step : stepAt(event);
    if (step === null || event.buttons) {
      tip.hidden = cursor.hidden = true;
      return;
    }
    tip.replaceChildren(...(hovered ? targetLines(hovered) : []), ...valueLines(step, hovered !== null));
    tip.hidden = cursor.hidden = false;
    const box = chart.getBoundingClientRect();
    const x = event.clientX - box.left;
    cursor.style.left = `${placeOf(step)}px`;
    const right = x > box.width / 2;
    const room = Math.max(160, (right ? x : box.width - x) - 24);
    tip.style.maxWidth = `${Math.min(420, room)}px`;
    tip.style.left = right ? "" : `${x + 14}px`;
    tip.style.right = right ? `${box.width - x + 14}px` : "";
    tip.style.top = `${Math.max(0, Math.min(event.clientY - box.top - 20, box.height - tip.offsetHeight))}px`;
  }

  function targetLines({ mark, run, edge }) {
    if (edge) {
      return [make("strong", { text: `${edge.tag}: ${writeNumber(edge.value)}` }), make("p", { text: edge.words })];
    }
    const several = state.chosenRuns().length > 1 ? `${run}: ` : "";
    const change = mark.kind === "change" && isThere(mark.old) && isThere(mark.new) ? `${writeNumber(mark.old)} → ${writeNumber(mark.new)}` : "";
    return [
      make("strong", { text: `${several}${causeName(mark)}, ${writeSteps(mark.step, mark.step_end)}` }),
      change ? make("p", { class: "change", text: change }) : null,
      make("p", { text: mark.words }),
      mark.count > 1 ? make("p", { text: `${mark.count} alike; the last: ${mark.last_words}` }) : null,
      make("p", { class: "hint", text: "click for the detail" }),
    ].filter(Boolean);
  }

  function valueLines(step, beside) {
    const found = readAt(figure, step);
    const several = state.chosenRuns().length > 1;
    const rows = [...found.rates, ...found.factors, ...found.losses].map(([run, name, value]) =>
      make("tr", {}, [make("td", { text: several ? `${run}: ${name}` : name }), make("td", { text: value })]),
    );
    return [beside ? null : make("strong", { text: `step ${writeStep(step)}` }), make("table", {}, rows)].filter(Boolean);
  }

  new ResizeObserver(() => {
    if (chart.clientWidth && figure && chart.clientWidth !== figure.layout.width) draw();
    else if (chart.clientWidth && !figure) draw();
  }).observe(chart);

  return { draw };
}

function isThere(value) {
  return value !== null && value !== undefined;
}
