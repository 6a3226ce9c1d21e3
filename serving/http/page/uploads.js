// Documents that are dropped on the page or chosen: each is uploaded and read into a corpus, and reports how far it is.

import { addOwn, choose, chosenOwn, loadCorpora, valueOf } from "./corpora.js";
import { announce, at, button, count, make } from "./dom.js";
import { ServerError, get, post, upload } from "./server.js";

const LARGEST = 64; // MiB: the server refuses larger uploads, but only once they have arrived
const AT_ONCE = 3;
const POLL = 700; // milliseconds

/**
 * Adds files to the chosen corpus if this browser has made it, and otherwise to a new one: a drop must not change what
 * others use.
 * @param {File[]} files
 * @param {{key: string | null, models: object[]}} server
 */
export async function addDocuments(files, { key, models }) {
  if (files.length === 0) return;
  const lines = files.map(showFile);
  let store = chosenOwn();
  try {
    if (!store) {
      store = await post("v1/vector_stores", { name: `Documents of ${nowInWords()}` }, key);
      addOwn(store.id);
    }
  } catch (problem) {
    for (const line of lines) line.fail(messageOf(problem));
    return;
  }
  const waiting = files.map((file, i) => [file, lines[i]]);
  let added = 0;
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) if (await add(...next, store, key)) added += 1;
  };
  announce(`Adding ${count(files.length, "document")} to ${store.name}.`);
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  try {
    await loadCorpora(key, models);
  } catch (problem) {
    announce(messageOf(problem));
    return;
  }
  if (added > 0) choose(valueOf(store));
  announce(`${added} of ${count(files.length, "document")} added to ${store.name}.`);
}

// Uploads a file and waits until it has been read; true if it is in the corpus.
async function add(file, line, store, key) {
  try {
    if (file.size > LARGEST << 20) throw new ServerError(`It is larger than ${LARGEST} MiB.`);
    const { id } = await upload(file, key, (share) => line.progress("Uploading", share));
    line.progress("Reading");
    const files = `v1/vector_stores/${store.id}/files`;
    let state = await post(files, { file_id: id }, key);
    while (state.status === "in_progress") {
      await new Promise((resolve) => setTimeout(resolve, POLL));
      state = await get(`${files}/${id}`, key);
    }
    // Within the server a file is called by its id, too.
    const reason = state.last_error?.message.replaceAll(`${id}/`, "");
    if (state.status !== "completed") throw new ServerError(reason ?? `It was ${state.status}.`);
    line.finish();
    return true;
  } catch (problem) {
    line.fail(messageOf(problem));
    return false;
  }
}

function showFile(file) {
  const bar = make("progress", { ariaLabel: `Progress of ${file.name}` });
  const note = make("span", { className: "quiet" }, "Waiting");
  const line = make("li", {}, make("span", { className: "name" }, file.name), bar, note);
  at("uploads").append(line);
  at("uploads").hidden = false;
  const end = () => {
    bar.remove();
    line.append(button("\u00d7", () => dismiss(line), `Dismiss ${file.name}`));
  };
  return {
    progress(text, share) {
      note.textContent = share === undefined ? text : `${text} ${Math.round(100 * share)} %`;
      if (share === undefined) bar.removeAttribute("value");
      else bar.value = share;
    },
    finish() {
      note.textContent = "Added";
      end();
    },
    fail(message) {
      note.replaceWith(make("span", { className: "error", role: "alert" }, message));
      end();
    },
  };
}

function dismiss(line) {
  line.remove();
  at("uploads").hidden = at("uploads").children.length === 0;
}

function messageOf(problem) {
  if (problem instanceof ServerError) return problem.message;
  console.error(problem);
  return "The page failed to add it.";
}

function nowInWords() {
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  return new Date().toLocaleString("en-GB", { day: "numeric", month: "short", ...time });
}

/** Takes files that are dropped anywhere on the page. @param {(files: File[]) => void} onFiles */
export function acceptDrops(onFiles) {
  const mark = (drops) => document.body.classList.toggle("dropping", drops);
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false);
  });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(false);
    onFiles(await filesOf(event.dataTransfer));
  });
}

/** The files of a drop, those in its folders included. @param {DataTransfer} transfer @returns {Promise<File[]>} */
async function filesOf(transfer) {
  // The items are gone once this function waits. Not every file has an entry, and a folder is not a file.
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const dropped = items.map((item) => [item.webkitGetAsEntry(), item.getAsFile()]);
  const files = [];
  const visit = async (entry) => {
    if (entry.isFile) {
      files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (part.length === 0) return;
      for (const each of part) if (!each.name.startsWith(".")) await visit(each);
    }
  };
  for (const [entry, file] of dropped) {
    if (entry) await visit(entry);
    else if (file) files.push(file);
  }
  return files;
}
