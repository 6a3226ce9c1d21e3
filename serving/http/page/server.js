// Client of the server: requests, streams and errors. It does not know what is shown.

// An error to show to the user. `status` is that of HTTP; 0 without a response.
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// The response to a request, if it succeeded; `path` is relative to the page.
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

// All vector stores, oldest first; the list comes in pages.
export async function corpora(key) {
  const stores = [];
  let page;
  do {
    const after = page ? `&after=${encodeURIComponent(page.last_id)}` : "";
    page = await get(`v1/vector_stores?limit=100&order=asc${after}`, key);
    stores.push(...page.data);
  } while (page.has_more);
  return stores;
}

// The parts of a streamed answer: {progress}, the text of a comment, or {text, report}.
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
  throw new ServerError("The answer is incomplete: the server closed the stream.");
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
      throw new ServerError("The answer is incomplete: the connection was lost.");
    }
    if (part.done) return;
    const complete = (rest + part.value).split("\n");
    rest = complete.pop();
    yield* complete.map((line) => line.replace(/\r$/, ""));
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
