// Axes: the ranges that are shown, so that one spike flattens nothing, and what lies beyond them.

import { writeNumber } from "./text.js";

const SPREAD = 30;
const FIRST = 10;
const PAD = 0.06;
const EDGE_BINS = 60;
const RARE = 0.05;
const TIMES = 300;

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
}

function padded(low, high, log) {
  const [a, b] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const room = (b - a) * PAD || Math.abs(a) * PAD || PAD;
  return [a - room, b + room];
}

function within({ steps, values }, [low, high]) {
  return values.filter((_, i) => steps[i] >= low && steps[i] <= high);
}

// of each line what it is above for nearly all of the steps: a rate that falls to nothing in the last few flattens nothing.
// What lies lower, and a rate of 0, is drawn at the lower edge
export function rateAxis(lines, range) {
  const positive = lines.flatMap((line) => within(line, range)).filter((value) => isNumber(value) && value > 0);
  if (!positive.length) return { log: true, range: [-4, -1], low: 1e-4, high: 0.1 };
  const [least, high] = [positive.reduce((a, b) => Math.min(a, b)), positive.reduce((a, b) => Math.max(a, b))];
  const usual = Math.min(...lines.map((line) => overTime(line, range, RARE)).filter((value) => value > 0));
  const low = least >= usual / 10 || !Number.isFinite(usual) ? least : usual / 3;
  const ends = padded(Math.min(low, high), high, true);
  if (ends[1] - ends[0] < 0.3) ends.splice(0, 2, ends[0] - 0.15, ends[1] + 0.15);
  return { log: true, range: ends, low: 10 ** ends[0], high: 10 ** ends[1] };
}

// a quantile over the steps, not over the points, which lie close where much changes
function overTime(line, [low, high], share) {
  const values = [];
  for (let i = 0; i <= TIMES; i += 1) {
    const value = valueAt(line, low + ((high - low) * i) / TIMES);
    if (isNumber(value) && value > 0) values.push(value);
  }
  return quantile(values.sort((a, b) => a - b), share);
}

// nearly all points, and always those that the losses began with
export function lossAxis(lines, range) {
  const shown = lines.map((line) => within(line, range).filter(isNumber));
  const sorted = shown.flat().sort((a, b) => a - b);
  if (!sorted.length) return { log: false, range: [0, 1], low: 0, high: 1 };
  const begun = shown.map((values) => values.slice(0, FIRST).sort((a, b) => a - b)).map((values) => quantile(values, 0.5) ?? -Infinity);
  const low = quantile(sorted, 0.005);
  const high = Math.max(quantile(sorted, 0.98), Math.min(Math.max(...begun), sorted.at(-1)));
  const log = low > 0 && high / low > SPREAD;
  const ends = padded(low, high, log);
  return { log, range: ends, low: log ? 10 ** ends[0] : ends[0], high: log ? 10 ** ends[1] : ends[1] };
}

// a little inside the edge, where a mark is seen whole
export function edges(axis) {
  const [a, b] = axis.range;
  const [low, high] = [a + (b - a) * 0.04, b - (b - a) * 0.04];
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
export function beyond({ steps, values }, axis, range) {
  const width = Math.max(1, (range[1] - range[0]) / EDGE_BINS);
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

// whole decades where there are several, and else some figures between, all as plain numbers
export function logTicks({ range: [low, high] }) {
  const figures = high - low > 1.6 ? [1] : high - low > 0.9 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const every = Math.max(1, Math.ceil((high - low) / 7));
  const decades = [];
  for (let decade = Math.floor(low); decade <= high; decade += 1) if (decade % every === 0) decades.push(decade);
  const values = decades.flatMap((decade) => figures.map((figure) => figure * 10 ** decade));
  return { tickvals: values, ticktext: values.map((value) => writeNumber(value)) };
}

// the value of a line that keeps it until the next point
export function valueAt({ steps, values }, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low ? values[low - 1] : undefined;
}
