// Axes: the ranges that are shown, so that one spike flattens nothing.

import { writeNumber } from "./text.js";

const SPREAD = 30;
const FIRST = 10;
const PAD = 0.06;
const RARE = 0.05;
const FAR = 2;
const DECADE = 0.3;
const LITTLE = 0.02;
const MOST_FALL = 1e6;

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

// down to where the fall of each line ends, though not more than some decades below its top
export function rateAxis(lines, range) {
  const shown = lines.map((line) => [valueAt(line, range[0]), ...within(line, range)].filter((value) => isNumber(value) && value > 0)).filter((values) => values.length);
  if (!shown.length) return { log: true, range: [-4, -1], low: 1e-4, high: 0.1 };
  const tops = shown.map(largest);
  const high = largest(tops);
  const low = -largest(shown.map((values, i) => largest(values.filter((value) => value * MOST_FALL >= tops[i]).map((value) => -value))));
  const ends = padded(low, high, true);
  if (ends[1] - ends[0] < 0.3) ends.splice(0, 2, ends[0] - 0.15, ends[1] + 0.15);
  return { log: true, range: ends, low: 10 ** ends[0], high: 10 ** ends[1] };
}

function largest(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}

// all points but those that lie farther from the usual ones than these lie apart, times some; usual is always what the losses
// began with
export function lossAxis(lines, range) {
  const shown = lines.map((line) => within(line, range).filter(isNumber));
  const sorted = shown.flat().sort((a, b) => a - b);
  if (!sorted.length) return { log: false, range: [0, 1], low: 0, high: 1 };
  const begun = shown.filter((values) => values.length).map((values) => quantile(values.slice(0, FIRST).sort((a, b) => a - b), 0.5));
  const usual = [quantile(sorted, RARE), quantile(sorted, 1 - RARE)];
  const positive = sorted.filter((value) => value > 0);
  const log = Math.min(usual[0], ...begun) > 0 && positive.at(-1) / positive[0] > SPREAD;
  const place = (value) => (log ? Math.log10(value) : value);
  const [least, most] = [Math.min(...[usual[0], ...begun].map(place)), Math.max(...[usual[1], ...begun].map(place))];
  const far = FAR * Math.max(most - least, log ? DECADE : LITTLE * Math.abs(most));
  const kept = sorted.filter((value) => (!log || value > 0) && place(value) >= least - far && place(value) <= most + far);
  const ends = padded(kept[0], kept.at(-1), log);
  return { log, range: ends, low: log ? 10 ** ends[0] : ends[0], high: log ? 10 ** ends[1] : ends[1] };
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
