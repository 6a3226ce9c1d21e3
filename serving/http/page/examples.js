// The examples of a request: what is pasted into their dialog, line by line, and the options that belong to them.

import { at, count, make } from "./dom.js";

const NAMED = 5; // problems in the list

/**
 * The examples and texts of some lines: JSON as in the rows of a corpus, or a question and an answer with a tab between.
 * @param {string} text
 * @returns {{examples: object[], texts: string[], problems: {line: number, problem: string}[]}}
 */
export function parseLines(text) {
  const found = { examples: [], texts: [], problems: [] };
  for (const [i, line] of text.split("\n").entries()) {
    if (!line.trim()) continue;
    const row = rowOf(line);
    if (typeof row === "string") found.problems.push({ line: i + 1, problem: row });
    else if ("text" in row) found.texts.push(row.text);
    else found.examples.push(row);
  }
  return found;
}

// The row of a line, or what is wrong with it. The server checks the rest, such as the roles in between.
function rowOf(line) {
  const [question, answer, ...more] = line.trim().split("\t");
  if (answer && more.length === 0 && !line.trim().startsWith("{")) return { prompt: question, completion: answer };
  let row;
  try {
    row = JSON.parse(line);
  } catch (problem) {
    return line.trim().startsWith("{")
      ? `invalid JSON: ${problem.message}`
      : "neither JSON nor a question and an answer with a tab between";
  }
  if (typeof row !== "object" || row === null || Array.isArray(row)) return "not a JSON object";
  if ("messages" in row) return Array.isArray(row.messages) ? messagesOf(row) : "`messages` is not a list";
  if ("prompt" in row || "completion" in row) {
    const missing = ["prompt", "completion"].find((name) => !row[name]);
    return missing ? `no \`${missing}\`` : { prompt: row.prompt, completion: row.completion };
  }
  if (typeof row.text === "string" && row.text.trim()) return { text: row.text };
  return "expected `messages`, or `prompt` and `completion`, or `text`";
}

function messagesOf({ messages, tools }) {
  if (messages.length < 2) return "`messages` needs a question and an answer";
  if (messages.at(-1)?.role !== "assistant") return "the last of `messages` must be the assistant's";
  return tools ? { messages, tools } : { messages };
}

/** What the dialog adds to `adaptation` in a request; empty without a valid line. */
export function pasted() {
  const { rows, form, keep, alone } = at("examples").elements;
  const { examples, texts } = parseLines(rows.value);
  if (examples.length + texts.length === 0) return {};
  return {
    ...(examples.length > 0 ? { examples } : {}),
    ...(texts.length > 0 ? { texts } : {}),
    ...(examples.length > 1 ? { examples_as: form.value } : {}),
    ...(keep.checked ? { reuse: "examples" } : {}),
    ...(alone.checked ? { corpus: null } : {}),
  };
}

/** Whether every line is valid; otherwise the dialog is shown with what is wrong. */
export function areExamplesValid() {
  if (at("rows-problems").children.length === 0) return true;
  at("examples-dialog").showModal();
  return false;
}

/** Shows how many examples there are, and what is wrong with which line. */
export function updateExamples() {
  const { examples, texts, problems } = parseLines(at("examples").elements.rows.value);
  const items = problems.slice(0, NAMED).map(({ line, problem }) => make("li", {}, `Line ${line}: ${problem}`));
  if (problems.length > NAMED) items.push(make("li", {}, `and ${count(problems.length - NAMED, "other line")}`));
  at("rows-problems").replaceChildren(...items);
  const parts = [];
  if (examples.length > 0) parts.push(count(examples.length, "example"));
  if (texts.length > 0) parts.push(count(texts.length, "text"));
  if (problems.length > 0) parts.push(count(problems.length, "invalid line"));
  at("examples-note").textContent = parts.join(", ") || "None";
}

at("examples-open").addEventListener("click", () => {
  at("examples-dialog").showModal();
  at("examples").elements.rows.focus();
});
