// Detail: all that is known of one mark, in a panel.

import { make, writeNumber, writeStep, writeSteps } from "./text.js";
import { causeName } from "./choices.js";

const MOST_RECORDS = 50;
const NAMES = {
  tag: "group", update: "update", epoch: "epoch", batch: "batch", rank: "fault on rank", optimizer: "optimizer", loss: "loss",
  grad_norm: "gradient norm", threshold: "limit on the norm", update_ratio: "last update by weights", factor: "factor", back: "back to",
  parameters: "not finite", cause: "cause", callback: "callback", what: "what", old: "before", new: "after", first: "first", last: "last",
  lowest: "lowest", highest: "highest", changes: "changes", start: "began at step", evidence: "evidence",
};

function value(name, given) {
  if (given === null || given === undefined || given === "") return "";
  if (Array.isArray(given)) return given.map((one) => value(name, one)).join(", ");
  if (typeof given === "object") return Object.entries(given).map(([key, one]) => `${key} ${value(key, one)}`).join(", ");
  if (typeof given !== "number") return String(given);
  return ["update", "epoch", "batch", "rank", "start", "step", "changes"].includes(name) ? writeStep(given) : writeNumber(given, 5);
}

function oneRecord(record) {
  const facts = Object.entries(NAMES)
    .filter(([name]) => record[name] !== undefined && value(name, record[name]) !== "")
    .flatMap(([name, words]) => [make("dt", { text: words }), make("dd", { text: value(name, record[name]) })]);
  const parts = (record.parts ?? []).map((part) =>
    make("li", { text: `${part.source}: ${writeNumber(part.old, 5)} → ${writeNumber(part.new, 5)}${part.reason ? `: ${part.reason}` : ""}` }),
  );
  return make("article", {}, [
    make("h4", { text: `step ${writeStep(record.step)}` }),
    make("p", { text: record.words ?? "" }),
    parts.length ? make("ul", {}, parts) : null,
    facts.length ? make("dl", {}, facts) : null,
  ]);
}

export function detailPanel(place, source, giveFocusBack) {
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", "Detail of a mark");
  place.hidden = true;
  let opener = null;

  // wherever the keyboard's place is: a click on a chart leaves it where it was
  function onKey(event) {
    if (event.key === "Escape") close();
  }

  function close() {
    const inside = place.contains(document.activeElement);
    document.removeEventListener("keydown", onKey);
    place.hidden = true;
    window.dispatchEvent(new Event("resize"));
    if (!inside) return;
    if (opener?.isConnected) opener.focus();
    else giveFocusBack();
  }

  async function open(run, mark, from = null) {
    opener = from;
    const title = make("h3", { text: causeName(mark), tabindex: "-1" });
    const body = make("div", {}, [make("p", { text: "…" })]);
    const head = `${run}, ${writeSteps(mark.step, mark.step_end)}${mark.count > 1 ? `, ${mark.count} of them` : ""}`;
    place.replaceChildren(
      make("button", { type: "button", class: "close", text: "Close", onclick: close }),
      title,
      make("p", { class: "hint", text: head }),
      body,
    );
    document.addEventListener("keydown", onKey);
    place.hidden = false;
    window.dispatchEvent(new Event("resize"));
    // without it the keys may still go to the page around this one
    title.focus({ preventScroll: !from });
    try {
      const asked = { from: mark.step_end === mark.step || mark.count === 1 ? mark.step_end : mark.step, to: mark.step_end, limit: MOST_RECORDS, bins: 10 };
      const found = await source.records(run, { ...asked, kind: kindsOf(mark), ...filled(mark) });
      const left = found.left_out ? [make("p", { class: "hint", text: `The latest ${found.records.length}; ${found.left_out} before them.` })] : [];
      body.replaceChildren(...left, ...found.records.map(oneRecord));
    } catch (error) {
      body.replaceChildren(make("p", { class: "problem", text: error.message }));
    }
  }

  return { open };
}

function kindsOf(mark) {
  return [mark.kind];
}

function filled(mark) {
  return Object.fromEntries(["cause", "what", "tag"].map((name) => [name, mark[name] ? [mark[name]] : []]));
}
