// The page: its form, the two answers side by side, the API key. What a report means is report.js's.

import { asCurl, asPython } from "./code.js";
import { at, count, make } from "./dom.js";
import { offer, read } from "./reader.js";
import { sentence, show, times } from "./report.js";
import { ServerError, corpora, get, stream } from "./server.js";

const SAMPLING = { max_tokens: 256, temperature: 0.5, seed: 0 }; // the same for both answers: they differ by the adapter
const KEY = "mayfly-key";
const meanings = {
  none: "The base model answers, nothing is trained.",
  auto: "It stops when the loss of the prompt itself no longer falls by enough.",
  steps: "At most so many gradient steps.",
  seconds: "At most so long, from the request to the end of training.",
};

let model = "";
let running = null; // the AbortController of the answers under way

const key = () => sessionStorage.getItem(KEY);
const chosen = (name) => at("ask").elements[name].value;
const say = (text) => (at("status").textContent = text);

function request() {
  const chat = chosen("kind") === "chat";
  const prompt = at("prompt").value;
  const corpus = at("corpus").value;
  const kind = chosen("budget");
  const body = { model, ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }), ...SAMPLING };
  if (corpus) body.adaptation = { corpus };
  return {
    path: chat ? "v1/chat/completions" : "v1/completions",
    budget: at(kind) ? `${kind}=${at(kind).value}` : kind,
    body,
  };
}

function withoutAdaptation({ path, body: { adaptation, ...body } }) {
  return { path, budget: "none", body };
}

async function answer() {
  const adapted = request();
  const alone = adapted.budget === "none";
  running = new AbortController();
  at("answers").hidden = false;
  at("answers").classList.toggle("alone", alone);
  at("adapted").hidden = alone;
  at("report").hidden = true;
  swap(at("go"), at("stop"));
  say(alone ? "The base model is asked." : "The model is being adapted to your prompt.");
  const base = run(at("base"), withoutAdaptation(adapted), () => "Nothing was trained.");
  const outcomes = await Promise.all(alone ? [base] : [run(at("adapted"), adapted, tell), base]);
  if (running.signal.aborted) say("Stopped.");
  else if (outcomes.every(Boolean)) say(alone ? "The answer is complete." : "Both answers are complete.");
  else say(""); // the errors have been announced in the places of the answers
  running = null;
  swap(at("stop"), at("go"));
}

function tell(report) {
  show(report, (corpus, document) => read(corpus, document, key()));
  say(report.adapted ? "The adapted model is answering." : "The base model answers in the place of an adapted one.");
  return sentence(report);
}

// One answer in its panel; true if it is whole.
async function run(panel, asked, onReport) {
  const [told, training, place] = [".told", ".training", ".answer"].map((part) => panel.querySelector(part));
  const [bar, waited] = training.children;
  const said = document.createTextNode("");
  const began = performance.now();
  let [report, since, progress] = [null, began, ""];
  const clock = setInterval(() => {
    const before = panel === at("base") ? "waiting" : "choosing what to learn";
    waited.textContent = progress || `${before}, ${((performance.now() - began) / 1000).toFixed(1)} seconds`;
  }, 100);

  told.textContent = "";
  place.replaceChildren(lastLine(asked), said);
  place.classList.toggle("code", Boolean(asked.body.prompt));
  place.hidden = true;
  bar.removeAttribute("value");
  training.hidden = false;
  panel.setAttribute("aria-busy", "true");
  try {
    for await (const piece of stream(asked, key(), running.signal)) {
      if (piece.progress) {
        const step = /step (\d+) of (\d+)/.exec(piece.progress);
        if (step) [bar.value, bar.max] = [Number(step[1]), Number(step[2])];
        progress = piece.progress.replace(/^adapting:? ?/, "");
      }
      if (piece.report) {
        [report, since] = [piece.report, performance.now()];
        told.textContent = onReport(report);
      }
      if (piece.text || piece.report) [training.hidden, place.hidden] = [true, false];
      if (piece.text) said.appendData(piece.text);
    }
    if (report && panel === at("adapted")) times(report, (performance.now() - since) / 1000);
    return true;
  } catch (problem) {
    place.hidden = false;
    if (problem.name === "AbortError") place.append(make("p", { className: "quiet" }, "Stopped."));
    else fail(place, problem);
    return false;
  } finally {
    clearInterval(clock);
    training.hidden = true;
    panel.removeAttribute("aria-busy");
  }
}

// A completion goes on where its prompt ends, often in the middle of a line.
function lastLine({ body: { prompt = "" } }) {
  return make("span", { className: "asked" }, prompt.slice(prompt.lastIndexOf("\n") + 1));
}

function fail(place, problem) {
  if (!(problem instanceof ServerError)) console.error(problem);
  if (!place.lastChild?.data) place.replaceChildren();
  const alert = make("p", { className: "error", role: "alert" });
  place.append(alert);
  alert.textContent = problem instanceof ServerError ? problem.message : "The page failed to read the answer.";
  if (problem.status === 401) lock();
}

function lock() {
  at("unlock").hidden = false;
  at("key").focus();
}

// Hides one of two buttons and shows the other, which takes the focus over.
function swap(from, to) {
  const focused = document.activeElement === from;
  [from.hidden, to.hidden] = [true, false];
  if (focused) to.focus();
}

async function load() {
  try {
    const [models, stores] = await Promise.all([get("v1/models", key()), corpora(key())]);
    model = models.data[0].id;
    at("model").textContent = `Model: ${model}`;
    heed(models.data[0].adaptation);
    const options = stores.map(({ id, name, file_counts: files }) => {
      const unique = stores.filter((other) => other.name === name).length === 1;
      return make("option", { value: unique ? name : id }, `${name} (${count(files.completed, "document")})`);
    });
    const before = at("corpus").value;
    at("corpus").replaceChildren(at("corpus").options[0], ...options);
    if (options.some((option) => option.value === before)) at("corpus").value = before;
    say("");
  } catch (problem) {
    say(problem.message);
    if (problem.status === 401) lock();
  }
}

// Sets the form to what the server allows, and says what it does by itself.
function heed({ auto, limits, corpus }) {
  for (const name of ["steps", "seconds"]) if (limits[name] !== null) at(name).max = limits[name];
  at("corpus").options[0].text = corpus ? "The server's default corpus" : "Nothing: the base model answers";
  const stalls = ", fewer where the loss of the prompt itself no longer falls; the best adapter is kept";
  const fewer = auto.gain !== null ? stalls : auto.alpha !== null ? ", fewer where one more is not worth its compute" : "";
  meanings.auto = auto.steps ? `Up to ${count(auto.steps, "step")}${fewer}.` : meanings.none;
  settle();
}

async function copy(title, code) {
  try {
    await navigator.clipboard.writeText(code);
    say(`${title} copied.`);
  } catch {
    offer(title, code);
  }
}

function settle() {
  const kind = chosen("budget");
  at("budget-means").textContent = meanings[kind];
  at("prompt").classList.toggle("code", chosen("kind") === "completion");
  for (const row of document.querySelectorAll(".amount")) {
    const name = row.dataset.of;
    row.hidden = name !== kind;
    row.querySelector("output").textContent = count(Number(at(name).value), name.slice(0, -1));
  }
}

at("ask").addEventListener("input", settle);
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) answer();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("stop").addEventListener("click", () => running?.abort());
at("curl").addEventListener("click", () => copy("curl", asCurl(request(), key())));
at("python").addEventListener("click", () => copy("Python", asPython(request(), key())));
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("unlock").hidden = true;
  load();
});
settle();
load();
