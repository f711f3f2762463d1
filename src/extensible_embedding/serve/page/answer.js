// The place of an answer on the page: its text, its numbers as they come, its sources.
// In: what the server says. Out: elements, with that as text, never as markup.

import * as api from "./api.js";

const AROUND_BYTES = 4000; // of text that is shown on either side of a source
const $ = (id) => document.getElementById(id);

export function part(id) {
  const article = $(id);
  const found = (kind) => article.querySelector(kind);
  const [answer, numbers, sources] = [".answer", ".numbers", ".sources"].map(found);
  return { article, answer, numbers, sources };
}

export function empty(view) {
  view.answer.textContent = "";
  view.answer.classList.add("waiting");
  view.numbers.replaceChildren();
  view.sources?.replaceChildren();
}

// Shows a number, in the place that it has.
export function number(view, name, value) {
  const there = [...view.numbers.children].find((line) => line.firstChild.textContent === name);
  if (there) {
    there.lastChild.textContent = value;
    return;
  }
  const line = document.createElement("div");
  const term = Object.assign(document.createElement("dt"), { textContent: name });
  const text = Object.assign(document.createElement("dd"), { textContent: value });
  line.append(term, text);
  view.numbers.append(line);
}

// What is known so far: of a prompt at once, of an answer as it comes.
export function showNumbers(view, { usage, firstMs, lastMs }) {
  number(view, "tokens read", usage.prompt_tokens.toLocaleString());
  number(view, "rows", usage.extensible.rows.toLocaleString());
  number(view, "k", String(usage.extensible.k));
  if (firstMs === null) return;
  number(view, "to first token", `${(firstMs / 1000).toFixed(2)} s`);
  number(view, "tokens written", usage.completion_tokens.toLocaleString());
  const rest = (lastMs - firstMs) / 1000;
  const speed = rest > 0 ? (usage.completion_tokens - 1) / rest : 0;
  if (speed > 0) number(view, "tokens a second", speed.toFixed(1));
}

export async function showMemory(view) {
  const found = /^process_resident_memory_bytes (\S+)$/m.exec(await api.metrics());
  if (!found) return;
  number(view, "server memory", `${Math.round(Number(found[1]) / 1e6).toLocaleString()} MB`);
}

// Lists sources; `attempt` runs what is done at a click, and tells of its errors.
export function showSources(view, citations, documents, attempt) {
  view.sources.replaceChildren(
    ...citations.map((each) => {
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
      const show = () => showText(documents[each.context], each);
      button.addEventListener("click", () => attempt(show));
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
