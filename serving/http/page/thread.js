// The turns of a conversation: prompts with their answers, and what can be done with the last one.

import { at, button, make } from "./dom.js";
import { copy } from "./document.js";
import { Panel } from "./panel.js";

/** @typedef {import("./history.js").Turn} Turn */

/**
 * @typedef {object} Actions
 * @property {() => void} regenerate
 * @property {(prompt: string) => void} edit sends another prompt in place of the last one
 * @property {(report: object, answering?: number) => void} report
 */

const NEAR = 160; // pixels below the prompt's upper edge, within which the window follows the end of an answer

/** Shows a conversation. @param {Turn[]} turns @param {Actions} actions */
export function showThread(turns, actions) {
  at("thread").replaceChildren();
  at("welcome").hidden = turns.length > 0;
  for (const turn of turns) {
    const panels = addTurn(turn, Object.keys(turn.answers), actions);
    for (const [side, panel] of Object.entries(panels)) panel.end(turn.answers[side]);
  }
  offerActions(turns, actions);
}

/**
 * Adds a turn whose answers are awaited.
 * @param {Turn} turn
 * @param {import("./history.js").Side[]} sides
 * @param {Actions} actions
 * @returns {Record<string, Panel>}
 */
export function addTurn(turn, sides, actions) {
  at("welcome").hidden = true;
  const panels = {};
  for (const side of sides) panels[side] = new Panel(side, turn, actions.report);
  const text = make("p", { className: turn.kind === "completion" ? "text code" : "text" }, turn.prompt);
  const said = make("div", { className: "prompt" }, text, make("div", { className: "actions" }));
  const answers = make("div", { className: ["", "answers single", "answers", "answers three"][sides.length] });
  answers.append(...Object.values(panels).map((panel) => panel.element));
  at("thread").append(make("li", {}, make("h2", { className: "visually-hidden" }, "Prompt"), said, answers));
  return panels;
}

/** Removes the last turn. */
export const removeLast = () => at("thread").lastElementChild?.remove();

/** Removes what could be done with the last turn, while an answer is awaited. */
export function withdrawActions() {
  for (const actions of at("thread").querySelectorAll(".prompt .actions")) actions.replaceChildren();
}

/** Offers what can be done with the last turn. @param {Turn[]} turns @param {Actions} actions */
export function offerActions(turns, actions) {
  withdrawActions();
  const last = at("thread").lastElementChild;
  if (!last) return;
  const turn = turns.at(-1);
  const place = last.querySelector(".prompt .actions");
  place.append(
    button("Copy", () => copy("Prompt", turn.prompt), "Copy the prompt"),
    button("Edit", () => edit(last.querySelector(".prompt"), turn, actions), "Edit the prompt"),
    button("Regenerate", () => actions.regenerate(), "Regenerate the answer"),
  );
}

function edit(place, turn, actions) {
  const shown = [...place.children];
  const field = make("textarea", { value: turn.prompt, rows: 3, ariaLabel: "Edited prompt" });
  const cancel = () => place.replaceChildren(...shown);
  const send = make("button", { className: "main" }, "Send");
  const form = make("form", {}, field, make("div", { className: "row" }, send, button("Cancel", cancel)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) actions.edit(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    else if (isSend(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  place.replaceChildren(form);
  field.focus();
}

/** Whether a key sends what was written: Enter, but not while an input method composes. @param {KeyboardEvent} event */
export const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Changes an answer. If its end was in sight, it stays so. @param {HTMLElement} element @param {() => void} change */
export function follow(element, change) {
  const hidden = () => element.getBoundingClientRect().bottom - at("ask").getBoundingClientRect().top;
  const moves = hidden() < NEAR;
  change();
  if (moves && hidden() > 0) scrollBy({ top: hidden() });
}

export const scrollToEnd = () => scrollTo({ top: document.documentElement.scrollHeight });
