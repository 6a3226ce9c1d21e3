// The choice of a corpus: those that this model can use, the default one by name, and deleting one's own.

import { at, count, make } from "./dom.js";
import { all, corpora, remove } from "./server.js";

const CHOSEN = "mayfly-corpus";
const OWN = "mayfly-own-corpora"; // ids of the corpora that this browser has made

let stores = [];
let learnt = []; // corpora with an adapter, as `valueOf` names them

/** Fetches the corpora and shows them. @param {object[]} models what /v1/models lists: the served one first */
export async function loadCorpora(key, models) {
  const [{ id: served, adaptation: { corpus: hasDefault } }, ...others] = models;
  const listed = await corpora(key);
  learnt = others.filter(({ id }) => id.startsWith(`${served}:`)).map(({ id }) => id.slice(served.length + 1));
  stores = listed.filter(({ adaptation }) => adaptation.usable);
  const chosen = at("corpus").value || localStorage.getItem(CHOSEN) || "";
  const first = stores.find(({ adaptation }) => adaptation.default);
  const options = stores
    .filter((store) => store !== first)
    .map((store) => make("option", { value: valueOf(store) }, describe(store)));
  const text = first
    ? `${first.name} (default, ${documents(first)})`
    : hasDefault
      ? "The server's default, which this key does not see"
      : "No corpus";
  at("corpus").replaceChildren(make("option", { value: "" }, text), ...options);
  choose(chosen);
  const hidden = listed.length - stores.length;
  const [what, is] = hidden === 1 ? ["corpus", "is"] : ["corpora", "are"];
  at("corpus-note").textContent = hidden ? `${hidden} ${what} of another model or embedder ${is} not listed.` : "";
}

/** Chooses a corpus if it is listed, and remembers the choice. */
export function choose(value) {
  if ([...at("corpus").options].some((option) => option.value === value)) at("corpus").value = value;
  updateChoice();
}

export function updateChoice() {
  localStorage.setItem(CHOSEN, at("corpus").value);
  at("corpus-delete").hidden = chosenOwn() === undefined;
  const value = at("corpus").value;
  const store = stores.find((each) => (value ? valueOf(each) === value : each.adaptation.default));
  at("corpus-adapter").hidden = !store || !learnt.includes(valueOf(store));
}

/** The chosen corpus, if this browser has made it. */
export function chosenOwn() {
  const own = ownIds();
  return stores.find((store) => valueOf(store) === at("corpus").value && own.includes(store.id));
}

/** Notes that this browser has made a corpus. */
export function addOwn(id) {
  localStorage.setItem(OWN, JSON.stringify([...ownIds(), id]));
}

/** Deletes a corpus and the files that were uploaded for it. */
export async function deleteCorpus({ id }, key) {
  const files = await all(`v1/vector_stores/${encodeURIComponent(id)}/files`, key);
  await remove(`v1/vector_stores/${encodeURIComponent(id)}`, key);
  for (const file of files) await remove(`v1/files/${encodeURIComponent(file.id)}`, key);
  localStorage.setItem(OWN, JSON.stringify(ownIds().filter((own) => own !== id)));
}

/** How a request names a corpus: by its name if that is unique, otherwise by its id. */
export function valueOf({ id, name }) {
  return stores.filter((other) => other.name === name).length === 1 ? name : id;
}

const documents = ({ file_counts: files }) => count(files.completed, "document");
const describe = (store) => `${store.name} (${documents(store)})`;

function ownIds() {
  try {
    return JSON.parse(localStorage.getItem(OWN)) ?? [];
  } catch {
    return []; // another version of this page wrote it
  }
}
