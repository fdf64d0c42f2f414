// The page as TensorBoard opens it: in a frame of its own, with the backend beside it.

import { createPage } from "./static/page.js";
import { backendSource } from "./static/source.js";
import { make } from "./static/text.js";

function script(address) {
  return new Promise((resolve, reject) => {
    const failed = () => reject(new Error(`${address} can't be loaded`));
    document.head.append(make("script", { src: address, onload: resolve, onerror: failed }));
  });
}

// TensorBoard says whether it is dark by a class of its own page, which the frame can see
function themeNow() {
  try {
    const outer = window.parent.document.body;
    if (window.parent !== window) return outer.classList.contains("dark-mode") ? "dark" : "light";
  } catch {
    // another page has the frame, and doesn't show itself
  }
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function watchTheme(changed) {
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  try {
    if (window.parent !== window) new MutationObserver(changed).observe(window.parent.document.body, { attributeFilter: ["class"] });
  } catch {
    // as above
  }
}

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Learning rates";
  document.head.append(make("meta", { name: "viewport", content: "width=device-width" }));
  document.head.append(make("link", { rel: "stylesheet", href: "static/style.css" }));
  const root = make("div", { id: "page" });
  document.body.append(root);
  const source = backendSource("./");
  const first = source.runs().catch(() => ({ plotly: "" }));
  const charts = first.then(({ plotly }) => script(`plotly.js?v=${plotly}`)).then(() => window.Plotly);
  await createPage(root, source, { charts, live: true, themeNow, watchTheme });
}
