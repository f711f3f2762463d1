// The strip: above the text in chunks, below the reader's window and what fills it.
// In: numbers. Out: a drawing on a canvas, and the same in words.

const PAD = 2;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function draw(canvas, state) {
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = colour("quiet");
  const band = (height - 3 * 18) / 2;
  pen.fillText(state.tokens ? `text: ${state.tokens.toLocaleString()} tokens` : "text", 0, 12);
  drawText(pen, state, width, 18, band);
  drawFunnel(pen, state, width, 18 + band, 18);
  drawWindow(pen, state, width, 36 + band, band);
  pen.fillStyle = colour("quiet");
  pen.fillText(`window: ${state.window.toLocaleString()} rows`, 0, height - 4);
  canvas.setAttribute("aria-label", words(state));
}

function drawText(pen, state, width, top, height) {
  pen.fillStyle = colour("free");
  pen.fillRect(0, top, width, height);
  if (!state.tokens) return;
  const done = (state.done ?? state.tokens) / state.tokens;
  const chunks = Math.max(1, Math.ceil(state.tokens / state.chunk));
  const shown = Math.min(chunks, Math.floor(width / 3));
  const step = width / shown;
  for (let number = 0; number < shown; number++) {
    const ready = (number + 1) / shown <= done;
    pen.fillStyle = colour(ready ? "rows" : "quiet");
    pen.globalAlpha = ready ? 0.75 : 0.35;
    pen.fillRect(number * step, top + PAD, Math.max(1, step - 1), height - 2 * PAD);
  }
  pen.globalAlpha = 1;
  pen.fillStyle = colour("raw");
  for (const [start, end] of state.spans) {
    pen.fillRect(start * width, top, Math.max(2, (end - start) * width), height);
  }
}

function drawFunnel(pen, state, width, top, height) {
  if (!state.tokens) return;
  const share = Math.min(1, (state.rows + state.raw) / state.window);
  pen.fillStyle = colour("rows");
  pen.globalAlpha = 0.15;
  pen.beginPath();
  pen.moveTo(0, top);
  pen.lineTo(width, top);
  pen.lineTo(share * width, top + height);
  pen.lineTo(0, top + height);
  pen.fill();
  pen.globalAlpha = 1;
}

function drawWindow(pen, state, width, top, height) {
  pen.fillStyle = colour("free");
  pen.fillRect(0, top, width, height);
  let left = 0;
  for (const [name, rows] of [["rows", state.rows], ["raw", state.raw], ["talk", state.talk]]) {
    const size = Math.min(width - left, (rows / state.window) * width);
    pen.fillStyle = colour(name);
    pen.fillRect(left, top, size, height);
    left += size;
  }
}

function words(state) {
  if (!state.tokens) return "Nothing is chosen.";
  const taken = state.rows + state.raw + state.talk;
  const done = state.done ?? state.tokens;
  return (
    (done < state.tokens ? `${done.toLocaleString()} of ` : "") +
    `${state.tokens.toLocaleString()} tokens of text stand in ${state.rows.toLocaleString()} rows` +
    (state.raw ? ` and ${state.raw.toLocaleString()} tokens read raw` : "") +
    `; ${Math.round((100 * taken) / state.window)} percent of the window's ` +
    `${state.window.toLocaleString()} rows are taken.`
  );
}
