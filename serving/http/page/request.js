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
 * @property {object} taught what the pasted examples add to `adaptation`
 * @property {number} [show] how many of the chosen passages are put into the prompt, at most; the server's default if left out
 */

/** @typedef {{path: string, budget: string, body: object}} Request */

/**
 * @param {string} model
 * @param {Settings} settings
 * @param {import("./history.js").Turn[]} earlier the turns before it
 * @param {{prompt: string, attempt: number}} turn another attempt has another seed, and so another answer
 * @returns {Request}
 */
export function requestOf(model, settings, earlier, { prompt, attempt }) {
  const { kind, system, sampling, corpus, budget, reuse, taught, show } = settings;
  const chat = kind === "chat";
  const body = { model, ...(chat ? { messages: messages(system, earlier, prompt) } : { prompt }), ...sampling };
  if (attempt > 0) body.seed = (body.seed ?? 0) + attempt;
  const adaptation = {
    ...(corpus ? { corpus } : {}),
    ...(reuse && chat ? { reuse: "conversation" } : {}),
    ...taught,
    ...(show === undefined ? {} : { show }),
  };
  if (Object.keys(adaptation).length > 0) body.adaptation = adaptation;
  return { path: chat ? "v1/chat/completions" : "v1/completions", budget, body };
}

/** Whether a request puts what was chosen into its prompt. @param {Request} request */
export const showsIn = ({ body: { adaptation: { show, examples_as: form } = {} } }) => (show ?? Number(form === "leave-one-out")) > 0;

/**
 * The same request to the base model, which sees what the adapted one sees ("shown") or the prompt alone ("base").
 * @param {Request} request
 * @param {import("./history.js").Side} side
 * @returns {Request}
 */
export function requestFor(request, side) {
  if (side === "adapted") return request;
  const { path, body: { adaptation, ...body } } = request;
  if (side === "base") return { path, budget: "none", body: { ...body, adaptation: { show: 0 } } };
  const { reuse, examples_as, ...chosen } = adaptation;
  // What is trained as leave-one-out is shown in full, unless the request says how much.
  return { path, budget: "none", body: { ...body, adaptation: { ...chosen, show: chosen.show ?? chosen.examples.length } } };
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

/** A JSON value as a Python literal. */
function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
  }
  return new Map([[true, "True"], [false, "False"], [null, "None"]]).get(value) ?? JSON.stringify(value);
}

const OPENAIS = ["model", "messages", "prompt", "temperature", "max_tokens", "top_p", "seed"];

/** @param {Request} request @param {boolean} withKey whether the server requires an API key */
export function asPython({ path, budget, body }, withKey) {
  const chat = path.includes("chat");
  const entries = Object.entries(body);
  const parameters = entries
    .filter(([name]) => OPENAIS.includes(name))
    .map(([name, value]) => `${name}=${python(value)}`);
  parameters.push(`extra_headers=${python({ "Compute-Budget": budget })}`);
  const others = Object.fromEntries(entries.filter(([name]) => !OPENAIS.includes(name)));
  if (Object.keys(others).length > 0) parameters.push(`extra_body=${python(others)}`);
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
