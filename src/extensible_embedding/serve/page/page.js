// The page: documents in, their rows in the window, a question, two answers, their sources.
// What the server says goes into the page as text, never as markup.

import { empty, part, showMemory, showNumbers, showSources } from "./answer.js";
import * as api from "./api.js";
import { TALK_ROWS, answerTokens, fill, fillWords, scaleFactors } from "./fill.js";
import { draw } from "./strip.js";

const $ = (id) => document.getElementById(id);
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

const factors = () => scaleFactors(chosen(), state.model);

function showWindow() {
  const slider = $("k");
  const found = factors();
  if (!found.includes(state.k)) state.k = "auto";
  slider.max = String(found.length - 1);
  slider.value = String(found.indexOf(state.k));
  const now = fill(chosen(), state);
  const auto = now.tokens && now.k ? `auto: ${now.k}` : "auto";
  const shown = state.k === "auto" ? auto : String(state.k);
  $("k-shown").textContent = shown;
  slider.setAttribute("aria-valuetext", shown);
  draw($("strip"), now);
  $("fill").textContent = fillWords(now);
  save();
}

// Questions

function forgetAnswer() {
  state.usage = null;
  state.citations = [];
}

// Streams an answer into its place; `seen` is called with what is known so far, as it comes.
async function answerInto(view, body, signal, seen = () => {}) {
  try {
    return await api.chat(body, signal, (text, found) => {
      view.answer.textContent += text;
      if (!found.usage) return;
      showNumbers(view, found);
      seen(found);
    });
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
    forgetAnswer();
    let told = false;
    const found = await answerInto(ours, oursBody(question, documents), signal, (known) => {
      if (told) return; // the prompt stays as it is, and the slider may have moved since
      told = true;
      state.usage = known.usage.extensible;
      showWindow();
    });
    state.citations = found.citations;
    showSources(ours, found.citations, documents, attempt);
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
    max_tokens: answerTokens(state.model.window),
    extensible: {
      contexts: documents.map((each) => each.name),
      k: state.k,
      expand: $("expand").checked ? "auto" : 0,
      cite: true,
    },
  };
}

// The most recent text that fits the same window raw; what does not fit is told by the server.
async function askTruncated(view, question, documents, signal) {
  const tokens = documents.reduce((sum, each) => sum + each.tokens, 0);
  const bytes = documents.reduce((sum, each) => sum + each.text_bytes, 0);
  const { window: size } = state.model;
  let room = size - answerTokens(size) - TALK_ROWS - question.length / 3;
  for (let tries = 0; tries < 6; tries++, room *= 0.85) {
    const text = await endOf(documents, (room * bytes) / tokens);
    const body = {
      model: state.model.id,
      messages: [{ role: "user", content: `${text}\n\n${question}` }],
      max_tokens: answerTokens(size),
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
    state.k = factors()[Number($("k").value)];
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
