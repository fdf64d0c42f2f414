// Page: puts the parts together, keeps what is chosen, and asks for what they need.

import { make } from "./text.js";
import { themeColours } from "./palette.js";
import { runList } from "./now.js";
import { choices } from "./choices.js";
import { timeline } from "./timeline.js";
import { markTable } from "./table.js";
import { detailPanel } from "./detail.js";
import { finderCharts } from "./finder.js";
import { heatMaps } from "./heat.js";

const POLL = 3000;
const POINTS = 1500;
const READING = 200;
const MARGIN = 0.5;

export async function createPage(root, source, { charts, live = false, themeNow = () => "light", watchTheme = () => {}, seen = () => !document.hidden, watchSeen = () => {} }) {
  const state = {
    runs: [],
    chosen: new Set(),
    slots: new Map(),
    hiddenTags: new Set(),
    hiddenCauses: new Set(),
    range: null,
    theme: themeNow(),
    data: new Map(),
  };
  let touched = false;
  let asked = 0;
  let shown = "";
  const page = layOut(root);
  const panel = detailPanel(page.detail, source, () => page.table.querySelector("button")?.focus({ preventScroll: true }));
  const Plotly = { then: (go) => charts.then(go) };
  const context = { state, source, Plotly, open: panel.open, change, zoom };
  const list = runList(page.now, context);
  const chooser = choices(page.choices, context);
  const line = timeline(page.timeline, context);
  const table = markTable(page.table, context);
  const finder = finderCharts(page.finder, context);
  const heat = heatMaps(page.heat, context);
  const say = (words) => {
    page.problem.textContent = words;
    page.problem.hidden = !words;
  };

  const chosenRuns = () => state.runs.filter((run) => state.chosen.has(run.name) && run.has_data);
  state.chosenRuns = chosenRuns;

  function change(changes) {
    Object.assign(state, changes);
    touched = touched || "chosen" in changes;
    return load();
  }

  function zoom(range) {
    state.range = range && [Math.max(Math.floor(range[0]), 0), Math.ceil(range[1])];
    draw();
    return load();
  }

  // of a run the first look has all of it; zoomed in, what lies a bit beyond too, so that the next step has it at once
  function span() {
    if (!state.range) return { from: null, to: null };
    const margin = Math.ceil((state.range[1] - state.range[0]) * MARGIN);
    return { from: Math.max(0, state.range[0] - margin), to: state.range[1] + margin };
  }

  async function load() {
    const mine = ++asked;
    const range = span();
    try {
      const found = await Promise.all(chosenRuns().map(async (run) => [run.name, await ofRun(run, range)]));
      if (mine !== asked) return;
      state.data = new Map(found);
      say("");
      draw();
      await Promise.all([finder.load(), heat.load(range)]);
    } catch (error) {
      if (mine === asked) say(`The data could not be read: ${error.message}.`);
    }
  }

  async function ofRun(run, range) {
    const tags = [...run.rate_tags, ...run.factor_tags, ...run.loss_tags.slice(0, 4)].slice(0, 64);
    const [series, records] = await Promise.all([
      tags.length ? source.series(run.name, tags, { ...range, points: POINTS }) : { series: {} },
      source.records(run.name, { ...range, bins: 200, limit: 0 }),
    ]);
    return { series: series.series, marks: records.marks };
  }

  function draw() {
    list.draw();
    chooser.draw();
    line.draw();
    table.draw();
    finder.draw();
    heat.draw();
    root.dataset.theme = state.theme;
    const { paper } = themeColours(state.theme);
    document.documentElement.style.background = paper;
  }

  async function refresh() {
    let found;
    try {
      found = await source.runs();
    } catch (error) {
      say(`The runs could not be listed: ${error.message}. It is tried again.`);
      return POLL;
    }
    state.runs = found.runs;
    const known = state.runs.filter((run) => run.has_data);
    if (!touched && !known.some((run) => state.chosen.has(run.name))) {
      const latest = [...known].sort((a, b) => (b.time ?? 0) - (a.time ?? 0))[0];
      state.chosen = new Set(latest ? [latest.name] : []);
    }
    const now = JSON.stringify([...state.chosen, ...chosenRuns().map((run) => [run.last_step, run.records, run.time])]);
    if (now === shown) list.draw();
    else {
      shown = now;
      await load();
    }
    page.empty.hidden = state.runs.length > 0;
    return state.runs.some((run) => run.reading) ? READING : POLL;
  }

  watchTheme(() => {
    if (themeNow() === state.theme) return;
    state.theme = themeNow();
    draw();
  });
  draw();
  const pause = await refresh();
  root.dataset.ready = "true";
  if (live) keepUp(refresh, pause, seen, watchSeen);
  return { refresh, state, zoom };
}

// asks again and again, but not while nobody looks
function keepUp(refresh, pause, seen, watchSeen) {
  let timer = setTimeout(again, pause);
  async function again() {
    timer = null;
    if (!seen()) return;
    const next = await refresh();
    timer ??= setTimeout(again, next);
  }
  const wake = () => {
    if (timer === null && seen()) timer = setTimeout(again, 0);
  };
  document.addEventListener("visibilitychange", wake);
  watchSeen(wake);
}

function layOut(root) {
  const parts = Object.fromEntries(
    ["now", "choices", "timeline", "detail", "table", "finder", "heat"].map((name) => [name, make("div", { class: name })]),
  );
  const problem = make("p", { class: "problem", role: "alert", hidden: true });
  const empty = make("p", {
    class: "empty",
    hidden: true,
    text: "No run here has learning rates yet. A run has them as soon as a Trainer with one of lightning_lr's callbacks and a TensorBoardLogger has started.",
  });
  const section = (title, ...children) => make("section", { "aria-label": title }, [make("h2", { text: title }), ...children]);
  root.replaceChildren(
    problem,
    empty,
    section("Now", parts.now),
    section("The story", parts.choices, make("div", { class: "beside" }, [parts.timeline, parts.detail]), parts.table),
    parts.finder,
    parts.heat,
  );
  return { ...parts, problem, empty };
}
