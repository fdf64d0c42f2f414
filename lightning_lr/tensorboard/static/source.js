// Source: where the page has its data from; here TensorBoard's backend. Another one has the same methods.

export function backendSource(base = "./") {
  async function ask(route, parameters = []) {
    const query = new URLSearchParams(parameters.filter(([, value]) => value !== null && value !== undefined));
    const answer = await fetch(`${base}${route}${parameters.length ? `?${query}` : ""}`);
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error ?? `${route}: the server answered ${answer.status}`);
    return found;
  }
  const many = (name, values = []) => values.map((value) => [name, value]);
  const span = ({ from, to }) => [["from", from], ["to", to]];
  return {
    runs: () => ask("runs"),
    series: (run, tags, asked) => ask("series", [["run", run], ...many("tag", tags), ...span(asked), ["points", asked.points]]),
    records: (run, asked) =>
      ask("records", [
        ["run", run],
        ...span(asked),
        ["bins", asked.bins],
        ["limit", asked.limit],
        ...["kind", "cause", "what", "tag"].flatMap((name) => many(name, asked[name])),
      ]),
    finding: (run) => ask("finding", [["run", run]]),
    heat: (run, asked) => ask("heat", [["run", run], ...span(asked), ["columns", asked.columns]]),
  };
}
