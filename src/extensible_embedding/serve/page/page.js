// The page: documents in, their rows in the window, a question, two answers, their sources.
// What the server says goes into the page as text, never as markup.

import * as api from "./api.js";
import { draw, rowsAt } from "./strip.js";

const $ = (id) => document.getElementById(id);
const NEW_TOKENS = 256;
const TALK_ROWS = 64; // of chat template and question, until the server says how many
const AROUND_BYTES = 4000; // of text that is shown on either side of a source
const SAVED = "extensible-page";

const state = {
  model: null,
  documents: [],
  chosen: new Set(),
  k: "auto",
  usage: null,
  citations: [],
  embedded: null,
  asking: null,
  busy: 0,
};
const channel = "BroadcastChannel" in window ? new BroadcastChannel("extensible") : null;

// What stays over a reload of this tab.
function save() {
  sessionStorage.setItem(
    SAVED,
    JSON.stringify({
      chosen: [...state.chosen],
      k: state.k,
      question: $("question").value,
      expand: $("expand").checked,
      compare: $("compare").checked,
    }),
  );
}

function restore() {
  const saved = JSON.parse(sessionStorage.getItem(SAVED) ?? "null");
  if (!saved) return;
  state.chosen = new Set(saved.chosen);
  state.k = saved.k;
  $("question").value = saved.question;
  $("expand").checked = saved.expand;
  $("compare").checked = saved.compare;
}

function tell(error) {
  if (error?.name === "AbortError") return;
  const box = $("problem");
  box.hidden = !error;
  box.textContent = error ? error.message : "";
  if (error?.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

async function attempt(work) {
  try {
    tell(null);
    return await work();
  } catch (error) {
    tell(error);
    return undefined;
  }
}

// Documents

const chosen = () => state.documents.filter((each) => state.chosen.has(each.name) && each.tokens);

async function refresh() {
  state.documents = await api.documents();
  const names = new Set(state.documents.map((each) => each.name));
  state.chosen = new Set([...state.chosen].filter((name) => names.has(name)));
  showDocuments();
  showWindow();
}

function showDocuments() {
  $("no-documents").hidden = state.documents.length > 0;
  $("documents").replaceChildren(...state.documents.map(documentItem));
}

function documentItem(each, number) {
  const item = document.createElement("li");
  const box = Object.assign(document.createElement("input"), {
    type: "checkbox",
    id: `document-${number}`,
    checked: state.chosen.has(each.name),
    disabled: !each.tokens,
  });
  box.addEventListener("change", () => {
    state.chosen[box.checked ? "add" : "delete"](each.name);
    forgetAnswer();
    showWindow();
  });
  const label = Object.assign(document.createElement("label"), { htmlFor: box.id });
  const size = document.createElement("small");
  size.textContent = `${each.tokens.toLocaleString()} tokens, ${each.rows.toLocaleString()} rows`;
  label.append(each.title || each.name, size);
  item.append(box, label);
  if (!each.shared) item.append(removeButton(each));
  return item;
}

function removeButton(each) {
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    className: "plain",
    textContent: "Remove",
  });
  button.setAttribute("aria-label", `Remove ${each.title || each.name}`);
  button.addEventListener("click", () => {
    if (!window.confirm(`Remove ${each.title || each.name}, its rows and its text?`)) return;
    attempt(async () => {
      await api.remove(each.name);
      await changed();
    });
  });
  return button;
}

async function changed() {
  await refresh();
  channel?.postMessage("changed");
}

// Adds documents one by one, with the server's progress on the way.
async function add(named, send) {
  $("work").hidden = false;
  $("work-words").textContent = `Reading ${named} ...`;
  $("work-bar").removeAttribute("value");
  state.busy += 1;
  const watch = setInterval(() => watchWork(named), 400);
  try {
    const made = await send(false).catch((error) => {
      const again = `There is a document ${named} already. Replace it?`;
      if (error.code === "context_exists" && window.confirm(again)) return send(true);
      throw error;
    });
    state.chosen.add(made.name);
    forgetAnswer();
    await changed();
  } finally {
    clearInterval(watch);
    state.busy -= 1;
    state.embedded = null;
    $("work").hidden = state.busy === 0;
    showWindow();
  }
}

async function watchWork(named) {
  const { done, total } = await api.progress().catch(() => ({ done: 0, total: 0 }));
  if (!total || !state.busy) return;
  $("work-bar").value = done / total;
  $("work-words").textContent =
    `Turning ${named} into rows: ${done.toLocaleString()} of ${total.toLocaleString()} tokens`;
  state.embedded = { done, total };
  showWindow();
}

async function addFiles(files) {
  for (const file of files) {
    await attempt(() => add(file.name, (replace) => api.addFile(file, replace)));
  }
}

// The window

function scaleFactors() {
  const kept = Math.max(1, ...chosen().map((each) => each.k));
  const most = state.model?.max_k ?? 64;
  const found = ["auto", 1];
  for (let k = kept > 1 ? kept : 2; k <= most; k *= 2) found.push(k);
  return found;
}

function smallest(room) {
  const factors = scaleFactors().slice(1);
  return factors.find((k) => rowsAt(chosen(), k) <= room) ?? factors[factors.length - 1];
}

function windowState() {
  const documents = chosen();
  const size = state.model?.window ?? 1;
  const tokens = documents.reduce((sum, each) => sum + each.tokens, 0);
  if (state.embedded) {
    const { done, total } = state.embedded;
    const rows = Math.min(size, Math.ceil(done / 4));
    return { window: size, tokens: total, rows, raw: 0, talk: 0, spans: [], done: done / total };
  }
  if (state.usage) {
    const { rows, context_tokens: of, span_tokens: raw, k } = state.usage;
    const inRows = Math.min(rows - raw, Math.ceil(of / k));
    const talk = rows - inRows - raw;
    return { window: size, tokens, rows: inRows, raw, talk, spans: spans(documents, tokens) };
  }
  const answer = Math.min(NEW_TOKENS, Math.floor(size / 4));
  const room = size - answer - TALK_ROWS;
  const k = state.k === "auto" ? smallest(room) : state.k;
  const talk = tokens ? TALK_ROWS + answer : 0;
  return { window: size, tokens, rows: rowsAt(documents, k), raw: 0, talk, spans: [], k };
}

// Where raw passages stand, as parts of all the text.
function spans(documents, tokens) {
  const starts = [];
  let before = 0;
  for (const each of documents) {
    starts.push(before);
    before += each.tokens;
  }
  return state.citations
    .filter((each) => each.raw && documents[each.context])
    .map((each) => {
      const { tokens: own, text_bytes: bytes } = documents[each.context];
      const place = (byte) => (starts[each.context] + (byte / bytes) * own) / tokens;
      return [place(each.start_byte), place(each.end_byte)];
    });
}

function showWindow() {
  const slider = $("k");
  const factors = scaleFactors();
  if (!factors.includes(state.k)) state.k = "auto";
  slider.max = String(factors.length - 1);
  slider.value = String(factors.indexOf(state.k));
  const now = windowState();
  const k = state.usage?.k ?? now.k;
  const shown = state.k === "auto" ? (now.tokens && k ? `auto: ${k}` : "auto") : String(state.k);
  $("k-shown").textContent = shown;
  slider.setAttribute("aria-valuetext", shown);
  draw($("strip"), now);
  const taken = now.rows + now.raw + now.talk;
  const share = Math.round((100 * taken) / now.window);
  $("fill").textContent = !now.tokens
    ? "Choose a document."
    : taken > now.window
      ? `At this k it takes ${share} percent of the window: choose more tokens per row.`
      : `${now.tokens.toLocaleString()} tokens in ${(now.rows + now.raw).toLocaleString()} rows; ` +
        `${share} percent of the window is taken.`;
  save();
}

// Questions

function forgetAnswer() {
  state.usage = null;
  state.citations = [];
}

function part(id) {
  const article = $(id);
  const found = (kind) => article.querySelector(kind);
  return { article, answer: found(".answer"), numbers: found(".numbers"), sources: found(".sources") };
}

function empty(view) {
  view.answer.textContent = "";
  view.answer.classList.add("waiting");
  view.numbers.replaceChildren();
  view.sources?.replaceChildren();
}

function number(view, name, value) {
  const line = document.createElement("div");
  const term = Object.assign(document.createElement("dt"), { textContent: name });
  const text = Object.assign(document.createElement("dd"), { textContent: value });
  line.append(term, text);
  view.numbers.append(line);
}

const seconds = (ms) => (ms === null ? "-" : `${(ms / 1000).toFixed(2)} s`);

async function answerInto(view, body, signal) {
  try {
    const found = await api.chat(body, signal, (text) => {
      view.answer.textContent += text;
    });
    const usage = found.usage;
    number(view, "tokens read", usage.prompt_tokens.toLocaleString());
    number(view, "rows", usage.extensible.rows.toLocaleString());
    number(view, "k", String(usage.extensible.k));
    number(view, "to first token", seconds(found.firstMs));
    const rest = (found.lastMs - found.firstMs) / 1000;
    const speed = rest > 0 ? (usage.completion_tokens - 1) / rest : 0;
    if (speed > 0) number(view, "tokens a second", speed.toFixed(1));
    return found;
  } finally {
    view.answer.classList.remove("waiting");
  }
}

async function ask() {
  const question = $("question").value.trim();
  const documents = chosen();
  if (!question) return;
  if (!documents.length) {
    tell(new Error("A question is about documents; choose one, or add one."));
    return;
  }
  save();
  state.asking = new AbortController();
  const { signal } = state.asking;
  $("ask").disabled = true;
  $("stop").hidden = false;
  $("reading").hidden = true;
  const [ours, theirs] = [part("extensible"), part("truncated")];
  const comparing = $("compare").checked;
  theirs.article.hidden = !comparing;
  ours.article.parentElement.classList.toggle("single", !comparing);
  empty(ours);
  if (comparing) empty(theirs);
  await attempt(async () => {
    const found = await answerInto(ours, oursBody(question, documents), signal);
    state.usage = found.usage.extensible;
    state.citations = found.citations;
    showSources(ours, documents);
    showWindow();
    await showMemory(ours);
    if (comparing) await askTruncated(theirs, question, documents, signal);
  });
  ours.answer.classList.remove("waiting");
  theirs.answer.classList.remove("waiting");
  $("ask").disabled = false;
  $("stop").hidden = true;
  state.asking = null;
}

function oursBody(question, documents) {
  return {
    model: state.model.id,
    messages: [{ role: "user", content: question }],
    max_tokens: answerTokens(),
    extensible: {
      contexts: documents.map((each) => each.name),
      k: state.k,
      expand: $("expand").checked ? "auto" : 0,
      cite: true,
    },
  };
}

const answerTokens = () => Math.max(1, Math.min(NEW_TOKENS, Math.floor(state.model.window / 4)));

// The most recent text that fits the same window raw; what does not fit is told by the server.
async function askTruncated(view, question, documents, signal) {
  const tokens = documents.reduce((sum, each) => sum + each.tokens, 0);
  const bytes = documents.reduce((sum, each) => sum + each.text_bytes, 0);
  let room = state.model.window - answerTokens() - TALK_ROWS - question.length / 3;
  for (let tries = 0; tries < 6; tries++, room *= 0.85) {
    const text = await endOf(documents, (room * bytes) / tokens);
    const body = {
      model: state.model.id,
      messages: [{ role: "user", content: `${text}\n\n${question}` }],
      max_tokens: answerTokens(),
      extensible: { k: 1, expand: 0 },
    };
    try {
      await answerInto(view, body, signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || tries === 5) throw error;
      view.answer.classList.add("waiting");
    }
  }
}

async function endOf(documents, bytes) {
  let [text, left] = ["", bytes];
  for (const each of [...documents].reverse()) {
    if (left < 4) break;
    const size = Math.min(left, each.text_bytes);
    const found = await api.textOf(each.name, each.text_bytes - size, size);
    text = found.text + (text ? `\n\n${text}` : "");
    left -= size;
  }
  return text;
}

async function showMemory(view) {
  const found = /^process_resident_memory_bytes (\S+)$/m.exec(await api.metrics());
  if (found) number(view, "server memory", `${Math.round(Number(found[1]) / 1e6).toLocaleString()} MB`);
}

// Sources

function showSources(view, documents) {
  view.sources.replaceChildren(
    ...state.citations.map((each) => {
      const item = document.createElement("li");
      const button = Object.assign(document.createElement("button"), {
        type: "button",
        className: "plain",
      });
      const quote = document.createElement("q");
      const text = each.quote.trim();
      quote.textContent = text.length > 200 ? `${text.slice(0, 200)} ...` : text;
      const how = each.raw ? "read raw" : `${Math.round(100 * each.weight)} percent of attention`;
      button.append(quote, ` (${how})`);
      button.addEventListener("click", () => attempt(() => showText(documents[each.context], each)));
      item.append(button);
      return item;
    }),
  );
}

async function showText(kept, source) {
  const start = Math.max(0, source.start_byte - AROUND_BYTES);
  const size = source.end_byte - start + AROUND_BYTES;
  const found = await api.textOf(kept.name, start, size);
  const bytes = new TextEncoder().encode(found.text);
  const cut = (from, to) => new TextDecoder().decode(bytes.slice(from, to));
  const [from, to] = [source.start_byte - found.start_byte, source.end_byte - found.start_byte];
  const mark = Object.assign(document.createElement("mark"), { textContent: cut(from, to) });
  $("text").replaceChildren(cut(0, from), mark, cut(to, bytes.length));
  $("reading-place").textContent =
    `${kept.title || kept.name}, bytes ${source.start_byte.toLocaleString()} to ` +
    source.end_byte.toLocaleString();
  $("reading").hidden = false;
  mark.scrollIntoView({ block: "center" });
  $("text").focus({ preventScroll: true });
}

// All together

async function start() {
  state.model = await api.model();
  const window_ = state.model.window.toLocaleString();
  $("model").textContent = `${state.model.reader}, a window of ${window_} rows`;
  $("server").textContent = `Model ${state.model.id}, run by ${state.model.engine}.`;
  $("key-form").hidden = true;
  await refresh();
}

function listen() {
  $("file").addEventListener("change", (event) => {
    addFiles([...event.target.files]).then(() => (event.target.value = ""));
  });
  const drop = $("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") addFiles([...event.dataTransfer.files]);
    });
  }
  $("paste-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const [name, text] = [$("paste-name").value.trim(), $("paste-text").value];
    attempt(async () => {
      await add(name, (replace) => api.addText(name, text, replace));
      $("paste-text").value = "";
      $("paste").open = false;
    });
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey($("key").value);
    attempt(start);
  });
  $("k").addEventListener("input", () => {
    state.k = scaleFactors()[Number($("k").value)];
    forgetAnswer();
    showWindow();
  });
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.asking) ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask-form").requestSubmit();
  });
  $("stop").addEventListener("click", () => state.asking?.abort());
  for (const id of ["expand", "compare", "question"]) $(id).addEventListener("change", save);
  channel?.addEventListener("message", () => attempt(refresh));
  new ResizeObserver(() => showWindow()).observe($("strip"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showWindow);
}

restore();
listen();
attempt(start);
