// The page: its form, two answers side by side, and the API key. Reports are shown by report.js.

import { asCurl, asPython } from "./code.js";
import { at, count, make } from "./dom.js";
import { offerForCopying, showDocument } from "./document.js";
import { showReport, showTimes, summary } from "./report.js";
import { ServerError, corpora, get, stream } from "./server.js";

// The same for both answers, which differ by the adapter alone.
const SAMPLING = { max_tokens: 256, temperature: 0.5, seed: 0 };
const KEY = "mayfly-key";
const meanings = {
  none: "The base model answers without training.",
  auto: "It stops when the loss of the prompt itself no longer falls by enough.",
  steps: "Limits the number of gradient steps.",
  seconds: "Limits the time from the request to the end of training.",
};

let model = "";
let running = null; // the AbortController of the current answers

const key = () => sessionStorage.getItem(KEY);
const chosen = (name) => at("ask").elements[name].value;
const setStatus = (text) => (at("status").textContent = text);

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
  const baseOnly = adapted.budget === "none";
  running = new AbortController();
  at("answers").hidden = false;
  at("answers").classList.toggle("base-only", baseOnly);
  at("adapted").hidden = baseOnly;
  at("report").hidden = true;
  swap(at("go"), at("stop"));
  setStatus(baseOnly ? "Waiting for the base model." : "The model is being adapted to your prompt.");
  const base = run(at("base"), withoutAdaptation(adapted), () => "Without training.");
  const outcomes = await Promise.all(baseOnly ? [base] : [run(at("adapted"), adapted, onReport), base]);
  if (running.signal.aborted) setStatus("Stopped.");
  else if (outcomes.every(Boolean)) setStatus(baseOnly ? "The answer is complete." : "Both answers are complete.");
  else setStatus(""); // the panels have announced the errors
  running = null;
  swap(at("stop"), at("go"));
}

function onReport(report) {
  showReport(report, (corpus, document) => showDocument(corpus, document, key()));
  setStatus(report.adapted ? "The adapted model is answering." : "The base model is answering instead of an adapted one.");
  return summary(report);
}

// Shows one answer in its panel; true if it is complete. `describe` makes a note of the report.
async function run(panel, sent, describe) {
  const [note, training, place] = [".note", ".training", ".answer"].map((part) => panel.querySelector(part));
  const [bar, waiting] = training.children;
  const text = document.createTextNode("");
  const began = performance.now();
  let [report, since, progress] = [null, began, ""];
  const clock = setInterval(() => {
    const before = panel === at("base") ? "waiting" : "selecting training data";
    waiting.textContent = progress || `${before}, ${((performance.now() - began) / 1000).toFixed(1)} seconds`;
  }, 100);

  note.textContent = "";
  place.replaceChildren(lastLine(sent), text);
  place.classList.toggle("code", Boolean(sent.body.prompt));
  place.hidden = true;
  bar.removeAttribute("value");
  training.hidden = false;
  panel.setAttribute("aria-busy", "true");
  try {
    for await (const piece of stream(sent, key(), running.signal)) {
      if (piece.progress) {
        const step = /step (\d+) of (\d+)/.exec(piece.progress);
        if (step) [bar.value, bar.max] = [Number(step[1]), Number(step[2])];
        progress = piece.progress.replace(/^adapting:? ?/, "");
      }
      if (piece.report) {
        [report, since] = [piece.report, performance.now()];
        note.textContent = describe(report);
      }
      if (piece.text || piece.report) [training.hidden, place.hidden] = [true, false];
      if (piece.text) text.appendData(piece.text);
    }
    if (report && panel === at("adapted")) showTimes(report, (performance.now() - since) / 1000);
    return true;
  } catch (problem) {
    place.hidden = false;
    if (problem.name === "AbortError") place.append(make("p", { className: "quiet" }, "Stopped."));
    else showError(place, problem);
    return false;
  } finally {
    clearInterval(clock);
    training.hidden = true;
    panel.removeAttribute("aria-busy");
  }
}

// A completion continues the last line of its prompt.
function lastLine({ body: { prompt = "" } }) {
  return make("span", { className: "prompt" }, prompt.slice(prompt.lastIndexOf("\n") + 1));
}

function showError(place, problem) {
  if (!(problem instanceof ServerError)) console.error(problem);
  if (!place.lastChild?.data) place.replaceChildren();
  const alert = make("p", { className: "error", role: "alert" });
  place.append(alert);
  alert.textContent = problem instanceof ServerError ? problem.message : "The page failed to read the answer.";
  if (problem.status === 401) requestKey();
}

function requestKey() {
  at("unlock").hidden = false;
  at("key").focus();
}

// Hides one of two buttons and shows the other, which takes over the focus.
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
    applyTerms(models.data[0].adaptation);
    const options = stores.map(({ id, name, file_counts: files }) => {
      const unique = stores.filter((other) => other.name === name).length === 1;
      return make("option", { value: unique ? name : id }, `${name} (${count(files.completed, "document")})`);
    });
    const before = at("corpus").value;
    at("corpus").replaceChildren(at("corpus").options[0], ...options);
    if (options.some((option) => option.value === before)) at("corpus").value = before;
    setStatus("");
  } catch (problem) {
    setStatus(problem.message);
    if (problem.status === 401) requestKey();
  }
}

// Sets the form to the limits of the server, and describes its default budget.
function applyTerms({ auto, limits, corpus }) {
  for (const name of ["steps", "seconds"]) if (limits[name] !== null) at(name).max = limits[name];
  at("corpus").options[0].text = corpus ? "The server's default corpus" : "Nothing: the base model answers";
  const gain = ", fewer if the loss of the prompt itself stops falling; the best adapter is kept";
  const alpha = ", fewer if another step is not worth its compute";
  const fewer = auto.gain !== null ? gain : auto.alpha !== null ? alpha : "";
  meanings.auto = auto.steps ? `Up to ${count(auto.steps, "step")}${fewer}.` : meanings.none;
  updateForm();
}

async function copy(title, code) {
  try {
    await navigator.clipboard.writeText(code);
    setStatus(`${title} copied.`);
  } catch {
    offerForCopying(title, code);
  }
}

function updateForm() {
  const kind = chosen("budget");
  at("budget-meaning").textContent = meanings[kind];
  at("prompt").classList.toggle("code", chosen("kind") === "completion");
  for (const row of document.querySelectorAll(".amount")) {
    const name = row.dataset.unit;
    row.hidden = name !== kind;
    row.querySelector("output").textContent = count(Number(at(name).value), name.slice(0, -1));
  }
}

at("ask").addEventListener("input", updateForm);
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
updateForm();
load();
