// Every page can be read without scripts. They add the theme, copying, corrections, and captions of uploads.
"use strict";

const framed = window.parent !== window;
if (framed) document.documentElement.dataset.framed = "";

// Follow Airflow's theme: that of the page around this one or, in a tab of its own, the stored one.
function applyTheme() {
  let name = null;
  try {
    if (framed) name = window.parent.document.documentElement.classList.contains("dark") ? "dark" : "light";
    else name = localStorage.getItem("theme");
  } catch { /* the browser may block storage */ }
  if (name === "dark" || name === "light") document.documentElement.dataset.theme = name;
}
applyTheme();
if (framed) {
  new MutationObserver(applyTheme).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
}

async function post(url, body) {
  let response;
  try {
    response = await fetch(url, { method: "POST", body, headers: { Accept: "application/json" } });
  } catch {
    throw new Error("Airflow is not reachable: check your network connection.");
  }
  if (response.status === 401) throw new Error("You are logged out: reload the page and log in again.");
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.detail || `The request failed with status ${response.status}.`);
  return content;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard API needs an encrypted connection; this older way does not.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await copy(button.dataset.copy);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

// form.dataset.url names the caption that is corrected; body() is the picture, or null where it is in the inbox.
function enableCorrections(form, body) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = form.querySelector("output"), button = form.querySelector("button");
    const url = new URL(form.dataset.url, document.baseURI);
    url.searchParams.set("caption", form.elements.caption.value);
    button.disabled = true;
    output.className = "";
    try {
      await post(url, body());
      output.textContent = "Saved. Thank you.";
    } catch (error) {
      output.className = "bad";
      output.textContent = error.message;
    }
    button.disabled = false;
  });
}

function probability(caption) {
  const span = document.createElement("span");
  span.className = "probability";
  span.textContent = `p ${Math.exp(caption.log_prob).toFixed(2)}`;
  span.title = `mean probability of a word; the probability of the whole caption is ${caption.probability.toPrecision(2)}`;
  return span;
}

function enableUploads(page, correction) {
  const input = page.querySelector("input"), drop = page.querySelector(".drop"), preview = page.querySelector("img");
  const state = page.querySelector(".state"), result = page.querySelector(".result");
  let picture = null, uploads = 0;

  function setState(text, kind) {
    state.textContent = text;
    state.className = `state ${kind}`;
  }

  function show(answer) {
    const [best, ...others] = answer.captions;
    result.querySelector(".caption").textContent = best.caption;
    result.querySelector("[data-copy]").dataset.copy = best.caption;
    result.querySelector(".alternatives").replaceChildren(...others.map((other) => {
      const item = document.createElement("li"), meter = document.createElement("meter");
      meter.value = Math.exp(other.log_prob);
      item.append(meter, other.caption, " ", probability(other));
      return item;
    }));
    result.querySelector("h2").hidden = !others.length;
    result.querySelector(".version").replaceChildren(probability(best), ` · ${answer.version}`);
    result.hidden = false;
    correction.hidden = false;
    correction.reset();
    correction.querySelector("output").textContent = "";
    const query = new URLSearchParams({ model_caption: best.caption, model_version: answer.version });
    correction.dataset.url = `${page.dataset.correctionsUrl}?${query}`;
  }

  async function caption(file) {
    const upload = ++uploads;
    picture = file;
    result.hidden = correction.hidden = true;
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    if (file.size > page.dataset.megabytes * 1e6) {
      setState(`The picture is larger than ${page.dataset.megabytes} MB: scale it down.`, "bad");
      return;
    }
    setState("Captioning …", "working");
    const slow = setTimeout(() => {
      if (upload === uploads) setState("Loading the model, which takes half a minute …", "working");
    }, 3000);
    try {
      const answer = await post(page.dataset.captionUrl, file);
      if (upload !== uploads) return; // the user has chosen another picture in the meantime
      setState("", "");
      show(answer);
    } catch (error) {
      if (upload === uploads) setState(error.message, "bad");
    } finally {
      clearTimeout(slow);
    }
  }

  preview.addEventListener("error", () => { preview.hidden = true; });
  input.addEventListener("change", () => { if (input.files.length) caption(input.files[0]); input.value = ""; });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) caption(event.dataTransfer.files[0]);
    else setState("That is not a file: save the picture first, or copy and paste it.", "bad");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) caption(event.clipboardData.files[0]);
  });
  enableCorrections(correction, () => picture);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const form of document.querySelectorAll("form[data-url]")) enableCorrections(form, () => null);
  const page = document.querySelector("[data-caption-url]");
  if (page) enableUploads(page, page.querySelector("form.correction"));
  for (const image of document.querySelectorAll("img[data-missing]")) {
    const showMissing = () => {
      const text = document.createElement("p");
      text.className = "lost";
      text.textContent = image.dataset.missing;
      image.replaceWith(text);
    };
    if (image.complete && !image.naturalWidth) showMissing();
    else image.addEventListener("error", showMissing);
  }
});
