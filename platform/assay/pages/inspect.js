// Sends images to the server that served this page, and draws what it answers.
"use strict";
const SIDE = 900; // longer side of a picture on the page (pixels)
const COLOURS = [[255, 152, 0], [216, 27, 96], [38, 166, 154], [94, 53, 177]];
const get = (id) => document.getElementById(id);
let models = {};

function say(text, bad = false) {
  get("said").textContent = text;
  get("said").className = bad ? "bad" : "";
}

function make(name, text = "", fields = {}) {
  const made = Object.assign(document.createElement(name), fields);
  if (text !== "") made.textContent = text;
  return made;
}

async function fetched(path, options = {}) {
  const reply = await fetch(path, options);
  if (reply.ok) return reply;
  let text = reply.statusText;
  try { text = (await reply.json()).error; } catch { /* not ours: the status will do */ }
  if (reply.status === 401) location.assign("/login");
  throw new Error(text);
}

async function loadModels() {
  models = await (await fetched("/v1/models")).json();
  const select = get("task");
  for (const task of Object.keys(models)) select.append(make("option", task, { value: task }));
  offered();
}

function offered() {
  const has = "challenger" in (models[get("task").value] ?? {});
  for (const option of get("alias").options) option.disabled = !has && option.value !== "champion";
  if (!has) get("alias").value = "champion";
}

async function ask(images) {
  if (!images.length) return;
  const task = get("task").value;
  const chosen = get("alias").value;
  const aliases = chosen === "both" ? ["champion", "challenger"] : [chosen];
  say("Asking…");
  get("answers").replaceChildren();
  try {
    const replies = [];
    for (const alias of aliases) {
      const form = new FormData();
      for (const image of images) form.append("image", image, "image");
      const began = performance.now();
      const path = `/v1/${encodeURIComponent(task)}?model=${alias}`;
      const reply = await (await fetched(path, { method: "POST", body: form })).json();
      replies.push([reply, performance.now() - began]);
    }
    const pictures = await Promise.all(images.map((one) => createImageBitmap(one).catch(() => null)));
    for (const [reply, spent] of replies) get("answers").append(await shown(reply, spent, pictures));
    say(replies.map(([reply]) => `${reply.model.alias}: ${summary(reply)}`).join(". "));
    await loadUncertain();
  } catch (error) {
    say(error.message, true);
  }
}

function summary(reply) {
  const vector = reply.views[0]?.embedding;
  if (vector) return `a vector of ${vector.length} numbers`;
  if (!reply.answer) {
    const count = reply.views.reduce((sum, view) => sum + view.defects.length, 0);
    return count === 1 ? "1 defect" : `${count} defects`;
  }
  const share = (100 * reply.answer.probs[reply.answer.label]).toFixed(1);
  return `${reply.answer.label}, ${share} %${reply.answer.rejected ? ", not sure" : ""}`;
}

async function shown(reply, spent, pictures) {
  const section = make("section", "", { className: "model" });
  section.append(make("h2", `${reply.model.alias} ${reply.model.version}`));
  section.append(make("p", summary(reply), { className: "label" }));
  if (reply.answer?.rejected) {
    const doubt = `A person should look: it may be ${reply.answer.set.join(" or ")}.`;
    section.append(make("p", doubt, { className: "banner" }));
  }
  if (reply.answer) section.append(table(reply.answer.probs));
  const views = make("div", "", { className: "views" });
  for (const [i, view] of reply.views.entries()) views.append(await drawn(view, pictures[i], i + 1));
  section.append(views);
  const kind = `${reply.model.variant}; answered in ${reply.milliseconds.toFixed(0)} ms, with the way there and back ${spent.toFixed(0)} ms`;
  section.append(make("p", kind, { className: "note" }), card(reply.model));
  return section;
}

function table(probs) {
  const body = make("table");
  body.append(make("caption", "Calibrated probabilities", { className: "note" }));
  for (const [name, value] of Object.entries(probs).sort((a, b) => b[1] - a[1])) {
    const row = make("tr");
    const bar = make("td");
    bar.append(make("meter", "", { value, ariaHidden: "true" }));
    row.append(make("th", name, { scope: "row" }), bar, make("td", value.toFixed(3)));
    body.append(row);
  }
  return body;
}

async function drawn(view, picture, number) {
  const figure = make("figure");
  const scale = Math.min(1, SIDE / Math.max(view.width, view.height));
  const canvas = make("canvas", "", {
    width: Math.max(1, Math.round(view.width * scale)),
    height: Math.max(1, Math.round(view.height * scale)),
  });
  const said = view.mask
    ? view.defects.slice(0, 5).map((one) => `${one.label}, ${one.area_px} pixels`).join("; ") || "no defect"
    : `looked at ${view.patches.length === 1 ? "1 patch" : `${view.patches.length} patches`}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Image ${number}: ${said}`);
  const pen = canvas.getContext("2d");
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (view.mask) await paint(pen, view.mask.png, canvas);
  const most = Math.max(...view.patches.map((patch) => patch.score), 1e-9);
  for (const { box: [x0, y0, x1, y1], score } of view.patches) {
    for (const [colour, extra] of [["#000", 2], ["rgb(255 152 0)", 0]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = 1.5 + 3 * score / most + extra;
      pen.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
    }
  }
  figure.append(canvas, make("figcaption", `${view.width} x ${view.height}: ${said}`, { className: "note" }));
  return figure;
}

async function paint(pen, png, canvas) {
  const bytes = Uint8Array.from(atob(png), (one) => one.charCodeAt(0));
  const whole = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const layer = new OffscreenCanvas(whole.width, whole.height);
  const inner = layer.getContext("2d");
  inner.drawImage(whole, 0, 0);
  const pixels = inner.getImageData(0, 0, whole.width, whole.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = pixels.data[i]; // class i has the value i + 1
    pixels.data.set(value ? [...COLOURS[(value - 1) % COLOURS.length], 170] : [0, 0, 0, 0], i);
  }
  inner.putImageData(pixels, 0, 0);
  pen.drawImage(layer, 0, 0, canvas.width, canvas.height);
}

function card(model) {
  const known = models[model.task]?.[model.alias];
  const details = make("details");
  details.append(make("summary", "Model card"));
  if (!known) return details;
  const list = make("dl");
  const lines = [["run", known.run], ["data", known.data], ["since", new Date(1000 * known.since).toISOString().slice(0, 16).replace("T", " ") + " UTC"], ["classes", known.classes.join(", ")]];
  for (const [set, own] of Object.entries(known.metrics)) {
    for (const [name, one] of Object.entries(own.metrics).slice(0, 4)) {
      if (one) lines.push([`${set} ${name.replaceAll("_", " ")}`, `${one.value.toFixed(3)} [${one.low.toFixed(3)}, ${one.high.toFixed(3)}], n = ${own.num}`]);
    }
  }
  for (const [name, value] of lines) list.append(make("dt", name), make("dd", value));
  details.append(list);
  return details;
}

async function loadUncertain() {
  const kept = await (await fetched("/page/uncertain")).json();
  get("uncertain").hidden = !kept.on;
  const items = kept.requests.map((one) => {
    const item = make("li");
    const text = `${one.task}: ${one.label}, ${(100 * one.prob).toFixed(1)} %`;
    item.append(make("img", "", { src: `data:image/jpeg;base64,${one.thumb}`, alt: "" }), make("span", text, { className: "note" }));
    return item;
  });
  get("uncertain").querySelector("ul").replaceChildren(...items);
}

const drop = get("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask([...event.dataTransfer.files]);
  });
}
get("files").addEventListener("change", () => ask([...get("files").files]));
get("task").addEventListener("change", offered);
get("ask").addEventListener("submit", (event) => event.preventDefault());
get("again").addEventListener("click", () => loadUncertain().catch((error) => say(error.message, true)));
get("sample").addEventListener("click", async () => {
  get("files").value = "";
  try {
    ask([await (await fetched(`/page/sample/${encodeURIComponent(get("task").value)}`)).blob()]);
  } catch (error) {
    say(error.message, true);
  }
});
Promise.all([loadModels(), loadUncertain()]).catch((error) => say(error.message, true));
