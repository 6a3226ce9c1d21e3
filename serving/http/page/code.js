// A request as code: for curl, and for openai-python. Knows the shape of a request, nothing of the page.

export function asCurl({ path, budget, body }, withKey) {
  const headers = ["Content-Type: application/json", `Compute-Budget: ${budget}`].map(shell);
  if (withKey) headers.push('"Authorization: Bearer $OPENAI_API_KEY"');
  return [
    `curl ${shell(new URL(path, document.baseURI).href)}`,
    ...headers.map((header) => `  -H ${header}`),
    `  -d ${shell(JSON.stringify(body))}`,
  ].join(" \\\n");
}

export function asPython({ path, budget, body }, withKey) {
  const chat = path.includes("chat");
  const { adaptation, ...fields } = body;
  const given = Object.entries(fields).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  given.push(`extra_headers=${JSON.stringify({ "Compute-Budget": budget })}`);
  if (adaptation) given.push(`extra_body=${JSON.stringify({ adaptation })}`);
  const base = JSON.stringify(new URL("v1", document.baseURI).href);
  const key = withKey ? "" : ', api_key="none"'; // without one openai-python reads OPENAI_API_KEY
  return `from openai import OpenAI

client = OpenAI(base_url=${base}${key})
answer = client.${chat ? "chat.completions" : "completions"}.create(
${given.map((line) => `    ${line},`).join("\n")}
)
print(answer.choices[0].${chat ? "message.content" : "text"})
print(answer.adaptation["spent"], answer.adaptation["stop"])
`;
}

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
