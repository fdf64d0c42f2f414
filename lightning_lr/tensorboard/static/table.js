// Table: every mark as a row, for the keyboard, for those who don't see the charts, and for reading.

import { make, writeNumber, writeSteps } from "./text.js";
import { symbolOf } from "./palette.js";
import { causeName, shownMarks } from "./choices.js";

const MOST_ROWS = 200;

function words(mark) {
  if (mark.count === 1 || !mark.last_words) return mark.words;
  const change = mark.old !== null && mark.new !== null ? ` (${writeNumber(mark.old)} → ${writeNumber(mark.new)})` : "";
  return `${mark.count} alike${change}; the first: ${mark.words}`;
}

export function markTable(place, { state, open }) {
  const summary = make("summary", {});
  const body = make("tbody", {});
  const heads = ["Step", "Run", "Cause", "In words"].map((text) => make("th", { scope: "col", text }));
  const table = make("table", {}, [make("thead", {}, [make("tr", {}, heads)]), body]);
  const left = make("p", { class: "hint" });
  place.append(make("details", { open: true }, [summary, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Changes and incidents" }, [table]), left]));
  let drawn = "";

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
    const now = JSON.stringify([several, shown]);
    if (now === drawn) return;
    drawn = now;
    left.textContent = rows.length > shown.length ? `The latest ${MOST_ROWS} rows; ${rows.length - shown.length} before them: zoom in to see these.` : "";
    heads[1].hidden = !several;
    body.replaceChildren(
      ...shown.map(({ run, mark }) => {
        const text = writeSteps(mark.step, mark.step_end).replace(/^steps? /, "");
        const button = make("button", { type: "button", text, "aria-label": `details, step ${text}, ${causeName(mark)}`, onclick: () => open(run, mark, button) });
        return make("tr", {}, [
          make("td", {}, [button]),
          make("td", { text: run, hidden: !several }),
          make("td", {}, [make("span", { class: "sign", "aria-hidden": "true", text: symbolOf(mark)[1] }), make("span", { text: causeName(mark) })]),
          make("td", { text: words(mark) }),
        ]);
      }),
    );
  }

  return { draw };
}
