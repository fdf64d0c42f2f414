// Text: numbers and names as people read them, and as elements of the page; never as markup.

const THIN = 1e-3;

export function writeNumber(value, digits = 3) {
  if (value === null || value === undefined) return "nan";
  if (typeof value === "string") return value;
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < THIN || size >= 1e5)) {
    return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(digits)));
}

export function writeStep(step) {
  return Math.round(step).toLocaleString("en-US");
}

export function writeSteps(first, last) {
  return first === last ? `step ${writeStep(first)}` : `steps ${writeStep(first)} to ${writeStep(last)}`;
}

// plotly takes some tags in its texts for markup, and entities for characters
export function escapeText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

export function shorten(text, most) {
  return text.length > most ? `${text.slice(0, Math.ceil(most * 0.6))}…${text.slice(-Math.floor(most * 0.4) + 1)}` : text;
}

// the same elements in this order; those that are there already stay, and so does the keyboard's place
export function fill(parent, children) {
  const active = document.activeElement;
  const at = [...parent.children].findIndex((child) => child.contains(active));
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  if (at < 0 || document.activeElement === active) return;
  const near = active.isConnected ? active : children[Math.min(at, children.length - 1)];
  const next = near?.matches("button, input") ? near : near?.querySelector("button, input");
  next?.focus({ preventScroll: true });
}

export function make(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
