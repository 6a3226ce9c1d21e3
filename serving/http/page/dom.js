// Finding and making elements. Text is inserted as text: nothing from the server is parsed as HTML.

export const at = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export function button(text, onClick, label) {
  const element = make("button", { className: "plain", type: "button" }, text);
  if (label) element.ariaLabel = label;
  element.addEventListener("click", onClick);
  return element;
}

export function row(...cells) {
  const [first, ...rest] = cells;
  return make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((cell) => make("td", {}, cell)));
}

export function duration(seconds) {
  return seconds < 0.0995 ? `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// Says something in the status line, which screen readers read out.
export function announce(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}
