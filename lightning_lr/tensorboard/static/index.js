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

// TensorBoard hides the frame of a tab that isn't shown by its style
function frameOf() {
  try {
    return window.frameElement;
  } catch {
    return null;
  }
}

function seen() {
  const frame = frameOf();
  return !document.hidden && (!frame || (getComputedStyle(frame).visibility !== "hidden" && frame.getClientRects().length > 0));
}

function watchSeen(changed) {
  const frame = frameOf();
  if (frame) new MutationObserver(changed).observe(frame, { attributeFilter: ["style", "class"] });
}

export async function render() {
  // by far the largest file: asked for first; the backend puts its version here
  const charts = script("plotly.js?v=PLOTLY_VERSION").then(() => window.Plotly);
  document.documentElement.lang = "en";
  document.title = "Learning rates";
  document.head.append(make("meta", { name: "viewport", content: "width=device-width" }));
  // opened by itself the page has no icon, and asks for none
  document.head.append(make("link", { rel: "icon", href: "data:," }));
  const style = make("link", { rel: "stylesheet", href: "static/style.css" });
  const styled = new Promise((resolve) => style.addEventListener("load", resolve));
  document.head.append(style);
  const root = make("div", { id: "page" });
  document.body.append(root);
  const source = backendSource("./");
  // a chart takes its size from the page's style
  await styled;
  await createPage(root, source, { charts, live: true, themeNow, watchTheme, seen, watchSeen });
}
