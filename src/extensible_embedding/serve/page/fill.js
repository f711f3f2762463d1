// What fills the reader's window: before a question, while a text becomes rows, after an answer.
// In: the chosen documents, the model, what is being embedded, what was read. Out: numbers, and the
// same in words. Knows nothing of the page.

export const NEW_TOKENS = 256;
export const TALK_ROWS = 64; // of chat template and question, until the server says how many

// Rows that documents take at k; an estimate, since each chunk is rounded up.
export function rowsAt(documents, k) {
  return documents.reduce((sum, each) => sum + Math.ceil(each.tokens / k), 0);
}

// Tokens per row that can be chosen: what documents are kept at, and its doubles.
export function scaleFactors(documents, model) {
  const kept = Math.max(1, ...documents.map((each) => each.k));
  const most = model?.max_k ?? 64;
  const found = ["auto", 1];
  for (let k = kept > 1 ? kept : 2; k <= most; k *= 2) found.push(k);
  return found;
}

export const answerTokens = (window) => Math.max(1, Math.min(NEW_TOKENS, Math.floor(window / 4)));

export function fill(documents, { model, embedded, usage, citations, k: asked }) {
  const window = model?.window ?? 1;
  const tokens = documents.reduce((sum, each) => sum + each.tokens, 0);
  const chunk = model?.chunk_tokens ?? 1;
  const empty = { window, chunk, tokens, rows: 0, raw: 0, talk: 0, spans: [] };
  if (embedded) {
    const { done, total } = embedded;
    return { ...empty, tokens: total, rows: Math.ceil(done / model.k), done, made: model.k };
  }
  if (usage) {
    const { rows, context_tokens: of, span_tokens: raw, k } = usage;
    const inRows = Math.min(rows - raw, Math.ceil(of / k));
    const talk = rows - inRows - raw;
    return { ...empty, rows: inRows, raw, talk, spans: spans(documents, tokens, citations), k };
  }
  const room = window - answerTokens(window) - TALK_ROWS;
  const k = asked === "auto" ? smallest(documents, model, room) : asked;
  const talk = tokens ? TALK_ROWS + answerTokens(window) : 0;
  return { ...empty, rows: rowsAt(documents, k), talk, k };
}

export function fillWords({ tokens, rows, raw, talk, window, done, made }) {
  if (!tokens) return "Choose a document.";
  if (done !== undefined) {
    return (
      `${done.toLocaleString()} of ${tokens.toLocaleString()} tokens are in ` +
      `${rows.toLocaleString()} rows, ${made} tokens each.`
    );
  }
  const taken = rows + raw + talk;
  const share = Math.round((100 * taken) / window);
  if (taken > window) {
    return `At this k it takes ${share} percent of the window: choose more tokens per row.`;
  }
  return (
    `${tokens.toLocaleString()} tokens in ${(rows + raw).toLocaleString()} rows; ` +
    `${share} percent of the window is taken.`
  );
}

function smallest(documents, model, room) {
  const factors = scaleFactors(documents, model).slice(1);
  return factors.find((k) => rowsAt(documents, k) <= room) ?? factors[factors.length - 1];
}

// Where raw passages stand, as parts of all the text.
function spans(documents, tokens, citations) {
  const starts = [];
  let before = 0;
  for (const each of documents) {
    starts.push(before);
    before += each.tokens;
  }
  return citations
    .filter((each) => each.raw && documents[each.context])
    .map((each) => {
      const { tokens: own, text_bytes: bytes } = documents[each.context];
      const place = (byte) => (starts[each.context] + (byte / bytes) * own) / tokens;
      return [place(each.start_byte), place(each.end_byte)];
    });
}
