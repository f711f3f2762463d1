// The server's API: requests, its errors as exceptions, streams of an answer.
// Knows nothing of what is shown.

const KEY = "extensible-key";
const USAGE = { include_usage: true, continuous_usage_stats: true };

export class Refusal extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers ?? {}) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached; see whether it still runs.", "unreachable");
  }
  if (answer.ok) return answer;
  let fault;
  try {
    fault = (await answer.json()).error;
  } catch {
    fault = { message: `The server answered ${answer.status}.` };
  }
  throw new Refusal(answer.status, fault.message, fault.code);
}

async function json(path, options) {
  return (await call(path, options)).json();
}

function posted(body, signal) {
  return {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
}

const at = (name) => `v1/contexts/${encodeURIComponent(name)}`;

export const model = async () => (await json("v1/models")).data[0];
export const progress = () => json("v1/progress");
export const metrics = async () => (await call("metrics")).text();
export const remove = (name) => json(at(name), { method: "DELETE" });
export const addText = (name, text, replace) =>
  json("v1/contexts", posted({ name, text, replace }));

export async function documents() {
  const all = [];
  for (;;) {
    const after = all.length ? all[all.length - 1].name : "";
    const page = await json(`v1/contexts?limit=1000&after=${encodeURIComponent(after)}`);
    all.push(...page.data);
    if (!page.has_more) return all;
  }
}

export function addFile(file, replace) {
  const form = new FormData();
  form.append("file", file);
  form.append("replace", replace ? "true" : "false");
  return json("v1/contexts/files", { method: "POST", body: form });
}

export function textOf(name, start, size) {
  const from = Math.max(0, Math.floor(start));
  return json(`${at(name)}/text?start_byte=${from}&num_bytes=${Math.max(4, Math.floor(size))}`);
}

// Calls onEvent with each piece of text and with what is known so far: usage, as the server counts
// it with every event, citations, and when the first and the last piece came.
export async function chat(body, signal, onEvent) {
  const asked = performance.now();
  const whole = { ...body, stream: true, stream_options: USAGE };
  const answer = await call("v1/chat/completions", posted(whole, signal));
  const found = { usage: null, citations: [], firstMs: null, lastMs: null };
  for await (const event of events(answer.body)) {
    if (event.error) throw new Refusal(500, event.error.message, event.error.code);
    const text = event.choices?.[0]?.delta?.content ?? "";
    if (text) {
      found.lastMs = performance.now() - asked;
      found.firstMs ??= found.lastMs;
    }
    found.usage = event.usage ?? found.usage;
    found.citations = event.extensible?.citations ?? found.citations;
    onEvent(text, found);
  }
  return found;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
