// Heat: how far updates move the weights of each layer, in parts of their size, where that was recorded.

import { runParts } from "./parts.js";
import { escapeText, make, shorten } from "./text.js";
import { CHART_CONFIG, themeColours } from "./palette.js";
import { drawnRange, stepTicks } from "./range.js";

const ROW = 18;
const NARROWEST = 700;

function heatFigure(found, state, width) {
  const colours = themeColours(state.theme);
  const names = found.modules.map((tag) => tag.replace("lr-update/", ""));
  const dark = state.theme === "dark";
  // about 1e-3 is usual: less is blue, more is orange
  const scale = dark
    ? [[0, "#9fd4ff"], [0.25, "#2f7fb8"], [0.5, "#3c4043"], [0.75, "#c9711f"], [1, "#ffc894"]]
    : [[0, "#003f66"], [0.25, "#5aa6d6"], [0.5, "#f3f4f5"], [0.75, "#e8975a"], [1, "#7a3300"]];
  const labels = names.map((name) => escapeText(shorten(name, width < NARROWEST ? 16 : 28)));
  const data = [
    {
      type: "heatmap",
      x: found.steps,
      y: names.map((_, i) => i),
      z: found.values,
      zmin: -5,
      zmax: -1,
      colorscale: scale,
      customdata: found.values.map((row, i) => row.map(() => escapeText(names[i]))),
      hovertemplate: "%{customdata}<br>step %{x:,d}: 10^%{z:.2f} of the weights<extra></extra>",
      hoverongaps: false,
      ygap: 1,
      colorbar: { thickness: 12, tickvals: [-5, -4, -3, -2, -1], ticktext: ["1e-5", "1e-4", "1e-3 usual", "0.01", "0.1"], tickfont: { color: colours.ink } },
    },
  ];
  const layout = {
    width,
    height: 60 + names.length * ROW + 30,
    margin: { l: Math.max(64, ...labels.map((label) => label.length * 6.3 + 14)), r: 14, t: 10, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colours.ink },
    dragmode: "zoom",
    uirevision: "keep",
    xaxis: { range: drawnRange(state), title: { text: "step", standoff: 4 }, ...stepTicks(drawnRange(state), width < NARROWEST ? 5 : 10), gridcolor: colours.grid, zeroline: false },
    yaxis: { tickvals: names.map((_, i) => i), ticktext: labels, range: [names.length - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false },
  };
  return { data, layout };
}

export function heatMaps(place, { state, source, Plotly, zoom }) {
  const parts = runParts(place, build, () => draw());
  const shownRuns = () => state.chosenRuns().filter((run) => run.update_tags.length);

  function build(name) {
    const chart = make("div", { class: "chart", role: "img", "aria-label": `Heat map of the updates by the weights of ${name}, by module and step` });
    const part = { title: make("h2", {}), chart, found: null, listening: false };
    const words = make("p", { class: "hint", text: "The size of an update by that of the weights, for each module. About 1e-3 is usual; blue is less, orange more." });
    part.section = make("section", { "aria-label": `Effective step of ${name}` }, [part.title, words, chart]);
    return part;
  }

  async function load(range) {
    for (const run of shownRuns()) parts.of(run.name).found = await source.heat(run.name, { ...range, columns: 300 });
    await draw();
  }

  async function draw() {
    const runs = shownRuns();
    parts.show(runs);
    if (!runs.length) return;
    const charts = await Plotly;
    for (const run of runs) {
      const part = parts.of(run.name);
      part.title.textContent = runs.length > 1 ? `Effective step: ${run.name}` : "Effective step";
      if (!part.found?.modules.length || !part.chart.clientWidth) continue;
      part.width = part.chart.clientWidth;
      const { data, layout } = heatFigure(part.found, state, part.width);
      await charts.react(part.chart, data, layout, CHART_CONFIG);
      if (part.listening) continue;
      part.listening = true;
      part.chart.on("plotly_relayout", (event) => {
        const [low, high] = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
        if (low !== undefined && high !== undefined) zoom([low, high]);
      });
      part.chart.on("plotly_doubleclick", () => zoom(null));
    }
  }

  return { load, draw };
}
