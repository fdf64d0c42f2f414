// Table: every mark as a row, for the keyboard, for those who don't see the charts, and for reading.

import { fill, make, writeNumber, writeSteps } from "./text.js";
import { causeName, shownMarks, signOf } from "./choices.js";

const MOST_ROWS = 200;

function words(mark) {
  if (mark.count === 1 || !mark.last_words) return mark.words;
  const change = mark.old !== null && mark.new !== null ? ` (${writeNumber(mark.old)} → ${writeNumber(mark.new)})` : "";
  return `${mark.count} alike${change}; the first: ${mark.words}`;
}

// of a mark that grows the row stays
function keyOf(run, mark) {
  return JSON.stringify([run, mark.kind, mark.cause, mark.what, mark.tag, mark.step]);
}

export function markTable(place, { state, open }) {
  const summary = make("summary", {});
  const body = make("tbody", {});
  const heads = ["Step", "Run", "Cause", "In words"].map((text) => make("th", { scope: "col", text }));
  const table = make("table", {}, [make("thead", {}, [make("tr", {}, heads)]), body]);
  const left = make("p", { class: "hint" });
  place.append(make("details", { open: true }, [summary, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Changes and incidents" }, [table]), left]));
  const known = new Map();
  let drawn = "";

  function rowOf(run) {
    const button = make("button", { type: "button" });
    const parts = { run: make("td", { text: run }), sign: make("span", { class: "sign", "aria-hidden": "true" }), cause: make("span", {}), words: make("td", {}) };
    const row = make("tr", {}, [make("td", {}, [button]), parts.run, make("td", {}, [parts.sign, parts.cause]), parts.words]);
    return { ...parts, button, row };
  }

  function draw() {
    const [low, high] = state.range ?? [-Infinity, Infinity];
    const rows = state
      .chosenRuns()
      .flatMap((run) => shownMarks(state, run.name).map((mark) => ({ run: run.name, mark })))
      .filter(({ mark }) => mark.step_end >= low && mark.step <= high)
      .sort((a, b) => b.mark.step_end - a.mark.step_end);
    summary.textContent = `Changes and incidents (${rows.reduce((sum, { mark }) => sum + mark.count, 0)}), latest first`;
    const several = state.chosen.size > 1;
    const shown = rows.slice(0, MOST_ROWS);
    const now = JSON.stringify([several, state.theme, shown]);
    if (now === drawn) return;
    drawn = now;
    left.textContent = rows.length > shown.length ? `The latest ${MOST_ROWS} rows; ${rows.length - shown.length} before them: zoom in to see these.` : "";
    heads[1].hidden = !several;
    const used = new Set();
    const elements = shown.map(({ run, mark }) => {
      let key = keyOf(run, mark);
      while (used.has(key)) key += "+";
      used.add(key);
      if (!known.has(key)) known.set(key, rowOf(run));
      const parts = known.get(key);
      const text = writeSteps(mark.step, mark.step_end).replace(/^steps? /, "");
      parts.button.textContent = text;
      parts.button.setAttribute("aria-label", `details, step ${text}, ${causeName(mark)}`);
      parts.button.onclick = () => open(run, mark, parts.button);
      parts.run.hidden = !several;
      parts.sign.replaceChildren(signOf(state, mark));
      parts.cause.textContent = causeName(mark);
      parts.words.textContent = words(mark);
      return parts.row;
    });
    for (const key of known.keys()) if (!used.has(key)) known.delete(key);
    fill(body, elements);
  }

  return { draw };
}
