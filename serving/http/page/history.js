// Conversations in the browser's storage. It knows their shape, not what is shown.

import { make } from "./dom.js";
import { ServerError } from "./server.js";

/**
 * One answer of a turn.
 * @typedef {object} Answer
 * @property {string} text
 * @property {object} [report] the adaptation report
 * @property {{tokens: number, seconds: number}} [speed] tokens of the answer, and seconds from its first to its last
 * @property {number} [answering] seconds from the report to the end of the answer
 * @property {string} [finish] OpenAI's finish_reason
 * @property {string} [error] why it is incomplete
 */

/** @typedef {"adapted" | "shown" | "base"} Side which model answers what; "shown" is the base model with a longer prompt */

/**
 * A prompt and its answers.
 * @typedef {object} Turn
 * @property {"chat" | "completion"} kind
 * @property {string} prompt
 * @property {number} attempt how often it was regenerated
 * @property {Partial<Record<Side, Answer>>} answers
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {number} updated milliseconds since 1970
 * @property {Turn[]} turns
 */

/** The error of an answer that the user stopped. */
export const STOPPED = "Stopped.";

const PREFIX = "mayfly-conversation-";

/** @returns {Conversation} */
export function newConversation() {
  // crypto.randomUUID does not exist on a page with an insecure address.
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: [...random].map((each) => each.toString(36)).join(""), updated: Date.now(), turns: [] };
}

/**
 * All conversations, the last one first; what cannot be read is left out.
 * @returns {Conversation[]}
 */
export function conversations() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const name = localStorage.key(i);
    if (!name.startsWith(PREFIX)) continue;
    const conversation = parse(localStorage.getItem(name));
    if (isWhole(conversation)) found.push(conversation);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // another version of this page, or another program, wrote it
  }
}

const isObject = (value) => typeof value === "object" && value !== null;

function isWhole(conversation) {
  const isAnswer = (answer) => isObject(answer) && typeof answer.text === "string";
  const isTurn = (turn) =>
    isObject(turn) &&
    typeof turn.prompt === "string" &&
    isObject(turn.answers) &&
    Object.values(turn.answers).every(isAnswer);
  return (
    isObject(conversation) &&
    /^\w+$/.test(conversation.id) &&
    Array.isArray(conversation.turns) &&
    conversation.turns.every(isTurn)
  );
}

/**
 * @param {Conversation} conversation
 * @throws {ServerError} the storage is full
 */
export function save(conversation) {
  conversation.updated = Date.now();
  write(conversation);
}

function write(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  } catch {
    throw new ServerError("The browser's storage is full, so this conversation is not saved: delete or export others.");
  }
}

/** @param {string} id */
export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Lets the browser save all conversations as a file. */
export function exportAll() {
  const content = new Blob([JSON.stringify(conversations(), null, 2)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(content), download: "mayfly-conversations.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

/**
 * Takes up the conversations of a file that `exportAll` has made.
 * @param {string} text
 * @returns {number} how many there are
 * @throws {ServerError} there is none, or the storage is full
 */
export function importAll(text) {
  const found = parse(text);
  const whole = Array.isArray(found) ? found.filter(isWhole) : [];
  if (whole.length === 0) throw new ServerError("This file has no conversations that this page has exported.");
  whole.forEach(write);
  return whole.length;
}

/** @param {Conversation} conversation */
export function title({ turns }) {
  const line = turns[0]?.prompt.trim().split("\n")[0] ?? "";
  return line.length > 80 ? `${line.slice(0, 79)}\u2026` : line || "Conversation";
}

/** The text of a turn's answer that the conversation goes on from; empty if there is none. @param {Turn} turn */
export function answerOf({ answers: { adapted, shown, base } }) {
  return adapted?.text || shown?.text || base?.text || "";
}

/** Whether a change of this storage entry concerns conversations; all were deleted if it is null. */
export const isConversation = (name) => name === null || name.startsWith(PREFIX);
