// Parts: one section with a chart for each run that has something to show in it.

export function runParts(place, build, redraw) {
  const parts = new Map();

  function of(name) {
    if (!parts.has(name)) {
      const part = build(name);
      new ResizeObserver(() => part.chart.clientWidth && part.chart.clientWidth !== part.width && redraw()).observe(part.chart);
      parts.set(name, part);
    }
    return parts.get(name);
  }

  // what stands there already stays, and keeps its focus
  function show(runs) {
    const sections = runs.map((run) => of(run.name).section);
    if (sections.length !== place.children.length || sections.some((section, i) => place.children[i] !== section)) place.replaceChildren(...sections);
  }

  return { of, show };
}
