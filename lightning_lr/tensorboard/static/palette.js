// Palette: colours that the colour-blind can tell apart (Okabe and Ito), with a symbol and a dash for each of what they tell.

const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const THEMES = {
  light: { lines: [...OKABE_ITO, "#000000", "#8C7B00"], ink: "#202124", faint: "#5f6368", grid: "#e3e5e8", paper: "#ffffff", none: "#eef0f2" },
  dark: { lines: ["#56B4E9", "#F08A3C", "#2FBF93", "#E3A0C6", "#E69F00", "#8FB8FF", "#ffffff", "#F0E442"], ink: "#e8eaed", faint: "#a9b0b8", grid: "#3c4043", paper: "#202124", none: "#2d3034" },
};

export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
export const MOST_RUNS = 8;

// nothing of plotly's own that leads to another host, or that the page's own buttons do
export const CHART_CONFIG = { displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: false, responsive: false, showTips: false, showLink: false, plotlyServerURL: "" };

// by cause of a change, and by what an incident was: plotly's symbol, a character of its shape that every font has, and a
// place in the palette
const SYMBOLS = {
  "change scheduler": ["circle-open", "○", 6],
  "change Warmup": ["triangle-up", "▲", 4],
  "change Cooldown": ["triangle-down", "▼", 5],
  "change PlateauDecay": ["square", "■", 3],
  "change LRFinder": ["diamond", "◆", 2],
  "change DivergenceGuard": ["triangle-left", "◀", 1],
  "incident limited": ["circle", "●", 4],
  "incident dropped": ["x", "✖", 1],
  "incident held": ["square-open", "□", 3],
  "incident rewound": ["star", "★", 1],
  "incident trial passed": ["triangle-right", "▶", 2],
  "incident trial data": ["triangle-right-open", "▷", 3],
  "incident gave up": ["star-open", "☆", 1],
  "incident broken off": ["triangle-down-open", "▽", 6],
  finding: ["diamond-open", "◇", 2],
  first: ["cross", "✚", 6],
  note: ["asterisk-open", "✳", 7],
};
const OTHER = { change: ["triangle-up-open", "△", 0], incident: ["circle-open-dot", "◎", 0] };

export function themeColours(name) {
  return THEMES[name] ?? THEMES.light;
}

// a callback of another name is shown as the class that its name ends with, if it is one of ours
export function symbolOf(mark) {
  const { kind, cause, what } = mark;
  if (kind === "incident") return SYMBOLS[`incident ${what}`] ?? OTHER.incident;
  if (kind !== "change") return SYMBOLS[kind] ?? SYMBOLS.note;
  return SYMBOLS[`change ${cause}`] ?? OTHER.change;
}

// what lowers a rate is blue, what raises it orange; the deeper, the more, up to a hundredfold
export function factorScale(theme) {
  const { none } = themeColours(theme);
  return theme === "dark"
    ? [[0, "#9fd4ff"], [0.35, "#2f7fb8"], [0.5, none], [0.65, "#b8671f"], [1, "#ffb877"]]
    : [[0, "#003f66"], [0.35, "#4f9fd0"], [0.5, none], [0.65, "#e8975a"], [1, "#8a3a00"]];
}
