// The page: what its buttons and keys do. Conversations are shown by thread.js and answered by chat.js.

import { answerTurn } from "./chat.js";
import { chosenOwn, deleteCorpus, loadCorpora, updateChoice } from "./corpora.js";
import { copy, showDocument } from "./document.js";
import { announce, at, button, count, make } from "./dom.js";
import { conversations, exportAll, importAll, isConversation, newConversation, remove, save, title } from "./history.js";
import { showReport } from "./report.js";
import { asCurl, asPython, requestOf, showsIn } from "./request.js";
import { get } from "./server.js";
import { applyModel, areValid, restore, settings, update } from "./settings.js";
import { addTurn, isSend, offerActions, removeLast, scrollToEnd, showThread, withdrawActions } from "./thread.js";
import { acceptDrops, addDocuments } from "./uploads.js";

const KEY = "mayfly-key";
const SMALL = matchMedia("(max-width: 44rem), (max-height: 42rem)"); // windows that the options would fill
const CLOSED = "The page was closed before the answer was complete."; // stored until it is complete

let models = []; // what /v1/models lists
let model = null; // the first of them
let conversation = newConversation();
const deleted = new Set(); // ids of conversations, one of which may still be answered
let running = null; // the AbortController of the current answers

const key = () => sessionStorage.getItem(KEY);

const actions = {
  regenerate() {
    const turn = takeLast();
    if (turn) send(turn.prompt, turn.attempt + 1);
  },
  edit(prompt) {
    if (takeLast()) send(prompt);
  },
  report(report, answering) {
    showReport(report, answering, (corpus, document) => showDocument(corpus, document, key()));
  },
};

// Whether a prompt can be sent now; otherwise the page says why not.
function isReady() {
  if (running) return false;
  if (model) return areValid();
  announce("The server has not answered yet.");
  return false;
}

// Removes the last turn, to be answered again.
function takeLast() {
  if (!isReady()) return null;
  removeLast();
  return conversation.turns.pop();
}

async function send(prompt, attempt = 0) {
  const chosen = settings();
  const request = requestOf(model.id, chosen, conversation.turns, { prompt, attempt });
  const turn = { kind: chosen.kind, prompt, attempt, answers: {} };
  const sides = sidesOf(request, chosen.compare);
  const [shown, controller] = [conversation, new AbortController()];
  running = controller;
  withdrawActions();
  const panels = addTurn(turn, sides, actions);
  scrollToEnd();
  swap(at("go"), at("stop"));
  for (const side of sides) turn.answers[side] = { text: "", error: CLOSED };
  shown.turns.push(turn);
  store(shown);
  const failures = await answerTurn(request, turn, panels, { key: key(), signal: controller.signal });
  if (running === controller) {
    running = null;
    swap(at("stop"), at("go"));
  }
  store(shown);
  offerActions(conversation.turns, actions);
  if (failures.some(({ status }) => status === 401)) requestKey("The server does not accept this key.");
}

// Who answers: the model that the request is for, and beside it, to compare, the base model with less.
function sidesOf(request, compare) {
  const sides = [...(request.budget === "none" ? [] : ["adapted"]), ...(showsIn(request) ? ["shown"] : []), "base"];
  return compare ? sides : sides.slice(0, 1);
}

function store(changed) {
  if (deleted.has(changed.id)) return;
  try {
    save(changed);
  } catch (problem) {
    announce(problem.message);
  }
  listConversations();
}

function open(chosen) {
  running?.abort();
  conversation = chosen;
  showThread(conversation.turns, actions);
  listConversations();
  openMenu(false);
  announce("");
  if (conversation.turns.length > 0) scrollToEnd();
  at("prompt").focus();
}

function listConversations() {
  const listed = conversations();
  const items = listed.map((each) => {
    const name = title(each);
    const show = make("button", { type: "button", className: "conversation" }, name);
    if (each.id === conversation.id) show.setAttribute("aria-current", "true");
    show.addEventListener("click", () => (each.id === conversation.id ? openMenu(false) : open(each)));
    return make("li", {}, show, button("\u00d7", () => removeConversation(each), `Delete ${name}`));
  });
  at("conversations").replaceChildren(...items);
  at("no-conversations").hidden = listed.length > 0;
  for (const id of ["export", "delete-all"]) at(id).hidden = listed.length === 0;
}

function forget(id) {
  deleted.add(id);
  remove(id);
}

function removeConversation(each) {
  if (!confirm(`Delete the conversation "${title(each)}"?`)) return;
  forget(each.id);
  if (each.id === conversation.id) open(newConversation());
  else listConversations();
}

function openMenu(isOpen) {
  const leaves = !isOpen && at("menu").contains(document.activeElement);
  at("menu").classList.toggle("open", isOpen);
  at("menu-open").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) at("new").focus();
  else if (leaves) at("menu-open").focus();
}

function openOptions(isOpen) {
  at("options").classList.toggle("open", isOpen);
  at("options-toggle").setAttribute("aria-expanded", String(isOpen));
}

function requestKey(problem = "") {
  at("unlock").hidden = false;
  at("key-error").textContent = problem;
  at("key").focus();
}

// Hides one of two buttons and shows the other, which takes over the focus.
function swap(from, to) {
  const focused = document.activeElement === from;
  [from.hidden, to.hidden] = [true, false];
  if (focused) to.focus();
}

async function load() {
  at("retry").hidden = true;
  try {
    models = (await get("v1/models", key())).data;
    [model] = models;
    at("model").textContent = model.id;
    applyModel(model);
    await loadCorpora(key(), models);
    announce("");
  } catch (problem) {
    if (problem.status === 401) {
      requestKey(key() ? "The server does not accept this key." : "");
      return;
    }
    announce(problem.message);
    at("retry").hidden = false;
  }
}

async function add(files) {
  if (!model) {
    announce("The server has not answered yet.");
    return;
  }
  await addDocuments(files, { key: key(), models });
  at("files").value = "";
}

// The request that would be sent now: of what is being written, or else of the last prompt again.
function currentRequest() {
  const written = at("prompt").value;
  const { turns } = conversation;
  if (written || turns.length === 0) return requestOf(model?.id ?? "", settings(), turns, { prompt: written, attempt: 0 });
  return requestOf(model.id, settings(), turns.slice(0, -1), turns.at(-1));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at("prompt").value;
  if (!isReady()) return;
  if (!prompt.trim()) {
    announce("The prompt is empty.");
    at("prompt").focus();
    return;
  }
  at("prompt").value = "";
  grow();
  if (SMALL.matches) openOptions(false);
  send(prompt);
});
at("prompt").addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  if (!running) at("ask").requestSubmit();
});

// Lets the prompt's field grow with its text.
function grow() {
  at("prompt").style.height = "auto";
  at("prompt").style.height = `${at("prompt").scrollHeight + 2}px`;
}

// The height of what covers the end of the window, for chat.css.
new ResizeObserver(() => document.documentElement.style.setProperty("--ask", `${at("ask").offsetHeight}px`)).observe(at("ask"));

at("prompt").addEventListener("input", grow);
addEventListener("resize", grow);
at("stop").addEventListener("click", () => running?.abort());
at("ask").addEventListener("input", () => update(true));
at("settings").addEventListener("input", () => update(true));
at("examples").addEventListener("input", () => update(true));
at("corpus").addEventListener("change", updateChoice);
at("curl").addEventListener("click", () => copy("curl", asCurl(currentRequest(), key())));
at("python").addEventListener("click", () => copy("Python", asPython(currentRequest(), key())));
SMALL.addEventListener("change", () => openOptions(!SMALL.matches));
at("options-toggle").addEventListener("click", () => openOptions(!at("options").classList.contains("open")));
at("settings-open").addEventListener("click", () => {
  at("forget").hidden = !key();
  at("settings-dialog").showModal();
});
at("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  at("settings-dialog").close();
  load();
});
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("unlock").hidden = true;
  load();
});
at("retry").addEventListener("click", load);
at("menu-open").addEventListener("click", () => openMenu(true));
at("menu-close").addEventListener("click", () => openMenu(false));
at("menu").addEventListener("keydown", (event) => {
  if (event.key === "Escape") openMenu(false);
});
at("new").addEventListener("click", () => open(newConversation()));
at("export").addEventListener("click", exportAll);
at("import").addEventListener("click", () => at("import-file").click());
at("import-file").addEventListener("change", async () => {
  try {
    announce(`${count(importAll(await at("import-file").files[0].text()), "conversation")} imported.`);
  } catch (problem) {
    announce(problem.message);
  }
  at("import-file").value = "";
  listConversations();
});
at("delete-all").addEventListener("click", () => {
  const all = conversations();
  if (!confirm(`Delete ${count(all.length, "conversation")}?`)) return;
  for (const { id } of all) forget(id);
  open(newConversation());
});
at("add").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => add([...at("files").files]));
at("corpus-delete").addEventListener("click", async () => {
  const own = chosenOwn();
  if (!confirm(`Delete the corpus "${own.name}" and its documents?`)) return;
  try {
    await deleteCorpus(own, key());
    await loadCorpora(key(), models);
    announce(`${own.name} was deleted.`);
  } catch (problem) {
    announce(problem.message);
  }
});
acceptDrops(add);
// Another tab has changed the conversations.
addEventListener("storage", ({ key: name }) => isConversation(name) && listConversations());

restore();
openOptions(!SMALL.matches);
grow();
listConversations();
load();
