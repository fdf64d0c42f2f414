// Finder: what a sweep over rates has found: its curve, its trials, the range that can't be told apart, and the pick.

import { runParts } from "./parts.js";
import { make, writeNumber, writeStep } from "./text.js";
import { CHART_CONFIG, themeColours } from "./palette.js";
import { isNumber, logTicks } from "./axes.js";

const HEIGHT = 320;

function sweepFigure(finding, theme, width) {
  const colours = themeColours(theme);
  const [blue, red, green] = colours.lines;
  const look = finding.losses.slice(0, finding.look ?? 0);
  const level = look.length && look.every(isNumber) ? look.reduce((a, b) => a + b, 0) / look.length : null;
  const ramp = rampOf(finding, look, level);
  const shown = ramp.filter(([rate, loss]) => rate > 0 && isNumber(loss));
  // of a rate that was tried twice the second trial was the longer one
  const trials = [...new Map(finding.trials).entries()].sort((a, b) => a[0] - b[0]);
  const ended = trials.filter(([, loss]) => isNumber(loss));
  const blown = [...trials.filter(([, loss]) => !isNumber(loss)), ...ramp.filter(([, loss]) => !isNumber(loss))].map(([rate]) => rate);
  const heights = [...shown.slice(0, Math.ceil(shown.length / 2)), ...ended].map(([, loss]) => loss);
  const low = Math.min(...heights, ...shown.map(([, loss]) => loss));
  const high = Math.max(...heights);
  const room = Math.max(high - low, 0.05 * Math.abs(high), 1e-12);
  const yRange = heights.length ? [low - 0.3 * room, high + room] : [0, 1];
  const points = (name, pairs, more) => ({ type: "scatter", name, x: pairs.map(([x]) => x), y: pairs.map(([, y]) => y), hovertemplate: "rate %{x:.3g}<br>loss %{y:.4g}<extra></extra>", ...more });
  const data = [];
  if (shown.length) data.push(points("ramp", shown, { mode: "lines+markers", line: { color: colours.faint, dash: "dot", width: 1 }, marker: { size: 5, color: colours.faint } }));
  if (ended.length) data.push(points("trials: loss at the end", ended, { mode: "lines+markers", line: { color: blue }, marker: { size: 9, symbol: "square", color: blue } }));
  if (blown.length) {
    const top = yRange[1] - 0.06 * (yRange[1] - yRange[0]);
    data.push(points("blew up", blown.map((rate) => [rate, top]), { mode: "markers", marker: { symbol: "x", size: 10, color: red }, hovertemplate: "rate %{x:.3g} blew up<extra></extra>" }));
  }
  const line = (x, dash, colour, wide = 1) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour, dash, width: wide } });
  const shapes = [];
  const annotations = [];
  if (isNumber(finding.low) && isNumber(finding.high) && finding.low < finding.high) {
    shapes.push({ type: "rect", x0: finding.low, x1: finding.high, y0: 0, y1: 1, yref: "paper", fillcolor: blue, opacity: 0.14, line: { width: 0 }, layer: "below" });
    data.push(points("can't be told from the best", [[null, null]], { mode: "markers", marker: { symbol: "square", size: 12, color: blue, opacity: 0.3 } }));
  }
  if (level !== null) {
    shapes.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: level, y1: level, line: { color: colours.faint, dash: "dash", width: 1 } });
    annotations.push({ text: "before, on the same batches", x: 0, xref: "paper", y: level, xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 11, color: colours.faint } });
  }
  const best = isNumber(finding.suggestion) && isNumber(finding.share) && finding.share < 1 ? finding.suggestion / finding.share : null;
  if (best) {
    shapes.push(line(best, "dot", green));
    annotations.push({ text: `best ${writeNumber(best)}`, x: Math.log10(best), y: 0.02, yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 11, color: colours.ink } });
  }
  if (isNumber(finding.suggestion)) {
    shapes.push(line(finding.suggestion, "solid", green, 3));
    annotations.push({ text: `picked ${writeNumber(finding.suggestion)}`, x: Math.log10(finding.suggestion), y: 1, yref: "paper", xanchor: "right", yanchor: "top", showarrow: false, font: { size: 13, color: colours.ink } });
  }
  const rates = [...ramp.map(([rate]) => rate), ...trials.map(([rate]) => rate), finding.suggestion].filter((rate) => isNumber(rate) && rate > 0).map(Math.log10);
  const xRange = rates.length ? [Math.min(...rates) - 0.3, Math.max(...rates) + 0.3] : [-8, 1];
  const layout = {
    width,
    height: HEIGHT,
    margin: { l: 64, r: 14, t: 14, b: 76 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colours.ink },
    hovermode: "closest",
    dragmode: false,
    legend: { orientation: "h", y: -0.2, yanchor: "top", itemclick: false, itemdoubleclick: false },
    xaxis: { type: "log", range: xRange, ...logTicks({ range: xRange }), title: { text: "learning rate", standoff: 4 }, gridcolor: colours.grid, fixedrange: true },
    yaxis: { title: { text: "training loss" }, range: yRange, gridcolor: colours.grid, zeroline: false, fixedrange: true },
    shapes,
    annotations,
  };
  return { data, layout };
}

// a ramp that went over the look's batches again and again is drawn without what these differ by
function rampOf(finding, look, level) {
  const begin = look.length;
  return finding.rates.slice(begin, begin + finding.ramp).map((rate, i) => {
    const loss = finding.losses[begin + i];
    return [rate, finding.paired && level !== null && isNumber(loss) ? level + (loss - look[i % begin]) : loss];
  });
}

function sweepTitle(finding) {
  const sure = finding.sure === true ? ", sure" : finding.sure === false ? ", unsure" : "";
  const found = isNumber(finding.suggestion) ? `rate ${writeNumber(finding.suggestion)}${sure}` : "no suggestion";
  return `step ${writeStep(finding.step ?? finding.at)}: ${found}`;
}

export function finderCharts(place, { state, source, Plotly }) {
  const parts = runParts(place, build, () => draw());

  function build(name) {
    const chart = make("div", { class: "chart", role: "img" });
    const pick = make("select", { "aria-label": "which sweep", onchange: () => draw() });
    const part = { title: make("h2", {}), words: make("p", {}), pick, chart, findings: [], count: -1 };
    part.section = make("section", { "aria-label": `Finder of ${name}` }, [part.title, pick, part.words, chart]);
    return part;
  }

  const shownRuns = () => state.chosenRuns().filter((run) => run.findings > 0);

  async function load() {
    for (const run of shownRuns()) {
      const part = parts.of(run.name);
      if (part.count === run.findings) continue;
      part.findings = (await source.finding(run.name)).findings;
      part.count = run.findings;
      part.pick.replaceChildren(...part.findings.map((finding, i) => make("option", { value: i, text: `${finding.callback ?? ""} ${sweepTitle(finding)}` })));
      // the first sweep found the rate; what came after it were second opinions
      part.pick.value = "0";
      part.pick.hidden = part.findings.length < 2;
    }
    await draw();
  }

  async function draw() {
    const runs = shownRuns();
    parts.show(runs);
    if (!runs.length) return;
    const charts = await Plotly;
    for (const run of runs) {
      const part = parts.of(run.name);
      const finding = part.findings[Number(part.pick.value) || 0];
      part.title.textContent = runs.length > 1 ? `The finder: ${run.name}` : "The finder";
      if (!finding || !part.chart.clientWidth) continue;
      part.words.textContent = `${sweepTitle(finding)}. ${finding.words}`;
      part.chart.setAttribute("aria-label", `Loss by learning rate: ${sweepTitle(finding)}`);
      part.width = part.chart.clientWidth;
      const { data, layout } = sweepFigure(finding, state.theme, part.width);
      await charts.react(part.chart, data, layout, CHART_CONFIG);
    }
  }

  return { load, draw };
}
