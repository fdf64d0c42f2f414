// Range: the steps that are shown.

import { writeStep } from "./text.js";

export function wholeRange(state) {
  const runs = state.chosenRuns().filter((run) => run.last_step !== null && run.last_step !== undefined);
  if (!runs.length) return [0, 1];
  const low = Math.min(...runs.map((run) => run.first_step ?? 0));
  return [low, Math.max(low + 1, ...runs.map((run) => run.last_step))];
}

export function describeRange(state) {
  const [low, high] = state.range ?? wholeRange(state);
  return `steps ${writeStep(low)} to ${writeStep(high)}`;
}

// with a little room at both ends, where marks at the first and the last step are seen whole
export function drawnRange(state) {
  const [low, high] = state.range ?? wholeRange(state);
  return state.range ? [low, high] : [low - (high - low) * 0.01, high + (high - low) * 0.015];
}

// there is nothing between two steps
export function stepTicks([low, high], most) {
  return { tickformat: ",d", nticks: most, ...(high - low <= most ? { tick0: 0, dtick: 1 } : {}) };
}
