// Answers of a turn: their streams, into their panels and into the conversation.

import { announce } from "./dom.js";
import { STOPPED } from "./history.js";
import { requestFor } from "./request.js";
import { ServerError, stream } from "./server.js";
import { follow } from "./thread.js";

const COMPLETE = { 1: "The answer is complete.", 2: "Both answers are complete.", 3: "All answers are complete." };

/**
 * Lets the adapted model, the base model with what is shown, and the base model alone answer a turn, or some of them.
 * @param {import("./request.js").Request} request
 * @param {import("./history.js").Turn} turn its answers are filled in
 * @param {Record<string, import("./panel.js").Panel>} panels
 * @param {{key: string | null, signal: AbortSignal}} options
 * @returns {Promise<ServerError[]>} what failed
 */
export async function answerTurn(request, turn, panels, { key, signal }) {
  announce("Waiting for the server.");
  const sides = Object.entries(panels);
  const failures = [];
  const run = async ([side, panel]) => {
    const says = side === "adapted" ? announce : () => {};
    // The window follows one answer: the adapted one, where there is one.
    const follows = panel === sides[0][1];
    turn.answers[side] = await answer(requestFor(request, side), panel, { key, signal, says, follows });
    if (panel.failure) failures.push(panel.failure);
    // An error is not followed by what the answer beside it is doing.
    if (turn.answers[side].error && side === "adapted") announce("");
  };
  await Promise.all(sides.map(run));
  if (signal.aborted) announce(STOPPED);
  else if (failures.length > 0) announce(""); // the panels have said what failed
  else announce(COMPLETE[sides.length]);
  return failures;
}

async function answer(sent, panel, { key, signal, says, follows }) {
  /** @type {import("./history.js").Answer} */
  const answer = { text: "" };
  let [reported, first, last, tokens] = [0, 0, 0, 0];
  let frame = 0;
  const changing = (change) => (follows ? follow(panel.element, change) : change());
  const show = () => {
    frame = 0;
    changing(() => panel.show(answer));
  };
  panel.begin();
  try {
    for await (const piece of stream(sent, key, signal)) {
      if (piece.progress) {
        panel.showProgress(piece.progress);
        says("The model is being adapted to your prompt.");
      }
      if (piece.report) {
        [answer.report, reported] = [piece.report, performance.now()];
        says(piece.report.adapted ? "The adapted model is answering." : "The base model is answering instead of an adapted one.");
      }
      if (piece.text) {
        last = performance.now();
        first ||= last;
        answer.text += piece.text;
      }
      tokens = piece.tokens ?? tokens;
      answer.finish = piece.finish ?? answer.finish;
      // No more often than the screen shows it.
      if (piece.text || piece.report) frame ||= requestAnimationFrame(show);
    }
    if (!answer.text) answer.error = "The model answered with no text.";
  } catch (problem) {
    if (problem.name === "AbortError") answer.error = STOPPED;
    else {
      if (!(problem instanceof ServerError)) console.error(problem);
      panel.failure = problem;
      answer.error = problem instanceof ServerError ? problem.message : "The page failed to read the answer.";
    }
  }
  cancelAnimationFrame(frame);
  if (tokens) answer.speed = { tokens, seconds: (last - first) / 1000 };
  if (reported) answer.answering = (performance.now() - reported) / 1000;
  changing(() => panel.end(answer));
  return answer;
}
