// Source for a page that stands alone: what the backend would answer is in the page, a bit finer than one screen shows.

function inlineSource(data) {
  const inside = (low, high, { from, to }) => (to === null || low <= to) && (from === null || high >= from);

  function cut({ steps, values }, { from, to }) {
    const first = from === null ? 0 : steps.findIndex((step) => step >= from);
    const after = to === null ? -1 : steps.findIndex((step) => step > to);
    // one more on each side, so that lines go on to the edges
    const low = Math.max(0, (first < 0 ? steps.length : first) - 1);
    const high = after < 0 ? steps.length : after + 1;
    return { steps: steps.slice(low, high), values: values.slice(low, high) };
  }

  const wanted = (given, value) => !given?.length || given.includes(value);

  return {
    runs: async () => ({ plotly: "", runs: data.runs.map((run) => run.summary) }),

    series: async (name, tags, asked) => {
      const { series } = data.runs.find(({ summary }) => summary.name === name);
      const found = tags.filter((tag) => tag in series).map((tag) => [tag, cut(series[tag], asked)]);
      return { series: Object.fromEntries(found) };
    },

    records: async (name, asked) => {
      const { marks, records } = data.runs.find(({ summary }) => summary.name === name);
      const found = records.filter(
        ({ record, key }) =>
          inside(record.start ?? record.step, record.step, asked) &&
          ["kind", "cause", "what", "tag"].every((field) => wanted(asked[field], key[field])),
      );
      const shown = asked.limit ? found.slice(-asked.limit) : [];
      return {
        marks: marks.filter((mark) => inside(mark.step, mark.step_end, asked)),
        records: shown.map(({ record }) => record),
        left_out: found.length - shown.length,
      };
    },

    finding: async (name) => ({ findings: data.runs.find(({ summary }) => summary.name === name).findings }),

    heat: async (name, asked) => {
      const { modules, steps, values } = data.runs.find(({ summary }) => summary.name === name).heat;
      const shown = steps.slice(0, -1).flatMap((step, i) => (inside(step, steps[i + 1] - 1, asked) ? [i] : []));
      if (!shown.length) return { modules, steps: [], values: modules.map(() => []) };
      const [low, high] = [shown[0], shown[shown.length - 1]];
      return { modules, steps: steps.slice(low, high + 2), values: values.map((row) => row.slice(low, high + 1)) };
    },
  };
}

{
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  createPage(document.getElementById("page"), inlineSource(JSON.parse(document.getElementById("data").textContent)), {
    charts: Promise.resolve(window.Plotly),
    themeNow: () => (dark.matches ? "dark" : "light"),
    watchTheme: (changed) => dark.addEventListener("change", changed),
  });
}
