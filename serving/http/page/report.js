// The adaptation report as figures, tables and sentences. It knows the fields of a report, not its origin.

import { at, button, count, duration, make, row } from "./dom.js";
import { plot, roundTicks } from "./figures.js";

const STOPS = {
  steps: "every step of the budget was taken",
  gain: "the loss of the prompt itself no longer fell by enough",
  alpha: "another step would not have been worth its compute",
  seconds: "the time was used up",
  diverged: "training diverged, and its last good adapter was kept",
  "out-of-memory": "memory ran out",
  reused: "the adapter of the same examples answered again",
  instant: "the adapter of the corpus answered",
  auto: "the adapter of the corpus answered, since it lowers the loss of the prompt",
};
const STAGES = {
  embed: "embedding the prompt",
  search: "searching the corpus",
  select: "selecting texts",
  compare: "comparing what could answer",
  queue: "waiting for the trainer",
  train: "training",
  load: "loading the adapter",
  rest: "other waiting and transport",
  answer: "answering",
};
// What `auto` has compared.
const WAYS = {
  base: "the base model",
  corpus: "the adapter of the corpus",
  "base, shown": "the base model and chosen text in the prompt",
  "corpus, shown": "the adapter of the corpus and chosen text in the prompt",
};
const STRATEGIES = { sift: "SIFT", nn: "nearest neighbours" };
const SHOWN = 8; // documents, before all are requested
const NAMED = 3; // documents in a sentence
const UPLOADED = /^(file-[0-9a-f]{24})\/(.*)$/s; // within the server, the name of a file begins with its id
const BROUGHT = /^(example|text) \d+ of the request$/;

// The outcome in a sentence or two.
export function summary(report) {
  const { stop, shown } = report;
  if (shown && stop === "none") return shownInWords(report);
  const loss = lossOf(report);
  const learned = loss ? `Loss of the prompt itself: ${change(loss)}. ${cost(report)}` : cost(report);
  return shown ? `${learned} ${shownInWords(report)}` : learned;
}

// The loss of the prompt with the base model, and with what answered, without the text where that was not compared;
// null where it was not measured.
function lossOf({ auto, prompt_loss: loss }) {
  if (loss || !auto || auto.answers === "steps") return loss;
  const { base, corpus } = auto.losses;
  return { before: base, after: auto.losses[auto.answers] ?? corpus };
}

// What was put into the prompt, the most relevant first.
function shownInWords({ shown: { sequences, tokens, documents, reason } }) {
  const shown = [...documents].reverse().map((name, i) => ({ document: BROUGHT.test(name) ? null : name, name, start: i, times: 1 }));
  const from = shown.length > 0 ? `, from ${inWords(byDocument(shown))}` : "";
  return `Shown in the prompt: ${count(sequences, "passage")}, ${count(tokens, "token")}${from}${reason ? ` (${reason})` : ""}.`;
}

// What it cost, and why it stopped.
function cost({ adapted, reason, spent, stop, budget, degraded, start }) {
  const clamped = budget.cut.length ? ` The budget was limited by the server: ${budget.cut.join(" and ")}.` : "";
  const busy = degraded ? ` The server is busy: ${degraded}.` : "";
  if (!adapted && stop === "auto") return `No adapter was needed: chosen text in the prompt helps the base model enough.${busy}`;
  if (!adapted) return `The base model answered: ${reason}.${clamped}${busy}`;
  const why = reason ? `the adapter of the corpus answered, since ${reason}` : (STOPS[stop] ?? stop);
  return `${count(spent.steps, "step")} in ${duration(spent.seconds)}: ${why}.${startInWords(start, reason ? 0 : spent.steps)}${clamped}${busy}`;
}

// What the adapter of the corpus has learned, where the adapter that answered is that one or started from it.
function startInWords(start, steps) {
  if (start?.from !== "corpus") return "";
  const which = steps > 0 ? "It started from the adapter of the corpus, which has" : "It has";
  const missing = start.not_learnt ? `, and not yet ${count(start.not_learnt, "newer one")}` : "";
  return ` ${which} learned ${count(start.sequences, "passage")}${missing}.`;
}

export function sourcesInWords({ sources }) {
  return sources.length > 0 ? `Learned from ${inWords(byDocument(sources))}.` : "";
}

// What the request itself brought, the documents that were used most, and how often.
function inWords(all) {
  const own = ["example", "text"]
    .map((kind) => [kind, all.filter(({ isStored, name }) => !isStored && name.startsWith(kind)).length])
    .filter(([, number]) => number > 0)
    .map(([kind, number]) => `${count(number, kind)} of the request`);
  const documents = all.filter(({ isStored }) => isStored);
  const named = documents.slice(0, NAMED).map(({ name, times }) => (times > 1 ? `${name} (${times} times)` : name));
  const others = documents.length - named.length;
  return `${[...own, ...named].join(", ")}${others ? ` and ${count(others, "other document")}` : ""}`;
}

// The losses from which `auto` has decided.
const lossesInWords = ({ losses }) =>
  Object.entries(losses).map(([way, loss]) => `${loss.toFixed(2)} with ${WAYS[way] ?? way}`).join("; ");

const change = ({ before, after }) => `${before.toFixed(2)} \u2192 ${after.toFixed(2)}`;

at("report-close").addEventListener("click", () => at("report-dialog").close());

// Shows everything; `answering` is the time in seconds from the report to the end of the answer, and `onRead` is called
// with a document whose text is requested.
export function showReport(report, answering, onRead) {
  at("report-dialog").showModal(); // first, because figures are drawn at the width of their boxes
  const steps = Math.max(report.uncertainty.length - 1, report.losses.length);
  for (const part of at("report-dialog").querySelectorAll(".figures, .figures ~ details")) part.hidden = steps === 0;
  if (steps > 0) showCurves(report, steps);
  showBenefit(report);
  showSources(report, onRead);
  showTimes(report, answering);
}

// Whether the adaptation helped, measured on the prompt, which is never trained on.
function showBenefit(report) {
  const { adapted, auto, prompt_loss: loss, shown, start } = report;
  at("report-summary").textContent = cost(report);
  at("report-shown").textContent = shown ? shownInWords(report) : "";
  at("helped").hidden = !adapted && !auto;
  at("helped").textContent = loss
    ? `The prompt itself, which is never trained on, has a loss of ${loss.after.toFixed(2)} with this adapter and of ${loss.before.toFixed(2)} ${start?.from === "corpus" ? "with the adapter of the corpus, from which it started" : "without it"}.`
    : auto
      ? `Loss of the prompt itself, which is never trained on: ${lossesInWords(auto)}.`
      : "The loss of the prompt itself was not measured: whether this adapter helps is to be judged by its answer.";
}

function showCurves({ uncertainty, losses, budget, irreducible, sources, prompt_losses: evaluations, prompt_loss: loss }, steps) {
  const last = uncertainty.at(-1);
  const line = (n) => (budget.alpha === null || n === 0 ? Infinity : 1 / (budget.alpha * n));
  const x = { from: 0, to: steps, ticks: roundTicks(0, steps).filter((n) => Number.isInteger(n) && n <= steps) };

  at("prompt-figure").hidden = evaluations.length === 0;
  if (evaluations.length > 0) {
    const levels = roundTicks(...[Math.min, Math.max].map((of) => of(...evaluations.map(([, value]) => value))));
    const best = loss && loss.at < steps ? [[loss.at, levels[0]], [loss.at, levels.at(-1)]] : [];
    at("best-legend").hidden = best.length === 0;
    at("prompt-loss-note").textContent = !loss
      ? "No adapter was kept."
      : change(loss) + (best.length ? `, the lowest measured, after ${count(loss.at, "text")} of ${steps}.` : ".");
    plot(at("prompt-loss"), {
      x,
      y: { from: levels[0], to: levels.at(-1), ticks: levels },
      lines: [
        { name: "stop", points: best },
        { name: "sigma", points: evaluations, dots: true },
      ],
      description: `Loss of the prompt itself: ${at("prompt-loss-note").textContent} The table below has every value.`,
    });
  }

  const stop = [];
  for (let n = 1 / budget.alpha; budget.alpha !== null && n < steps; n += steps / 60) stop.push([n, line(n)]);
  if (stop.length) stop.push([steps, line(steps)]);
  const floor = irreducible === null ? [] : [[0, irreducible], [steps, irreducible]];
  at("sigma-note").textContent = `\u03c3 went from ${uncertainty[0].toFixed(2)} to ${last.toFixed(3)} in ${count(steps, "step")}.`;
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
    description: `Uncertainty over ${count(steps, "step")}: ${at("sigma-note").textContent} The table below has every value.`,
  });

  const ticks = roundTicks(Math.min(...losses), Math.max(...losses));
  at("loss-note").textContent = losses.length
    ? `${lossNote(sources, steps)} Not a measure of progress.`
    : "No step was taken.";
  plot(at("loss"), {
    x,
    y: { from: ticks[0], to: ticks.at(-1), ticks },
    lines: [{ name: "sigma", points: losses.map((loss, i) => [i + 1, loss]), dots: steps <= 60 }],
    description: `Loss of the training texts: ${at("loss-note").textContent} The table below has every value.`,
  });

  const rows = Array.from({ length: steps + 1 }, (_, n) =>
    row(
      n,
      evaluations.find(([used]) => used === n)?.[1].toFixed(4) ?? "",
      uncertainty[n]?.toFixed(4) ?? "",
      Number.isFinite(line(n)) ? line(n).toFixed(4) : "",
      losses[n - 1]?.toFixed(4) ?? "",
    ),
  );
  at("steps-table").tBodies[0].replaceChildren(...rows);
}

// How the losses were measured. `sources` has only texts that the adapter was trained on.
function lossNote(sources, steps) {
  const used = sources.reduce((sum, { times }) => sum + times, 0);
  if (sources.some(({ times }) => times > 1)) return "Measured before each step on its text; some texts were repeated.";
  return used === steps ? "Each step used another text." : "Measured before each step on its text.";
}

function showSources({ sources, corpus, start, strategy }, onRead) {
  const documents = byDocument(sources);
  if (documents.length === 0) {
    const none = start?.from === "corpus" ? "None for this prompt: the adapter of the corpus answered." : "None.";
    at("sources").replaceChildren(make("p", { className: "quiet" }, none));
    return;
  }
  const most = documents[0].times;
  const rows = documents.map((each) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" });
    bar.style.setProperty("--share", each.times / most);
    const read = each.isStored ? button("Read", () => onRead(corpus, each), `Read ${each.name}`) : "";
    const line = row(each.name, each.passages.size, make("span", {}, bar, String(each.times)), read);
    line.firstChild.className = "name";
    return line;
  });
  const head = ["Document", "Passages", "Times used"].map((title) => make("th", { scope: "col" }, title));
  head.push(make("td", {}, make("span", { className: "visually-hidden" }, "Text")));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  at("sources").replaceChildren(table);
  if (strategy) table.before(make("p", { className: "quiet" }, `Chosen by ${STRATEGIES[strategy] ?? strategy}.`));
  const more = rows.slice(SHOWN);
  if (more.length === 0) return;
  for (const each of more) each.hidden = true;
  const all = button(`Show all ${documents.length} documents`, () => {
    for (const each of more) each.hidden = false;
    all.remove();
    more[0].querySelector("button")?.focus();
  });
  at("sources").append(all);
}

// The documents of the sources, most used first; `passages` maps the start of a passage to its number of uses.
function byDocument(sources) {
  const documents = new Map();
  for (const { document, name, start, times } of sources) {
    const uploaded = UPLOADED.exec(name);
    const key = document ?? name; // the request's own examples and texts are no documents
    const each = documents.get(key) ?? {
      isStored: document !== null,
      file: uploaded?.[1] ?? `doc-${document}`,
      name: uploaded?.[2] ?? name,
      passages: new Map(),
      times: 0,
    };
    each.passages.set(start, times);
    each.times += times;
    documents.set(key, each);
  }
  return [...documents.values()].sort((a, b) => b.times - a.times);
}

// Where the time went.
function showTimes({ seconds, spent }, answering) {
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
