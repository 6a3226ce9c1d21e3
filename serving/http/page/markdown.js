// Markdown as elements. The lexer makes tokens, and every text of theirs is inserted as text: markup in an answer is
// shown, never interpreted, and a link leads to http or https addresses only.

import { lexer } from "./vendor/marked.js";
import { make } from "./dom.js";

const LONGEST = 200_000; // characters; a longer text is shown as it is
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const rendered = new WeakMap(); // the source of each block in a place, so that those that stay are not made again

/**
 * Shows a Markdown text in an element. While the text grows, finished blocks keep their elements.
 * @param {HTMLElement} place
 * @param {string} text
 * @param {(code: string) => void} onCopy called with the code of a block whose copy button was pressed
 */
export function showMarkdown(place, text, onCopy) {
  let tokens;
  try {
    if (text.length > LONGEST) throw new RangeError("too long");
    tokens = lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  } catch {
    // Nested too deeply, or too long: readable as it is.
    tokens = [{ type: "plain", raw: text, text }];
  }
  const before = rendered.get(place) ?? [];
  let same = 0;
  while (same < before.length && same < tokens.length && before[same] === tokens[same].raw) same += 1;
  while (place.childNodes.length > same) place.lastChild.remove();
  for (const token of tokens.slice(same)) place.append(block(token, onCopy));
  rendered.set(place, tokens.map((token) => token.raw));
}

function block(token, onCopy) {
  const blocks = (tokens) => tokens.filter((each) => each.type !== "space").map((each) => block(each, onCopy));
  switch (token.type) {
    case "heading":
      // The page's own headings take the first three levels.
      return make(
        "p",
        { className: `heading h${token.depth}`, role: "heading", ariaLevel: Math.min(token.depth + 3, 6) },
        ...inline(token.tokens),
      );
    case "paragraph":
      return make("p", {}, ...inline(token.tokens));
    case "text":
      return make("span", {}, ...inline(token.tokens ?? [token]));
    case "code":
      return codeBlock(token.text, token.lang ?? "", onCopy);
    case "blockquote":
      return make("blockquote", {}, ...blocks(token.tokens));
    case "hr":
      return make("hr");
    case "list": {
      const items = token.items.map((item) => make("li", {}, ...blocks(item.tokens)));
      return token.ordered ? make("ol", { start: token.start || 1 }, ...items) : make("ul", {}, ...items);
    }
    case "table":
      return table(token);
    case "checkbox":
      return document.createTextNode(token.checked ? "\u2611 " : "\u2610 ");
    case "plain":
      return make("pre", {}, token.text);
    default:
      // HTML, and whatever else the lexer may know one day.
      return make("p", { className: "verbatim" }, token.raw.trimEnd());
  }
}

function inline(tokens) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return make(token.type, {}, ...inline(token.tokens));
      case "codespan":
        return make("code", {}, token.text);
      case "br":
        return make("br");
      case "link":
        return link(token.href, inline(token.tokens));
      case "image":
        return link(token.href, [token.text || "image"]);
      case "checkbox":
        return token.checked ? "\u2611 " : "\u2610 ";
      case "escape":
        return token.text;
      case "text":
        return token.tokens ? make("span", {}, ...inline(token.tokens)) : decode(token.text);
      default:
        return token.raw;
    }
  });
}

function link(href, children) {
  let address;
  try {
    address = new URL(decode(href));
  } catch {
    return make("span", {}, ...children);
  }
  if (!["http", "https"].includes(address.protocol.slice(0, -1))) return make("span", {}, ...children);
  return make("a", { href: address.href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

function codeBlock(code, language, onCopy) {
  const copy = make("button", { className: "plain", type: "button" }, "Copy");
  copy.setAttribute("aria-label", "Copy the code");
  copy.addEventListener("click", () => onCopy(code));
  const title = make("div", { className: "row" }, make("span", { className: "quiet" }, language), copy);
  return make("div", { className: "code-block" }, title, make("pre", { tabIndex: 0 }, make("code", {}, code)));
}

function table({ header, rows, align }) {
  const cells = (name, row) =>
    row.map((cell, i) => make(name, { className: align[i] ? `align-${align[i]}` : "" }, ...inline(cell.tokens)));
  const head = make("thead", {}, make("tr", {}, ...cells("th", header)));
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row))));
  return make("div", { className: "table", tabIndex: 0 }, make("table", {}, head, body));
}

// The lexer leaves character references as they are, for a browser that would parse them.
function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]+));/gi, (whole, decimal, hex, name) => {
    if (name) return NAMED[name] ?? whole;
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd";
  });
}
