// Choices: which param groups are shown, and which causes; their signs are the legend.

import { fill, make, shorten } from "./text.js";
import { DASHES, symbolOf, themeColours } from "./palette.js";

const MOST_LETTERS = 48;

export function causeName({ kind, cause, what }) {
  if (kind === "incident") return `${cause}: ${what}`;
  if (kind === "finding") return `${cause}: finding`;
  if (kind === "note") return cause ? `${cause}: notes` : "notes";
  if (kind === "first") return "first updates";
  return cause || "change";
}

export function shownMarks(state, name) {
  const marks = state.data.get(name)?.marks ?? [];
  return marks.filter((mark) => !state.hiddenCauses.has(causeName(mark)) && !state.hiddenTags.has(mark.tag));
}

export function rateTags(state) {
  return [...new Set(state.chosenRuns().flatMap((run) => run.rate_tags))];
}

export function dashOf(state, tag) {
  return DASHES[Math.max(rateTags(state).indexOf(tag), 0) % DASHES.length];
}

// of one run each group has a colour of its own; of several each run has, and the groups are told apart by their dashes
export function groupColour(state, tag) {
  const colours = themeColours(state.theme);
  return state.chosenRuns().length > 1 ? colours.ink : colours.lines[Math.max(rateTags(state).indexOf(tag), 0) % colours.lines.length];
}

// the sign of a mark, in its colour in the chart
export function signOf(state, mark) {
  const [, text, place] = symbolOf(mark);
  const sign = make("span", { text });
  if (state.chosenRuns().length < 2) sign.style.color = themeColours(state.theme).lines[place];
  return sign;
}

export function choices(place, { state, change }) {
  const groups = make("div", { class: "chips", role: "group", "aria-label": "Param groups" });
  const causes = make("div", { class: "chips", role: "group", "aria-label": "Causes" });
  place.append(groups, causes);

  // of `hidden` one is turned on or off; with alt or shift only this one stays
  function flip(field, all, name, alone) {
    const hidden = new Set(alone ? all.filter((other) => other !== name) : state[field]);
    if (!alone && !hidden.delete(name)) hidden.add(name);
    change({ [field]: hidden });
  }

  // chips that are there already stay: the mouse may be on one, and the keyboard's place
  const chips = new Map();

  function chip(field, all, name, words, sign) {
    const key = `${field} ${name}`;
    if (!chips.has(key)) {
      const parts = { sign: make("span", { class: "sign", "aria-hidden": "true" }), text: make("span", {}) };
      parts.button = make("button", { type: "button", class: "chip" }, [parts.sign, parts.text]);
      chips.set(key, parts);
    }
    const { button, ...parts } = chips.get(key);
    button.setAttribute("aria-pressed", String(!state[field].has(name)));
    button.onclick = (event) => flip(field, all, name, event.altKey);
    button.title = `${words}: show or hide; with the Alt key: only this one`;
    parts.text.textContent = shorten(words, MOST_LETTERS);
    parts.sign.replaceChildren(sign);
    return button;
  }

  function groupSign(tag) {
    const sign = make("span", { class: `dash ${dashOf(state, tag)}`, "aria-hidden": "true" });
    sign.style.color = groupColour(state, tag);
    return sign;
  }

  function draw() {
    const tags = rateTags(state);
    groups.hidden = tags.length < 2;
    fill(groups, tags.map((tag) => chip("hiddenTags", tags, tag, tag, groupSign(tag))));
    const counts = new Map();
    for (const { marks } of state.data.values()) {
      for (const mark of marks) {
        const name = causeName(mark);
        const [count, sample] = counts.get(name) ?? [0, mark];
        counts.set(name, [count + mark.count, sample]);
      }
    }
    const names = [...counts.keys()].sort();
    const buttons = names.map((name) => {
      const [count, sample] = counts.get(name);
      return chip("hiddenCauses", names, name, `${name} (${count})`, signOf(state, sample));
    });
    fill(causes, buttons);
  }

  return { draw };
}
