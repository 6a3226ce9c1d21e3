// The adaptation report as figures, tables and sentences. Knows the report's fields, not where it came from.

import { at, count, duration, make, row } from "./dom.js";
import { plot, round } from "./figures.js";

const STOPS = {
  steps: "every step of the budget was taken",
  gain: "one step more would not have been worth its compute: the prompt itself gained too little",
  alpha: "one step more would not have been worth its compute",
  seconds: "the time was up",
  diverged: "training diverged, and its last good step was kept",
  "out of memory": "the memory was full",
};
const STAGES = {
  embed: "embedding the prompt",
  search: "searching the corpus",
  select: "choosing",
  queue: "waiting for the trainer",
  train: "training",
  load: "loading the adapter",
  rest: "other waiting, and on the way",
  answer: "answering",
};
const SHOWN = 8; // documents, until all are asked for

// What the adapted answer is, in a sentence or two.
export function sentence({ adapted, reason, spent, stop, budget, degraded }) {
  const cut = budget.cut.length ? ` The budget was cut to the limits of the server: ${budget.cut.join(" and ")}.` : "";
  const busy = degraded ? ` The server is busy: ${degraded}.` : "";
  if (!adapted) return `The base model answered: ${reason}.${cut}${busy}`;
  return `${count(spent.steps, "step")} in ${duration(spent.seconds)}: ${STOPS[stop] ?? stop}.${cut}${busy}`;
}

// Draws everything; `read` is called with a document when its text is asked for.
export function show(report, read) {
  at("report").hidden = false; // first: figures are drawn at the width they have
  const steps = Math.max(report.uncertainty.length - 1, report.losses.length);
  for (const part of at("report").querySelectorAll(".figures, .figures ~ details")) part.hidden = steps === 0;
  if (steps > 0) curves(report, steps);
  taught(report, read);
  times(report);
}

function curves({ uncertainty, losses, budget, irreducible }, steps) {
  const last = uncertainty.at(-1);
  const line = (n) => (budget.alpha === null || n === 0 ? Infinity : 1 / (budget.alpha * n));
  const x = { from: 0, to: steps, ticks: round(0, steps).filter((n) => Number.isInteger(n) && n <= steps) };

  const stop = [];
  for (let n = 1 / budget.alpha; budget.alpha !== null && n < steps; n += steps / 60) stop.push([n, line(n)]);
  if (stop.length) stop.push([steps, line(steps)]);
  const floor = irreducible === null ? [] : [[0, irreducible], [steps, irreducible]];
  at("sigma-told").textContent = `\u03c3 went from ${uncertainty[0].toFixed(2)} to ${last.toFixed(3)} in ${count(steps, "step")}.`;
  document.querySelector(".legend .stop").hidden = stop.length === 0;
  document.querySelector(".legend .floor").hidden = floor.length === 0;
  plot(at("sigma"), {
    x,
    y: { from: 0, to: 1, ticks: [0, 0.5, 1] },
    lines: [
      { name: "floor", points: floor },
      { name: "stop", points: stop },
      { name: "sigma", points: uncertainty.map((sigma, n) => [n, sigma]), dots: steps <= 60 },
    ],
    said: `Uncertainty over ${count(steps, "step")}: ${at("sigma-told").textContent} The table below has every value.`,
  });

  const ticks = round(Math.min(...losses), Math.max(...losses));
  at("loss-told").textContent = losses.length
    ? `From ${losses[0].toFixed(2)} to ${losses.at(-1).toFixed(2)}, each step on another text.`
    : "No step was taken.";
  plot(at("loss"), {
    x,
    y: { from: ticks[0], to: ticks.at(-1), ticks },
    lines: [{ name: "sigma", points: losses.map((loss, i) => [i + 1, loss]), dots: steps <= 60 }],
    said: `Training loss: ${at("loss-told").textContent} The table below has every value.`,
  });

  const rows = Array.from({ length: steps + 1 }, (_, n) =>
    row(n, uncertainty[n]?.toFixed(4) ?? "", Number.isFinite(line(n)) ? line(n).toFixed(4) : "", losses[n - 1]?.toFixed(4) ?? ""),
  );
  at("steps-table").tBodies[0].replaceChildren(...rows);
}

function taught({ sources, corpus }, read) {
  const documents = byDocument(sources);
  if (documents.length === 0) {
    at("taught").replaceChildren(make("p", { className: "quiet" }, "No document was used."));
    return;
  }
  const most = documents[0].times;
  const rows = documents.map((each) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" });
    bar.style.setProperty("--share", each.times / most);
    const button = make("button", { className: "plain", type: "button", ariaLabel: `Read ${each.name}` }, "Read");
    button.addEventListener("click", () => read(corpus, each));
    const made = row(each.name, each.passages.size, make("span", {}, bar, String(each.times)), button);
    made.firstChild.className = "name";
    return made;
  });
  const head = ["Document", "Passages", "Times used"].map((title) => make("th", { scope: "col" }, title));
  head.push(make("td", {}, make("span", { className: "unseen" }, "Text")));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  at("taught").replaceChildren(table);
  const more = rows.slice(SHOWN);
  if (more.length === 0) return;
  for (const each of more) each.hidden = true;
  const all = make("button", { className: "plain", type: "button" }, `Show all ${documents.length} documents`);
  all.addEventListener("click", () => {
    for (const each of more) each.hidden = false;
    all.remove();
    more[0].querySelector("button").focus();
  });
  at("taught").append(all);
}

// The documents of the sequences used, most used first; `passages` tells of each start how often it was used.
function byDocument(sources) {
  const found = new Map();
  for (const { document, name, start, times } of sources) {
    const uploaded = /^(file-[0-9a-f]{24})\/(.*)$/s.exec(name);
    const each = found.get(document) ?? {
      file: uploaded?.[1] ?? `doc-${document}`,
      name: uploaded?.[2] ?? name,
      passages: new Map(),
      times: 0,
    };
    each.passages.set(start, times);
    each.times += times;
    found.set(document, each);
  }
  return [...found.values()].sort((a, b) => b.times - a.times);
}

// Where the time went; `answering` are the seconds from the report to the end of the answer, once they are known.
export function times({ seconds, spent }, answering) {
  const known = Object.values(seconds).reduce((sum, each) => sum + each, 0);
  const stages = { ...seconds, rest: Math.max(spent.seconds - known, 0) };
  if (answering !== undefined) stages.answer = answering;
  const bars = Object.entries(stages).map(([stage, length]) => {
    const bar = make("span", { className: `stage-${stage}` });
    bar.style.flexGrow = length;
    return bar;
  });
  at("time-bar").replaceChildren(...bars);
  const rows = Object.entries(stages).map(([stage, length]) => {
    const swatch = make("span", { className: `swatch stage-${stage}`, ariaHidden: "true" });
    return row(make("span", {}, swatch, STAGES[stage] ?? stage), duration(length));
  });
  at("time-table").tBodies[0].replaceChildren(...rows);
}
