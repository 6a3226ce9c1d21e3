// Curves as SVG, drawn at the width of their box. It knows points and ticks, not their meaning.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 200;
const MARGIN = { top: 12, right: 12, bottom: 26, left: 36 };

const drawings = new Map();
const widths = new ResizeObserver((boxes) => boxes.forEach(({ target }) => drawings.get(target)()));

// Draws into `box`, and again whenever its width changes. `lines` are {name, points, dots}, where a name is a class of
// page.css; `x` and `y` are {from, to, ticks}; `description` is read by screen readers.
export function plot(box, { x, y, lines, description }) {
  drawings.set(box, () => draw(box, x, y, lines, description));
  drawings.get(box)();
  widths.observe(box);
}

function draw(box, x, y, lines, description) {
  const width = Math.max(box.clientWidth, 160);
  const across = (value) => MARGIN.left + ((value - x.from) / (x.to - x.from)) * (width - MARGIN.left - MARGIN.right);
  const up = (value) => HEIGHT - MARGIN.bottom - ((value - y.from) / (y.to - y.from)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const svg = node("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": description });
  for (const value of y.ticks) {
    svg.append(node("line", { class: "grid", x1: across(x.from), x2: across(x.to), y1: up(value), y2: up(value) }));
    svg.append(node("text", { class: "tick", x: MARGIN.left - 8, y: up(value) + 4, "text-anchor": "end" }, value));
  }
  for (const value of x.ticks) {
    svg.append(node("text", { class: "tick", x: across(value), y: HEIGHT - 6, "text-anchor": "middle" }, value));
  }
  for (const { name, points, dots } of lines) {
    const positions = points.map(([px, py]) => `${across(px).toFixed(1)},${up(py).toFixed(1)}`);
    svg.append(node("polyline", { class: name, points: positions.join(" ") }));
    for (const [px, py] of dots ? points : []) {
      svg.append(node("circle", { class: name, cx: across(px), cy: up(py), r: 2.5 }));
    }
  }
  box.replaceChildren(svg);
}

// About `count` round numbers that span `low` to `high`.
export function roundTicks(low, high, count = 4) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.floor(low / step); ticks.length < 2 || ticks.at(-1) < high; i++) {
    ticks.push(Number((i * step).toPrecision(6)));
  }
  return ticks;
}

function node(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
