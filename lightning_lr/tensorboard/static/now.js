// Now: one sentence for each run, which is the switch for the runs too.

import { fill, make } from "./text.js";
import { MOST_RUNS, themeColours } from "./palette.js";

// by state: a sign of its own shape, and a word
const STATES = {
  healthy: ["●", "healthy"],
  watch: ["▲", "watch"],
  trouble: ["■", "trouble"],
  failed: ["✖", "failed"],
  ended: ["○", "ended"],
  unfinished: ["◌", "unfinished"],
  none: ["–", "no data"],
  reading: ["…", "reading"],
};
const BAD = ["trouble", "failed", "watch", "unfinished"];
const MOST_UNFILTERED = 8;

// a run keeps its colour as long as it is chosen, whatever becomes of the others
export function runColour(state, name) {
  for (const known of state.slots.keys()) if (!state.chosen.has(known)) state.slots.delete(known);
  if (!state.slots.has(name) && state.chosen.has(name)) {
    const taken = new Set(state.slots.values());
    state.slots.set(name, [...Array(MOST_RUNS).keys()].find((slot) => !taken.has(slot)) ?? 0);
  }
  return themeColours(state.theme).lines[state.slots.get(name) ?? 0];
}

function stateOf(run) {
  return run.reading ? "reading" : run.now?.state ?? "none";
}

// those that need a look come first, then those that are being written, then the latest
function ordered(runs) {
  const rank = (run) => (BAD.includes(stateOf(run)) ? BAD.indexOf(stateOf(run)) : BAD.length);
  const time = (run) => (run.writing ? Number.MAX_VALUE : run.time ?? 0);
  return [...runs].sort((a, b) => rank(a) - rank(b) || time(b) - time(a));
}

function counted(runs) {
  const counts = new Map();
  for (const run of runs) counts.set(stateOf(run), (counts.get(stateOf(run)) ?? 0) + 1);
  const words = Object.keys(STATES).filter((name) => counts.has(name)).map((name) => `${counts.get(name)} ${STATES[name][1]}`);
  return `${runs.length} runs: ${words.join(", ")}.`;
}

export function runList(place, { state, change }) {
  const filter = make("input", { type: "search", placeholder: "Find a run, or a state", "aria-label": "Find runs by their name or state", oninput: draw });
  const few = make("p", { class: "hint" });
  const list = make("ul", { class: "runs", "aria-label": "Runs: choose those to be shown" });
  const rows = new Map();
  const count = make("p", { class: "hint" });
  place.append(filter, count, list, few);

  function rowOf(name) {
    if (!rows.has(name)) {
      const box = make("input", { type: "checkbox", onchange: () => choose(name, box.checked) });
      const parts = {
        box,
        swatch: make("span", { class: "swatch", "aria-hidden": "true" }),
        name: make("span", { class: "name", text: name, title: name }),
        state: make("span", { class: "state" }),
        sentence: make("span", { class: "sentence" }),
        remarks: make("span", { class: "remarks" }),
      };
      const label = make("label", {}, [box, parts.swatch, parts.name, parts.state]);
      const only = make("button", { type: "button", class: "only", text: "only", "aria-label": `show only ${name}`, onclick: () => choose(name, true, true) });
      rows.set(name, { ...parts, only, item: make("li", {}, [label, parts.sentence, only, parts.remarks]) });
    }
    return rows.get(name);
  }

  function choose(name, on, alone = false) {
    const chosen = new Set(alone ? [] : state.chosen);
    if (on) chosen.add(name);
    else chosen.delete(name);
    change({ chosen });
  }

  function draw() {
    const wanted = filter.value.toLowerCase();
    filter.hidden = state.runs.length <= MOST_UNFILTERED;
    count.hidden = filter.hidden;
    count.textContent = counted(state.runs);
    const shown = ordered(state.runs).filter((run) => run.name.toLowerCase().includes(wanted) || (STATES[stateOf(run)] ?? STATES.none)[1].startsWith(wanted));
    const items = shown.map((run) => {
      const row = rowOf(run.name);
      const now = stateOf(run);
      const [sign, word] = STATES[now] ?? STATES.none;
      const on = state.chosen.has(run.name);
      row.box.checked = on;
      row.box.disabled = !run.has_data || (!on && state.chosen.size >= MOST_RUNS);
      row.swatch.style.background = on ? runColour(state, run.name) : "transparent";
      row.state.textContent = `${sign} ${word}`;
      row.state.dataset.state = now;
      row.sentence.textContent = run.reading ? "being read" : run.error ?? run.now?.sentence ?? "";
      row.only.hidden = state.runs.length < 2 || !run.has_data;
      row.remarks.textContent = (run.remarks ?? []).join("; ");
      return row.item;
    });
    fill(list, items);
    few.hidden = state.chosen.size < MOST_RUNS;
    few.textContent = `At most ${MOST_RUNS} runs are shown at once: take one away to choose another.`;
  }

  return { draw };
}
