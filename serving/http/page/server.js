// The server as this page sees it: requests, answers that stream, errors. Knows nothing of what is shown.

// What went wrong, in words for the reader. `status` is HTTP's; 0 when no answer came at all.
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// The response of a request that succeeded; `path` is relative to the page.
export async function call(path, { key, ...options } = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ServerError("The server cannot be reached.");
  }
  if (!response.ok) throw new ServerError(await messageOf(response), response.status);
  return response;
}

export async function get(path, key) {
  return (await call(path, { key })).json();
}

// Every vector store, oldest first; the list comes in pages.
export async function corpora(key) {
  const found = [];
  let page;
  do {
    const after = page ? `&after=${encodeURIComponent(page.last_id)}` : "";
    page = await get(`v1/vector_stores?limit=100&order=asc${after}`, key);
    found.push(...page.data);
  } while (page.has_more);
  return found;
}

// The pieces of an answer as they come: {progress}, a comment's text, or {text, report}.
export async function* stream({ path, budget, body }, key, signal) {
  const response = await call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Compute-Budget": budget },
    body: JSON.stringify({ ...body, stream: true, adaptation: { ...body.adaptation, progress: true } }),
    key,
    signal,
  });
  for await (const line of lines(response.body)) {
    if (line.startsWith(":")) {
      yield { progress: line.slice(1).trim() };
    } else if (line === "data: [DONE]") {
      return;
    } else if (line.startsWith("data: ")) {
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new ServerError(chunk.error.message);
      const choice = chunk.choices?.[0];
      yield { text: choice?.text ?? choice?.delta?.content ?? "", report: chunk.adaptation };
    }
  }
  throw new ServerError("The answer broke off: the server closed the stream.");
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new ServerError("The answer broke off: the connection was lost.");
    }
    if (part.done) return;
    const whole = (rest + part.value).split("\n");
    rest = whole.pop();
    yield* whole.map((line) => line.replace(/\r$/, ""));
  }
}

async function messageOf(response) {
  try {
    const { error } = await response.json();
    return error.message || String(error);
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  }
}
