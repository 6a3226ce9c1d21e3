// The dialog that shows a document, its passages that the adapter was trained on, and the rest folded; and the clipboard.

import { announce, at, count, make } from "./dom.js";
import { get } from "./server.js";

at("document-close").addEventListener("click", () => at("document-dialog").close());

// Shows a document of `report.js`.
export async function showDocument(corpus, { file, name, passages }, key) {
  open(name, "Fetching the text \u2026");
  try {
    const path = `v1/vector_stores/${encodeURIComponent(corpus)}/files/${encodeURIComponent(file)}/content`;
    const { data } = await get(path, key);
    showPassages(data.map((part) => part.text), passages);
  } catch (problem) {
    at("document-note").textContent = problem.message;
  }
}

// Copies a text, or shows it, selected, where the browser does not let the page write to the clipboard.
export async function copy(title, text) {
  try {
    await navigator.clipboard.writeText(text);
    announce(`${title} copied.`);
  } catch {
    offerForCopying(title, text);
  }
}

function offerForCopying(title, text) {
  open(title, "Copy it from here: browsers do not let a page with an insecure address write to the clipboard.");
  const code = make("pre", {}, text);
  at("document-text").append(code);
  getSelection().selectAllChildren(code);
}

function open(title, note) {
  at("document-title").textContent = title;
  at("document-note").textContent = note;
  at("document-text").replaceChildren();
  at("document-dialog").showModal();
}

function showPassages(texts, passages) {
  let start = 0;
  let marked = 0;
  let between = "";
  const fold = () => {
    if (between) {
      const size = count([...between].length, "character");
      at("document-text").append(make("details", {}, make("summary", {}, `${size} not used`), make("pre", {}, between)));
    }
    between = "";
  };
  for (const text of texts) {
    const times = passages.get(start);
    if (times === undefined) {
      between += text;
    } else {
      fold();
      marked += 1;
      const used = make("h3", {}, `Used ${times === 1 ? "once" : count(times, "time")}`);
      at("document-text").append(make("section", {}, used, make("pre", {}, text)));
    }
    start += [...text].length; // the server counts code points, JavaScript UTF-16 units
  }
  fold();
  if (marked < passages.size) {
    // Where chunks overlap, or rows share a file, lengths do not add up to the starts of passages.
    for (const folded of at("document-text").querySelectorAll("details")) folded.open = true;
  }
  at("document-note").textContent =
    marked === passages.size
      ? `The adapter was trained on ${count(marked, "passage")} of this document.`
      : `The adapter was trained on ${count(passages.size, "passage")} of this document; ${marked || "none"} of them could be marked.`;
}
