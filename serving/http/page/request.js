// The request of a turn, and the same as code for curl and for openai-python. It knows the API, not the page.

import { answerOf } from "./history.js";

/**
 * @typedef {object} Settings
 * @property {"chat" | "completion"} kind
 * @property {string} system the system prompt of a chat
 * @property {Record<string, number>} sampling
 * @property {string} corpus name or id; empty for the server's default
 * @property {string} budget value of Compute-Budget
 * @property {boolean} reuse whether to train the adapter of the previous answer further
 * @property {boolean} compare whether the base model answers, too
 */

/** @typedef {{path: string, budget: string, body: object}} Request */

/**
 * @param {string} model
 * @param {Settings} settings
 * @param {import("./history.js").Turn[]} earlier the turns before it
 * @param {{prompt: string, attempt: number}} turn another attempt has another seed, and so another answer
 * @returns {Request}
 */
export function requestOf(model, { kind, system, sampling, corpus, budget, reuse }, earlier, { prompt, attempt }) {
  const chat = kind === "chat";
  const body = { model, ...(chat ? { messages: messages(system, earlier, prompt) } : { prompt }), ...sampling };
  if (attempt > 0) body.seed = (body.seed ?? 0) + attempt;
  const adaptation = {};
  if (corpus) adaptation.corpus = corpus;
  if (reuse && chat) adaptation.reuse = "conversation";
  if (Object.keys(adaptation).length > 0) body.adaptation = adaptation;
  return { path: chat ? "v1/chat/completions" : "v1/completions", budget, body };
}

/** The same request to the base model. @param {Request} request @returns {Request} */
export function withoutAdaptation({ path, body: { adaptation, ...body } }) {
  return { path, budget: "none", body };
}

function messages(system, earlier, prompt) {
  const list = system ? [{ role: "system", content: system }] : [];
  for (const turn of earlier) {
    const answer = answerOf(turn);
    // A question without an answer would leave two questions in a row, which many templates refuse.
    if (turn.kind !== "chat" || !answer) continue;
    list.push({ role: "user", content: turn.prompt }, { role: "assistant", content: answer });
  }
  return [...list, { role: "user", content: prompt }];
}

/** @param {Request} request @param {boolean} withKey whether the server requires an API key */
export function asCurl({ path, budget, body }, withKey) {
  const headers = ["Content-Type: application/json", `Compute-Budget: ${budget}`].map(quote);
  if (withKey) headers.push('"Authorization: Bearer $OPENAI_API_KEY"');
  return [
    `curl ${quote(new URL(path, document.baseURI).href)}`,
    ...headers.map((header) => `  -H ${header}`),
    `  -d ${quote(JSON.stringify(body))}`,
  ].join(" \\\n");
}

const OPENAIS = ["model", "messages", "prompt", "temperature", "max_tokens", "top_p", "seed"];

/** @param {Request} request @param {boolean} withKey whether the server requires an API key */
export function asPython({ path, budget, body }, withKey) {
  const chat = path.includes("chat");
  const entries = Object.entries(body);
  const parameters = entries
    .filter(([name]) => OPENAIS.includes(name))
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  parameters.push(`extra_headers=${JSON.stringify({ "Compute-Budget": budget })}`);
  const others = Object.fromEntries(entries.filter(([name]) => !OPENAIS.includes(name)));
  if (Object.keys(others).length > 0) parameters.push(`extra_body=${JSON.stringify(others)}`);
  const base = JSON.stringify(new URL("v1", document.baseURI).href);
  // Without the parameter, openai-python reads OPENAI_API_KEY.
  const key = withKey ? "" : ', api_key="none"';
  return `from openai import OpenAI

client = OpenAI(base_url=${base}${key})
answer = client.${chat ? "chat.completions" : "completions"}.create(
${parameters.map((line) => `    ${line},`).join("\n")}
)
print(answer.choices[0].${chat ? "message.content" : "text"})
print(answer.adaptation["spent"], answer.adaptation["stop"])
`;
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
