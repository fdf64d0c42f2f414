// Lanes: what multiplies the rate, one band for each callback that has moved it.

import { writeNumber } from "./text.js";
import { isNumber } from "./axes.js";

const COLUMNS = 600;
const DECADES = 2;

export function laneName(tag) {
  const [name, ...group] = tag.replace("lr-factor/", "").split("/");
  return group.length ? `${name} · ${group.join("/").replace(/^lr-/, "")}` : name;
}

// where several values share a column, the one farthest from 1, so that no step gets lost
function band({ steps, values }, [low, high], last) {
  const found = new Array(COLUMNS).fill(null);
  const width = (high - low) / COLUMNS || 1;
  const column = (step) => Math.floor((step - low) / width);
  steps.forEach((step, i) => {
    const until = i + 1 < steps.length ? steps[i + 1] : last;
    if (until < low || step > high || !isNumber(values[i])) return;
    const log = values[i] > 0 ? Math.max(-DECADES, Math.min(DECADES, Math.log10(values[i]))) : -DECADES;
    const begin = column(step);
    for (let c = Math.max(0, begin); c <= Math.min(COLUMNS - 1, column(until)); c += 1) {
      const farther = c === begin && found[c] !== null && Math.abs(found[c]) > Math.abs(log);
      if (!farther) found[c] = log;
    }
  });
  return found;
}

export function lanesOf(state, range) {
  const lanes = [];
  const still = new Set();
  for (const run of state.chosenRuns()) {
    const series = state.data.get(run.name)?.series ?? {};
    for (const tag of run.factor_tags) {
      const line = series[tag];
      if (!line?.steps.length) continue;
      if (line.values.every((value) => value === 1)) {
        still.add(laneName(tag));
        continue;
      }
      if ([...state.hiddenTags].some((hidden) => tag.endsWith(`/${hidden}`))) continue;
      const now = line.values.at(-1);
      lanes.push({ run: run.name, name: laneName(tag), line, now, label: `${laneName(tag)} ×${writeNumber(now)}`, values: band(line, range, run.last_step) });
    }
  }
  const moved = new Set(lanes.map((lane) => lane.name));
  return { lanes, still: [...still].filter((name) => !moved.has(name)), columns: COLUMNS };
}
