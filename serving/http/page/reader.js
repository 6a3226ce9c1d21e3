// The dialog in which a document is read, the passages that taught the adapter open, the rest folded.

import { at, count, make } from "./dom.js";
import { get } from "./server.js";

at("reader-close").addEventListener("click", () => at("reader").close());

// Opens the dialog on a document as `report.js` has it.
export async function read(corpus, { file, name, passages }, key) {
  open(name, "Fetching the text \u2026");
  try {
    const path = `v1/vector_stores/${encodeURIComponent(corpus)}/files/${encodeURIComponent(file)}/content`;
    const { data } = await get(path, key);
    show(data.map((part) => part.text), passages);
  } catch (problem) {
    at("reader-told").textContent = problem.message;
  }
}

// Opens the dialog on a text of the page's own, selected, where the clipboard cannot be written.
export function offer(title, text) {
  open(title, "Copy it from here: the browser lets no page on an insecure address write the clipboard.");
  const code = make("pre", {}, text);
  at("reader-text").append(code);
  getSelection().selectAllChildren(code);
}

function open(title, told) {
  at("reader-title").textContent = title;
  at("reader-told").textContent = told;
  at("reader-text").replaceChildren();
  at("reader").showModal();
}

function show(texts, passages) {
  let start = 0;
  let marked = 0;
  let between = "";
  const fold = () => {
    if (between) {
      const size = count([...between].length, "character");
      at("reader-text").append(make("details", {}, make("summary", {}, `${size} not used`), make("pre", {}, between)));
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
      at("reader-text").append(make("section", {}, used, make("pre", {}, text)));
    }
    start += [...text].length; // the server counts characters, JavaScript halves of some
  }
  fold();
  if (marked < passages.size) {
    // Pieces that overlap, or rows of one file, do not add up to where the passages start.
    for (const folded of at("reader-text").querySelectorAll("details")) folded.open = true;
  }
  at("reader-told").textContent =
    marked === passages.size
      ? `${count(marked, "passage")} of this document taught the adapter.`
      : `${count(passages.size, "passage")} of this document taught the adapter; ${marked || "none"} of them could be marked.`;
}
