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

export async function post(path, body, key) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body), key })).json();
}

export async function remove(path, key) {
  return (await call(path, { method: "DELETE", key })).json();
}

// Uploads a file; `onProgress` is called with the share that was sent. fetch does not report it.
export function upload(file, key, onProgress) {
  const form = new FormData();
  form.append("purpose", "assistants");
  form.append("file", file, file.name);
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 0));
    request.addEventListener("error", () => reject(new ServerError("It could not be sent: the connection was lost.")));
    request.addEventListener("load", () => {
      let content;
      try {
        content = JSON.parse(request.responseText);
      } catch {
        content = {};
      }
      if (request.status === 200) resolve(content);
      else reject(new ServerError(content.error?.message ?? `The server answered ${request.status}.`, request.status));
    });
    request.open("POST", "v1/files");
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.send(form);
  });
}

// All vector stores, oldest first; the list comes in pages.
export const corpora = (key) => all("v1/vector_stores", key);

// The whole of a list.
export async function all(path, key) {
  const items = [];
  let page;
  do {
    const after = page ? `&after=${encodeURIComponent(page.last_id)}` : "";
    page = await get(`${path}?limit=100&order=asc${after}`, key);
    items.push(...page.data);
  } while (page.has_more);
  return items;
}

// The parts of a streamed answer: {progress}, the text of a comment, or {text, report, finish, tokens}.
export async function* stream({ path, budget, body }, key, signal) {
  const response = await call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Compute-Budget": budget },
    body: JSON.stringify({
      ...body,
      stream: true,
      stream_options: { include_usage: true },
      adaptation: { ...body.adaptation, progress: true },
    }),
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
      yield {
        text: choice?.text ?? choice?.delta?.content ?? "",
        report: chunk.adaptation,
        finish: choice?.finish_reason,
        tokens: chunk.usage?.completion_tokens,
      };
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
