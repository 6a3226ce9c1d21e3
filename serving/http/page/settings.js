// The settings: their form, the budget under the prompt, and what the browser remembers of both.

import { at, count } from "./dom.js";
import { areExamplesValid, pasted, updateExamples } from "./examples.js";

const STORED = "mayfly-settings";
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const meanings = {
  none: "The base model answers without training.",
  instant: "The adapter of the corpus answers, if it has one: nothing is trained for the question.",
  auto: "It stops when the loss of the prompt itself no longer falls by enough.",
  steps: "Limits the number of gradient steps.",
  seconds: "Limits the time from the request to the end of training.",
};

let serverShows = false; // whether a request that does not say how many sequences it shows has some
let corpusShows = false; // whether a calibrated corpus says for it

const fields = () =>
  ["settings", "ask", "examples"]
    .flatMap((form) => [...at(form).elements])
    .filter((field) => field.name || field.type === "range");
const nameOf = (field) => field.name || field.id;

/** The settings as they are now. @returns {import("./request.js").Settings} */
export function settings() {
  const form = at("settings").elements;
  const given = NUMBERS.filter((name) => form[name].value !== "");
  const budget = at("ask").elements.budget.value;
  return {
    kind: form.kind.value,
    system: form.system.value.trim(),
    sampling: Object.fromEntries(given.map((name) => [name, Number(form[name].value)])),
    corpus: at("corpus").value,
    budget: ["steps", "seconds"].includes(budget) ? `${budget}=${at(budget).value}` : budget,
    compare: form.compare.checked,
    reuse: form.reuse.checked,
    taught: pasted(),
    show: Number(at("show").value) || (serverShows ? 0 : undefined),
  };
}

/** Whether every setting is valid; otherwise the form is shown with what is wrong. */
export function areValid() {
  if (at("settings").checkValidity()) return areExamplesValid();
  const wrong = at("settings").querySelector(":invalid");
  at("settings-dialog").showModal();
  for (let each = wrong; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  at("settings").reportValidity();
  return false;
}

/**
 * Adapts the forms to the model and to the limits of the server.
 * @param {{adaptation: object, chat_template: boolean, max_model_len?: number}} model entry of /v1/models
 */
export function applyModel({ adaptation: { auto, limits, show }, chat_template: chats, max_model_len: context }) {
  for (const name of ["steps", "seconds"]) if (limits[name] !== null) at(name).max = limits[name];
  serverShows = show > 0;
  corpusShows = show === null;
  if (stored().show === undefined) at("show").value = show ?? 0;
  if (context) at("settings").elements.max_tokens.max = context;
  const gain = ", fewer if the loss of the prompt itself stops falling; the best adapter is kept";
  const alpha = ", fewer if another step is not worth its compute";
  const none = corpusShows ? "; none where the adapter or the text of a corpus helps the prompt already" : "";
  const fewer = auto.gain !== null ? gain + none : auto.alpha !== null ? alpha : "";
  const without = auto.instant ? meanings.instant : meanings.none;
  meanings.auto = auto.steps ? `Up to ${count(auto.steps, "step")}${fewer}.` : without;
  const { kind } = at("settings").elements;
  for (const radio of kind) if (radio.value === "chat") radio.disabled = !chats;
  if (!chats) kind.value = "completion";
  at("kind-note").textContent = chats
    ? "A completion goes on from the end of the prompt, and knows no earlier answers."
    : "This model has no chat template: it can only go on from the end of a prompt.";
  update();
}

/** Shows what the settings mean; remembers them in the browser if `stores`. */
export function update(stores = false) {
  const kind = at("ask").elements.budget.value;
  const chat = at("settings").elements.kind.value === "chat";
  at("budget-meaning").textContent = meanings[kind];
  at("prompt").classList.toggle("code", !chat);
  at("prompt").placeholder = `${chat ? "Ask something" : "The beginning of a text"}: Enter sends, Shift + Enter starts a new line`;
  at("system-field").hidden = !chat;
  at("settings").elements.reuse.disabled = !chat;
  updateExamples();
  const shown = Number(at("show").value);
  at("ask").querySelector("output[for=show]").textContent = shown ? `up to ${shown}` : corpusShows ? "automatic" : "nothing";
  for (const row of document.querySelectorAll(".amount[data-unit]")) {
    const name = row.dataset.unit;
    row.hidden = name !== kind;
    row.querySelector("output").textContent = count(Number(at(name).value), name.slice(0, -1));
  }
  if (!stores) return;
  const values = {};
  for (const field of fields()) {
    if (field.type === "checkbox") values[nameOf(field)] = field.checked;
    else if (field.type !== "radio" || field.checked) values[nameOf(field)] = field.value;
  }
  try {
    localStorage.setItem(STORED, JSON.stringify(values));
  } catch {
    // The storage is full: the settings hold until the tab is closed, and saving a conversation says so.
  }
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {}; // another version of this page wrote it
  }
}

/** Takes up what was remembered. */
export function restore() {
  const values = stored();
  for (const field of fields()) {
    const value = values[nameOf(field)];
    if (value === undefined) continue;
    if (field.type === "checkbox") field.checked = value;
    else if (field.type === "radio") field.checked = field.value === value;
    else field.value = value;
  }
  update();
}
