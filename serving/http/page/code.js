// A request as code for curl and for openai-python. It knows the shape of a request, not the page.

export function asCurl({ path, budget, body }, withKey) {
  const headers = ["Content-Type: application/json", `Compute-Budget: ${budget}`].map(quote);
  if (withKey) headers.push('"Authorization: Bearer $OPENAI_API_KEY"');
  return [
    `curl ${quote(new URL(path, document.baseURI).href)}`,
    ...headers.map((header) => `  -H ${header}`),
    `  -d ${quote(JSON.stringify(body))}`,
  ].join(" \\\n");
}

export function asPython({ path, budget, body }, withKey) {
  const chat = path.includes("chat");
  const { adaptation, ...fields } = body;
  const parameters = Object.entries(fields).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  parameters.push(`extra_headers=${JSON.stringify({ "Compute-Budget": budget })}`);
  if (adaptation) parameters.push(`extra_body=${JSON.stringify({ adaptation })}`);
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
