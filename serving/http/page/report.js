// The adaptation report as figures, tables and sentences. Knows the report's fields, not where it came from.

import { at, count, duration, make, row } from "./dom.js";
import { plot, round } from "./figures.js";

const STOPS = {
  steps: "every step of the budget was taken",
  gain: "the loss of the prompt itself no longer fell by enough",
  alpha: "one step more would not have been worth its compute",
  seconds: "the time was up",
  diverged: "training diverged, and its last good adapter was kept",
  "out-of-memory": "the memory was full",
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
export function sentence({ adapted, reason, spent, stop, budget, degraded, prompt_loss: helped }) {
  const cut = budget.cut.length ? ` The budget was cut to the limits of the server: ${budget.cut.join(" and ")}.` : "";
  const busy = degraded ? ` The server is busy: ${degraded}.` : "";
  if (!adapted) return `The base model answered: ${reason}.${cut}${busy}`;
  const told = helped ? `Loss of the prompt itself: ${change(helped)}. ` : "";
  return `${told}${count(spent.steps, "step")} in ${duration(spent.seconds)}: ${STOPS[stop] ?? stop}.${cut}${busy}`;
}

const change = ({ before, after }) => `${before.toFixed(2)} \u2192 ${after.toFixed(2)}`;

// Draws everything; `read` is called with a document when its text is asked for.
export function show(report, read) {
  at("report").hidden = false; // first: figures are drawn at the width they have
  const steps = Math.max(report.uncertainty.length - 1, report.losses.length);
  for (const part of at("report").querySelectorAll(".figures, .figures ~ details")) part.hidden = steps === 0;
  if (steps > 0) curves(report, steps);
  helpful(report);
  taught(report, read);
  times(report);
}

// Whether it helped, by what nothing was trained on.
function helpful({ adapted, prompt_loss: helped }) {
  at("helped").hidden = !adapted;
  if (!adapted) return;
  at("helped").textContent = helped
    ? `The prompt itself, on which nothing is trained, has a loss of ${helped.after.toFixed(2)} with this adapter; without it ${helped.before.toFixed(2)}.`
    : "Whether it helped is not known: a prompt of one token has no loss of its own.";
}

function curves({ uncertainty, losses, budget, irreducible, sources, prompt_losses: looks, prompt_loss: helped }, steps) {
  const last = uncertainty.at(-1);
  const line = (n) => (budget.alpha === null || n === 0 ? Infinity : 1 / (budget.alpha * n));
  const x = { from: 0, to: steps, ticks: round(0, steps).filter((n) => Number.isInteger(n) && n <= steps) };

  at("prompt-figure").hidden = looks.length === 0;
  if (looks.length > 0) {
    const levels = round(...[Math.min, Math.max].map((of) => of(...looks.map(([, loss]) => loss))));
    const kept = helped && helped.at < steps ? [[helped.at, levels[0]], [helped.at, levels.at(-1)]] : [];
    at("kept-legend").hidden = kept.length === 0;
    at("prompt-told").textContent = !helped
      ? "No adapter was kept."
      : change(helped) + (kept.length ? `, the lowest of all looks, after ${count(helped.at, "text")} of ${steps}.` : ".");
    plot(at("prompt-loss"), {
      x,
      y: { from: levels[0], to: levels.at(-1), ticks: levels },
      lines: [
        { name: "stop", points: kept },
        { name: "sigma", points: looks, dots: true },
      ],
      said: `Loss of the prompt itself: ${at("prompt-told").textContent} The table below has every value.`,
    });
  }

  const stop = [];
  for (let n = 1 / budget.alpha; budget.alpha !== null && n < steps; n += steps / 60) stop.push([n, line(n)]);
  if (stop.length) stop.push([steps, line(steps)]);
  const floor = irreducible === null ? [] : [[0, irreducible], [steps, irreducible]];
  at("sigma-told").textContent = `\u03c3 went from ${uncertainty[0].toFixed(2)} to ${last.toFixed(3)} in ${count(steps, "step")}.`;
  at("alpha-legend").hidden = stop.length === 0;
  at("floor-legend").hidden = floor.length === 0;
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
    ? `${texts(sources, steps)} Not a measure of progress.`
    : "No step was taken.";
  plot(at("loss"), {
    x,
    y: { from: ticks[0], to: ticks.at(-1), ticks },
    lines: [{ name: "sigma", points: losses.map((loss, i) => [i + 1, loss]), dots: steps <= 60 }],
    said: `Loss of what it learned from: ${at("loss-told").textContent} The table below has every value.`,
  });

  const rows = Array.from({ length: steps + 1 }, (_, n) =>
    row(
      n,
      looks.find(([used]) => used === n)?.[1].toFixed(4) ?? "",
      uncertainty[n]?.toFixed(4) ?? "",
      Number.isFinite(line(n)) ? line(n).toFixed(4) : "",
      losses[n - 1]?.toFixed(4) ?? "",
    ),
  );
  at("steps-table").tBodies[0].replaceChildren(...rows);
}

// What the steps were taken on: `sources` tells of those sequences that the adapter has learnt from.
function texts(sources, steps) {
  const learnt = sources.reduce((sum, { times }) => sum + times, 0);
  if (sources.some(({ times }) => times > 1)) return "Before each step, of that step's text; some texts came again.";
  return learnt === steps ? "Each step on another text." : "Before each step, of that step's text.";
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
