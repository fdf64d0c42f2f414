// Figure: rates, factors and losses of the chosen runs, with every mark, as plotly draws them over one axis of steps.

import { escapeText, shorten, writeNumber } from "./text.js";
import { DASHES, factorScale, symbolOf, themeColours } from "./palette.js";
import { isNumber, logTicks, lossAxis, rateAxis, valueAt } from "./axes.js";
import { clip, edgeWords, edges, held, isOn, lossEdges, rateEdges } from "./edges.js";
import { stepTicks } from "./range.js";
import { lanesOf } from "./lanes.js";
import { runColour } from "./now.js";
import { causeName, dashOf, groupColour, rateTags, shownMarks } from "./choices.js";

const RATE = 240;
const LOSS = 190;
const LANE = 24;
const GAP = 40;
const TOP = 30;
const BOTTOM = 44;
const NARROW = 700;
const MOST_LABELS = 6;
const ABOVE_EDGE = 0.11;
const LOUD = new Set(["rewound", "gave up"]);
const QUIET = new Set(["note", "first"]);

function linesOf(state, tagsOf) {
  return state.chosenRuns().flatMap((run) =>
    tagsOf(run)
      .map((tag, index) => ({ run, tag, index, ...(state.data.get(run.name)?.series[tag] ?? { steps: [], values: [] }) }))
      .filter((line) => line.steps.length),
  );
}

export function figureOf(state, width, range) {
  const colours = themeColours(state.theme);
  const alone = state.chosenRuns().length < 2;
  const rates = linesOf(state, (run) => run.rate_tags.filter((tag) => !state.hiddenTags.has(tag)));
  const losses = linesOf(state, (run) => run.loss_tags.slice(0, 4));
  const { lanes, still, columns } = lanesOf(state, range);
  const [rateRange, lossRange] = [rateAxis(rates, range), lossAxis(losses, range)];
  const places = stack(lanes.length);
  const groups = rateTags(state).length;
  // losses have other colours than the groups above them
  for (const line of losses) line.colour = alone ? colours.lines[(groups + line.index) % colours.lines.length] : runColour(state, line.run.name);

  const data = rates.map((line) => {
    const [x, y] = held(line, rateRange);
    line.colour = alone ? groupColour(state, line.tag) : runColour(state, line.run.name);
    const look = { color: line.colour, dash: dashOf(state, line.tag), width: 2, shape: "hv" };
    return { type: "scatter", mode: "lines", x, y, line: look, hoverinfo: "skip", yaxis: "y" };
  });
  for (const line of losses) {
    const look = { color: line.colour, width: 1.2, dash: DASHES[line.index % DASHES.length] };
    const y = line.values.map((value) => (isNumber(value) && (!lossRange.log || value > 0) ? value : null));
    data.push({ type: "scatter", mode: line.steps.length < 80 ? "lines+markers" : "lines", x: line.steps, y, line: look, marker: { size: 4 }, hoverinfo: "skip", yaxis: "y3" });
  }
  if (lanes.length) data.push(bandTrace(lanes, columns, range, state.theme));
  const targets = [];
  for (const line of rates) data.push(...rateEdges(line, rateRange, range, line.colour, targets));
  for (const line of losses) data.push(...lossEdges(line, lossRange, range, line.colour, targets));
  const signs = edgeWords(targets);
  data.push(...markTraces(state, colours, { rateRange, lossRange, rates, alone }, targets));
  return { data, layout: layOutFigure(state, { colours, width, range, lanes, still, places, rateRange, lossRange, losses, rates }), targets, signs, rates, losses, lanes };
}

// heights in pixels from the top, as plotly wants them: shares from below
function stack(count) {
  const bands = count ? count * LANE + GAP : 0;
  const inner = RATE + bands + GAP + LOSS;
  const share = (from, height) => [1 - (from + height) / inner, 1 - from / inner];
  return {
    height: TOP + inner + BOTTOM,
    inner,
    rate: share(0, RATE),
    bands: count ? share(RATE + GAP, count * LANE) : [0, 0],
    loss: share(RATE + bands + GAP, LOSS),
  };
}

function bandTrace(lanes, columns, [low, high], theme) {
  const width = (high - low) / columns;
  return {
    type: "heatmap",
    x0: low + width / 2,
    dx: width,
    y: lanes.map((_, i) => i),
    z: lanes.map((lane) => lane.values),
    zmin: -2,
    zmax: 2,
    colorscale: factorScale(theme),
    showscale: false,
    ygap: 3,
    hoverinfo: "skip",
    hoverongaps: false,
    yaxis: "y2",
  };
}

function markTraces(state, colours, { rateRange, lossRange, rates, alone }, targets) {
  const traces = new Map();
  for (const run of state.chosenRuns()) {
    for (const mark of shownMarks(state, run.name)) {
      const key = `${run.name}\n${causeName(mark)}`;
      const [symbol, , place] = symbolOf(mark);
      const onLoss = mark.kind === "incident" || mark.kind === "note";
      if (!traces.has(key)) {
        const colour = alone ? colours.lines[place] : runColour(state, run.name);
        traces.set(key, {
          type: "scatter",
          mode: "markers+text",
          x: [],
          y: [],
          text: [],
          customdata: [],
          textposition: "middle right",
          textfont: { size: 10, color: colours.ink },
          marker: { symbol, size: [], opacity: 1, color: colour, line: { width: 1, color: symbol.endsWith("-open") ? colour : colours.paper } },
          cliponaxis: false,
          hoverinfo: "none",
          yaxis: onLoss ? "y3" : "y",
        });
      }
      const trace = traces.get(key);
      const line = rates.find((rate) => rate.run.name === run.name && (!mark.tag || rate.tag === mark.tag));
      trace.x.push(mark.step_end);
      trace.y.push(heightOf(mark, onLoss, line, rateRange, lossRange));
      trace.text.push(mark.count > 1 ? String(mark.count) : "");
      trace.marker.size.push(LOUD.has(mark.what) ? 16 : QUIET.has(mark.kind) ? 8 : 11 + Math.min(4, Math.log2(mark.count)));
      targets.push({ run: run.name, mark });
      trace.customdata.push(targets.length - 1);
    }
  }
  return [...traces.values()];
}

function heightOf(mark, onLoss, line, rateRange, lossRange) {
  if (mark.kind === "note") return edges(lossRange)[0];
  if (onLoss) return clip(mark.loss, lossRange);
  const value = mark.kind === "change" || mark.kind === "first" ? (mark.drift && line ? valueAt(line, mark.step_end) : mark.new) : line && valueAt(line, mark.step_end);
  if (!isNumber(value) || (mark.drift && !line)) return edges(rateRange)[1];
  // of a rate that leaves the axis the mark is where its line ends
  const before = value < rateRange.low && line ? valueAt(line, mark.step_end - 1) : undefined;
  return isOn(before, rateRange) ? before : value < rateRange.low ? edges(rateRange, ABOVE_EDGE)[0] : clip(value, rateRange);
}

function layOutFigure(state, { colours, width, range, lanes, still, places, rateRange, lossRange, losses, rates }) {
  const narrow = width < NARROW;
  const axis = (place, own) => ({
    domain: place,
    fixedrange: true,
    gridcolor: colours.grid,
    linecolor: colours.grid,
    zeroline: false,
    tickfont: { size: 11, color: colours.ink },
    ...own,
  });
  const several = state.chosenRuns().length > 1;
  const labels = lanes.map((lane) => (several ? `${lane.run}: ${lane.label}` : lane.label)).map((label) => shorten(label, narrow ? 18 : 30));
  const left = Math.max(64, ...labels.map((label) => label.length * 6.3 + 22));
  const title = (text, place) => ({ text, x: 0, y: place[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, yshift: 4, bgcolor: colours.paper, font: { size: 13, color: colours.ink } });
  const annotations = [
    title(rates.length ? "effective rate (logarithmic)" : "effective rate: nothing is shown", places.rate),
    title(lossTitle(losses, several, colours), places.loss),
  ];
  const loud = state.chosenRuns().flatMap((run) => shownMarks(state, run.name).filter((mark) => LOUD.has(mark.what))).slice(-100);
  const sweeps = state.chosenRuns().flatMap((run) => shownMarks(state, run.name).filter((mark) => mark.kind === "finding" && mark.step < mark.step_end));
  for (const mark of sweeps.length <= MOST_LABELS ? sweeps : []) {
    annotations.push({ text: "sweep", x: mark.step, y: places.rate[0], yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12, color: colours.ink } });
  }
  for (const mark of loud.length <= MOST_LABELS ? loud : []) {
    annotations.push({ text: mark.what, x: mark.step_end, y: places.rate[1], yref: "paper", xanchor: "left", yanchor: "top", showarrow: false, bgcolor: colours.paper, font: { size: 12, color: colours.ink } });
  }
  if (lanes.length) annotations.push(title(narrow ? "its factors: blue lowers, orange raises" : `its factors: blue lowers the rate, orange raises it; beside each name where it stands at the end${still.length ? `; always 1: ${escapeText(shorten(still.join(", "), 60))}` : ""}`, places.bands));
  return {
    width,
    height: places.height,
    margin: { l: left, r: 14, t: TOP, b: BOTTOM },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colours.ink },
    showlegend: false,
    hovermode: "closest",
    hoverdistance: 14,
    dragmode: "zoom",
    uirevision: "keep",
    annotations,
    shapes: [...sweeps, ...loud].map((mark) => mark.kind === "finding" ? sweepShape(mark, colours) : ({ type: "line", x0: mark.step_end, x1: mark.step_end, y0: 0, y1: 1, yref: "paper", layer: "below", line: { width: 1, dash: "dot", color: colours.faint } })),
    xaxis: { range, anchor: "y3", gridcolor: colours.grid, zeroline: false, title: { text: "step", standoff: 6 }, ...stepTicks(range, narrow ? 5 : 10), tickfont: { color: colours.ink } },
    yaxis: axis(places.rate, { type: "log", range: rateRange.range, ...logTicks(rateRange) }),
    yaxis2: axis(places.bands, { range: [lanes.length - 0.5, -0.5], tickvals: lanes.map((_, i) => i), ticktext: labels.map(escapeText), showgrid: false, visible: lanes.length > 0 }),
    yaxis3: axis(places.loss, { type: lossRange.log ? "log" : "linear", range: lossRange.range, ...(lossRange.log ? logTicks(lossRange) : { nticks: 6 }) }),
  };
}

// while rates are tried out the model learns nothing
function sweepShape(mark, colours) {
  return { type: "rect", x0: mark.step, x1: mark.step_end, y0: 0, y1: 1, yref: "paper", layer: "below", fillcolor: colours.faint, opacity: 0.12, line: { width: 0 } };
}

// plotly knows a few tags, of which this uses two; names are escaped
function lossTitle(losses, several, colours) {
  if (!losses.length) return "loss: none was logged";
  const signs = { solid: "───", dash: "─ ─", dot: "···", dashdot: "─·─" };
  const shown = [...new Map(losses.map((line) => [line.tag, line])).values()];
  const parts = shown.map((line) => {
    const sign = signs[DASHES[line.index % DASHES.length]] ?? "";
    return `<span style="color:${several ? colours.ink : line.colour}"><b>${sign}</b></span> ${escapeText(shorten(line.tag, 24))}`;
  });
  return `loss: ${parts.join("   ")}`;
}

// what the figure shows at one step, in words
export function readAt(figure, step) {
  const value = (line) => writeNumber(valueAt(line, step));
  const there = (line) => line.steps[0] <= step;
  return {
    rates: figure.rates.filter(there).map((line) => [line.run.name, line.tag, value(line)]),
    factors: figure.lanes.filter((lane) => there(lane.line)).map((lane) => [lane.run, lane.name, `×${value(lane.line)}`]),
    losses: figure.losses.filter(there).map((line) => [line.run.name, line.tag, value(line)]),
  };
}
