// Edges: what an axis doesn't have, as marks at its edge; no line is drawn at a value that never was.

import { writeNumber, writeSteps } from "./text.js";
import { isNumber } from "./axes.js";

const BINS = 60;
const MOST_WORDS = 6;
const TEXT = 0.12;

// a little inside the edge, where a mark is seen whole
export function edges(axis, share = 0.04) {
  const [a, b] = axis.range;
  const [low, high] = [a + (b - a) * share, b - (b - a) * share];
  return axis.log ? [10 ** low, 10 ** high] : [low, high];
}

// what isn't a number lies at the upper edge; null: there is no value
export function clip(value, axis) {
  const [low, high] = edges(axis);
  if (value === "-inf") return low;
  if (!isNumber(value)) return high;
  return Math.min(Math.max(value, low), high);
}

// points of a line that lie beyond the axis, or aren't numbers: the farthest of each part of the range, with their count
function beyond({ steps, values }, axis, range) {
  const width = Math.max(1, (range[1] - range[0]) / BINS);
  const found = new Map();
  values.forEach((value, i) => {
    if (steps[i] < range[0] || steps[i] > range[1]) return;
    const strange = !isNumber(value);
    if (!strange && value <= axis.high && value >= axis.low) return;
    const key = `${strange} ${!strange && value < axis.low} ${Math.floor(steps[i] / width)}`;
    const known = found.get(key);
    if (!known) found.set(key, { step: steps[i], value, strange, count: 1 });
    else {
      known.count += 1;
      if (!strange && Math.abs(value) > Math.abs(known.value)) Object.assign(known, { step: steps[i], value });
    }
  });
  return [...found.values()];
}

export function isOn(value, axis) {
  return isNumber(value) && value >= axis.low && value <= axis.high;
}

// a rate holds until the next change, so also from the last one on; where the axis doesn't have it, the line is broken
export function held({ steps, values, run }, axis) {
  const [x, y] = [[], []];
  const more = run.last_step > steps.at(-1) ? [run.last_step] : [];
  [...steps, ...more].forEach((step, i) => {
    const value = values[Math.min(i, values.length - 1)];
    const on = isOn(value, axis);
    if (!on && y.length && y.at(-1) !== null) {
      x.push(step);
      y.push(y.at(-1));
    }
    x.push(step);
    y.push(on ? value : null);
  });
  return [x, y];
}

// where a rate leaves the axis, and until when
function gaps({ steps, values, run }, axis, range) {
  const width = Math.max(1, (range[1] - range[0]) / BINS);
  const found = new Map();
  let [open, kind] = [null, ""];
  values.forEach((value, i) => {
    const until = steps[i + 1] ?? Math.max(run.last_step, steps[i]);
    const now = isOn(value, axis) ? "" : !isNumber(value) ? "strange" : value > 0 ? "below" : "zero";
    const outside = until < range[0] || steps[i] > range[1];
    if (!now || now !== kind || outside) open = null;
    kind = now;
    if (!now || outside) return;
    const step = Math.max(steps[i], range[0]);
    const key = `${now} ${Math.floor(step / width)}`;
    if (!open && found.has(key)) found.get(key).count += 1;
    open ??= found.get(key) ?? { step, from: steps[i], value, least: value, strange: now === "strange", fell: i > 0, count: 1 };
    open.until = until;
    if (isNumber(value)) open.least = Math.min(open.least, value);
    found.set(key, found.get(key) ?? open);
  });
  return [...new Set(found.values())];
}

// of a rate
export function rateEdges(line, axis, range, colour, targets) {
  const points = gaps(line, axis, range).map((point) => {
    const why = point.strange ? "not a finite number" : point.value > 0 ? `below the axis, down to ${writeNumber(point.least)}` : "which a logarithmic axis doesn't have";
    const again = point.count > 1 ? `; ${point.count} times here` : "";
    return { ...point, below: !point.strange, words: `${writeSteps(point.from, point.until)}: ${why}${again}` };
  });
  const text = points.map((point) => (points.length > MOST_WORDS ? "" : `${point.fell ? "→ " : ""}${writeNumber(point.least)}`));
  const near = range[1] - (range[1] - range[0]) * TEXT;
  const textposition = points.map((point) => (point.step > near ? "middle left" : "middle right"));
  return edgeTraces(line, points, axis, colour, targets, { yaxis: "y", mode: "markers+text", text, textposition, textfont: { size: 11, color: colour } });
}

// of a loss
export function lossEdges(line, axis, range, colour, targets) {
  const points = beyond(line, axis, range).map((point) => {
    const more = point.count > 1 ? `, ${point.count} such here` : "";
    const below = point.value === "-inf" || (!point.strange && point.value < axis.low);
    return { ...point, below, words: point.strange ? `not a finite number${more}` : `beyond the axis${more}` };
  });
  return edgeTraces(line, points, axis, colour, targets, { yaxis: "y3", mode: "markers" });
}

function edgeTraces(line, points, axis, colour, targets, more) {
  if (!points.length) return [];
  const [low, high] = edges(axis);
  const own = points.map((point) => {
    targets.push({ edge: { ...point, tag: line.tag, run: line.run.name } });
    return targets.length - 1;
  });
  const symbol = points.map((point) => (point.strange ? "x-thin-open" : point.below ? "triangle-down-open" : "triangle-up-open"));
  return [
    {
      type: "scatter",
      x: points.map((point) => point.step),
      y: points.map((point) => (point.below ? low : high)),
      marker: { symbol, size: 8, color: colour, line: { width: 1.5, color: colour } },
      customdata: own,
      hoverinfo: "none",
      cliponaxis: false,
      ...more,
    },
  ];
}

// what these marks mean, of those that are shown
export function edgeWords(targets) {
  const shown = targets.map((target) => target.edge).filter(Boolean);
  const strange = shown.some((edge) => edge.strange) ? ["× not finite"] : [];
  const below = shown.some((edge) => edge.below && !edge.strange);
  const above = shown.some((edge) => !edge.below && !edge.strange);
  const far = below || above ? [`${above ? "△" : ""}${below ? "▽" : ""} beyond the axis`] : [];
  return [...strange, ...far].join(", ");
}
