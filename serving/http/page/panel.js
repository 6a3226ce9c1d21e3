// One answer: its text, its progress while it is awaited, and below it what it cost.

import { button, count, duration, make } from "./dom.js";
import { copy } from "./document.js";
import { STOPPED } from "./history.js";
import { showMarkdown } from "./markdown.js";
import { sourcesInWords, summary } from "./report.js";

/** @typedef {import("./history.js").Answer} Answer */

// Reasoning models think first, within tags that some servers pass on.
const THOUGHTS = /^(?:\s*<think>([^]*?)(?:<\/think>|$))?([^]*)$/;

const NAMES = { adapted: "Adapted", shown: "Shown only", base: "Base model" };

export class Panel {
  /**
   * @param {import("./history.js").Side} side
   * @param {import("./history.js").Turn} turn
   * @param {(report: object, answering?: number) => void} onReport called when its report is asked for
   */
  constructor(side, turn, onReport) {
    const name = NAMES[side];
    this.side = side;
    this.onReport = onReport;
    this.isCode = turn.kind === "completion";
    this.note = make("p", { className: "note quiet" });
    this.bar = make("progress", { ariaLabel: side === "adapted" ? "Adaptation" : `Waiting: ${name}` });
    this.waiting = make("p", { className: "quiet" });
    this.training = make("div", { className: "training", hidden: true }, this.bar, this.waiting);
    this.place = make("div", { className: `answer ${this.isCode ? "code" : "prose"}` });
    this.thoughts = make("div", { className: "prose" });
    this.thinking = make("details", { className: "thoughts", hidden: true }, make("summary", {}, "Thoughts"), this.thoughts);
    this.foot = make("footer", { className: "quiet" });
    const parts = [make("h3", {}, name), this.training, this.thinking, this.place, this.note, this.foot];
    this.element = make("article", { className: side, ariaLabel: name }, ...parts);
    if (this.isCode) {
      // A completion continues the last line of its prompt.
      this.text = document.createTextNode("");
      const last = turn.prompt.slice(turn.prompt.lastIndexOf("\n") + 1);
      this.place.append(make("span", { className: "prompt" }, last), this.text);
    }
  }

  /** Shows that the answer is awaited, until `end`. */
  begin() {
    const began = performance.now();
    this.element.setAttribute("aria-busy", "true");
    this.training.hidden = false;
    this.place.hidden = true;
    const doing = this.side === "adapted" ? "preparing the answer" : "waiting for the server";
    const show = () => {
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      this.waiting.textContent = this.steps || `${this.stage || doing}, ${seconds} seconds`;
    };
    show();
    this.clock = setInterval(show, 100);
  }

  /** @param {string} comment a comment of the stream */
  showProgress(comment) {
    const step = /step (\d+) of (\d+)/.exec(comment);
    if (step) [this.bar.value, this.bar.max] = [Number(step[1]), Number(step[2])];
    const words = comment.replace(/^adapting:? ?/, "");
    [this.steps, this.stage] = step ? [words, ""] : ["", words];
  }

  /** @param {Answer} answer */
  show(answer) {
    if (answer.text || answer.report) [this.training.hidden, this.place.hidden] = [true, false];
    if (answer.report && this.side !== "base") this.note.textContent = summary(answer.report);
    if (this.isCode) {
      this.text.data = answer.text;
      return;
    }
    const onCopy = (code) => copy("Code", code);
    const [, thoughts = "", rest] = THOUGHTS.exec(answer.text);
    this.thinking.hidden = !thoughts.trim();
    showMarkdown(this.thoughts, thoughts, onCopy);
    showMarkdown(this.place, rest, onCopy);
  }

  /** Shows a finished answer. @param {Answer} answer */
  end(answer) {
    clearInterval(this.clock);
    this.show(answer);
    this.training.hidden = true;
    this.place.hidden = !answer.text;
    this.element.removeAttribute("aria-busy");
    const parts = [];
    const label = `Copy the answer: ${this.element.ariaLabel}`;
    if (answer.text) parts.push(button("Copy", () => copy("Answer", answer.text), label));
    if (answer.report && this.side !== "base") {
      const sources = sourcesInWords(answer.report);
      if (sources) this.note.append(make("br"), sources);
      if (answer.report.stop !== "none") {
        parts.push(button("Details", () => this.onReport(answer.report, answer.answering), "Details of the adaptation"));
      }
    }
    const facts = [];
    if (answer.speed) facts.push(speedInWords(answer.speed));
    if (answer.finish === "length") facts.push("the limit of tokens was reached");
    if (facts.length > 0) parts.push(make("span", {}, facts.join("; ")));
    this.foot.replaceChildren(...parts);
    if (answer.error) {
      const role = answer.error === STOPPED ? "note" : "alert";
      this.foot.before(make("p", { className: role === "alert" ? "error" : "quiet", role }, answer.error));
    }
  }
}

function speedInWords({ tokens, seconds }) {
  // The first token came before the clock started.
  const rate = tokens > 1 && seconds > 0 ? `, ${((tokens - 1) / seconds).toFixed(1)} a second` : "";
  return `${count(tokens, "token")}${rate || ` in ${duration(seconds)}`}`;
}
