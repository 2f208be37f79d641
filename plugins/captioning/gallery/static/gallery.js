// Every page can be read without scripts. They add the theme, copying, corrections, keys, and captions of uploads.
"use strict";

document.documentElement.dataset.scripts = "";
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

// A frame may not leave for Airflow's own pages, but the page around it can be asked to go there.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.outside");
  if (!framed || !link) return;
  event.preventDefault();
  const outside = window.parent.document.createElement("a");
  outside.href = link.href;
  outside.click();
});

// The browser may block storage.
function remember(area, name, value) {
  try { window[area].setItem(name, value); } catch { /* it is forgotten */ }
}

function remembered(area, name) {
  try { return window[area].getItem(name); } catch { return null; }
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

// What a person says goes into the body as a line of JSON, followed by the picture if it is an upload.
const uploads = new WeakMap(); // from a form to the picture that it is about

const MANY = 20; // pictures that are captioned at a time

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form.correction");
  if (!form) return;
  event.preventDefault();
  // Each upload has an output of its own; other pages have one.
  const output = (form.closest(".results > li") ?? document).querySelector("output.saved");
  const buttons = document.querySelectorAll("form.correction button");
  const said = JSON.stringify({ ...Object.fromEntries(new FormData(form)), action: event.submitter.value });
  for (const button of buttons) button.disabled = true;
  output.textContent = "";
  output.className = "saved";
  try {
    const { summary } = await post(form.dataset.url, new Blob([said, "\n", uploads.get(form) ?? ""]));
    if (form.dataset.next) {
      remember("sessionStorage", "saved", summary); // the next page says it
      window.location = form.dataset.next;
      return;
    }
    output.textContent = summary;
    if (form.dataset.shows) {
      await refresh(form.dataset.shows).catch(() => { output.textContent = `${summary} Reload the page to see it.`; });
    }
  } catch (error) {
    output.className = "saved bad";
    output.textContent = error.message;
  }
  for (const button of buttons) button.disabled = false;
});

// Show what has become of parts of the page.
async function refresh(selector) {
  const response = await fetch(window.location);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const fresh of page.querySelectorAll(selector)) document.getElementById(fresh.id).replaceWith(fresh);
  labelCells();
  document.querySelector(selector).focus({ preventScroll: true }); // the button that had the focus is gone
}

// How sure the model is of a caption, if it knows.
function sure(caption) {
  const span = document.createElement("span");
  span.className = "sure";
  if (caption.novel) {
    span.classList.add("novel");
    span.textContent = "unlike the photographs it learned from";
  }
  else if (caption.confidence !== null) span.textContent = `${Math.round(100 * caption.confidence)} % sure`;
  return span;
}

// Captions several pictures, one after the other; each has a place in the list, with a correction of its own.
function enableUploads(page) {
  const input = page.querySelector("input"), drop = page.querySelector(".drop"), list = page.querySelector(".results");
  const state = page.querySelector(".state"), model = page.querySelector("select");
  const sample = page.querySelector("[data-sample]"), template = page.querySelector("template");
  let last = Promise.resolve(); // the picture that was chosen last has its answer

  function setState(element, text, kind) {
    element.textContent = text;
    element.className = `state ${kind}`;
  }

  function show(item, answer, picture) {
    const [best, ...others] = answer.captions, result = item.querySelector(".result");
    result.querySelector(".caption").textContent = best.caption;
    result.querySelector("[data-copy]").dataset.copy = best.caption;
    result.querySelector(".alternatives").replaceChildren(...others.map((other) => {
      const alternative = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.className = "quiet";
      button.textContent = "Put into the field";
      button.ariaLabel = `Put into the field: ${other.caption}`;
      button.dataset.suggestion = other.caption;
      alternative.append(other.caption, " ", button);
      return alternative;
    }));
    result.querySelector("details").hidden = !others.length;
    result.querySelector(".version").replaceChildren(sure(best), `${answer.name} (${answer.version})`);
    result.hidden = false;
    const correction = result.querySelector("form");
    correction.elements.caption.value = correction.elements.model_caption.value = best.caption;
    correction.elements.model_version.value = answer.version;
    uploads.set(correction, picture);
  }

  async function caption(item, file, version) {
    const itsState = item.querySelector(".state");
    setState(itsState, "Captioning …", "working");
    const slow = setTimeout(() => setState(itsState, "Loading the model …", "working"), 3000);
    try {
      const answer = await post(`${page.dataset.captionUrl}?${new URLSearchParams({ version })}`, file);
      setState(itsState, "", "");
      show(item, answer, file);
    } catch (error) {
      setState(itsState, `${file.name}: ${error.message}`, "bad");
    } finally {
      clearTimeout(slow);
    }
  }

  function add(files) {
    setState(state, files.length > MANY ? `These are the first ${MANY} of ${files.length} pictures.` : "", "");
    const items = [...files].slice(0, MANY).map((file) => {
      const item = template.content.cloneNode(true).firstElementChild, image = item.querySelector("img");
      image.src = URL.createObjectURL(file);
      image.alt = file.name;
      image.addEventListener("error", () => { image.hidden = true; });
      if (file.size > page.dataset.megabytes * 1e6) {
        setState(item.querySelector(".state"), `The picture is larger than ${page.dataset.megabytes} MB: scale it down.`, "bad");
      } else {
        setState(item.querySelector(".state"), "Waiting …", "working");
        const version = model.value;
        last = last.then(() => caption(item, file, version));
      }
      return item;
    });
    list.prepend(...items);
  }

  input.addEventListener("change", () => { if (input.files.length) add(input.files); input.value = ""; });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) add(event.dataTransfer.files);
    else setState(state, "That is not a file: save the picture first, or copy and paste it.", "bad");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files);
  });
  sample.addEventListener("click", async () => {
    sample.disabled = true;
    try {
      const response = await fetch(sample.dataset.sample);
      if (!response.ok) throw new Error(`There is no sample at the moment (status ${response.status}).`);
      add([new File([await response.blob()], "a sample picture", { type: "image/jpeg" })]);
    } catch (error) {
      setState(state, error.message, "bad");
    }
    sample.disabled = false;
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const page = document.querySelector("[data-caption-url]");
  if (page) enableUploads(page);
});

// What a key follows, presses or goes into, if it is on the page.
const keys = {
  "/": "form.filters [name=words]",
  Escape: ".around .back[href]",
  ArrowLeft: ".around [rel=prev][href]",
  ArrowRight: ".around [rel=next][href]",
  e: "#counting .correction [name=caption]",
  z: ".enlarge",
  y: ".review [value=confirmed]",
  s: ".review .skipping",
  n: ".review [rel=next]",
  c: ".review .correction [name=caption]",
};

function pressKey(event) {
  const field = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (field && event.key === "Escape") field.blur();
  if (field || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  // A dialog has keys of its own, and readers may switch those of the review page off.
  if (document.querySelector("dialog[open], .keys input:not(:checked)")) return;
  const selector = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const target = selector && document.querySelector(selector);
  if (!target) return;
  event.preventDefault();
  if (target.matches("input")) target.select();
  else target.click();
}

function enableReview(page) {
  const box = page.querySelector(".keys input");
  box.checked = remembered("localStorage", "captions-keys") !== "off";
  box.addEventListener("change", () => remember("localStorage", "captions-keys", box.checked ? "on" : "off"));
  if (framed) window.focus(); // after a reload, the page around this one would get the keys
}

// What the page before has saved.
function showSaved() {
  const output = document.querySelector("output.saved");
  if (!output) return;
  output.textContent = remembered("sessionStorage", "saved");
  remember("sessionStorage", "saved", "");
}

// A choice applies at once, and keeps the focus. Text waits for Enter or the button: who leaves a field is not done yet.
function enableFilters(form) {
  const name = remembered("sessionStorage", "captions-filter"), fold = form.querySelector(".fold");
  remember("sessionStorage", "captions-filter", "");
  if (name && form.elements[name]) form.elements[name].focus();
  form.addEventListener("change", (event) => {
    if (!event.target.matches("select")) return;
    remember("sessionStorage", "captions-filter", event.target.name);
    form.requestSubmit();
  });
  fold.addEventListener("click", () => {
    fold.setAttribute("aria-expanded", fold.getAttribute("aria-expanded") === "false");
  });
  // A picture's own page leads to the others of these captions, and back.
  const pictures = [...document.querySelectorAll(".card > a")].map((link) => link.href);
  const [previous, next] = ["prev", "next"].map((rel) => document.querySelector(`.paging [rel=${rel}]`)?.href);
  const page = { address: location.href.split("#")[0], pictures, previous, next };
  remember("sessionStorage", "captions-page", JSON.stringify(page));
  // "Next" on the last picture of the page before this one, or "Previous" on the first of the one after it, leads here.
  const picture = { "#first": pictures[0], "#last": pictures.at(-1) }[location.hash];
  if (picture) location.replace(picture);
}

function enableNeighbours(nav) {
  let page = null;
  try { page = JSON.parse(remembered("sessionStorage", "captions-page")); } catch { /* there is none */ }
  // A list of captions by models may have a picture several times.
  const pictures = page ? [...new Set(page.pictures)] : [], place = pictures.indexOf(location.href);
  if (place < 0) return;
  const [back, previous, next] = nav.querySelectorAll("a");
  back.href = `${page.address}#card-${page.pictures.indexOf(location.href)}`;
  if (place > 0) previous.href = pictures[place - 1];
  else if (page.previous) previous.href = `${page.previous}#last`;
  if (place < pictures.length - 1) next.href = pictures[place + 1];
  else if (page.next) next.href = `${page.next}#first`;
  nav.hidden = false;
}

// A click on the picture, or Enter, shows it as large as the window; a click or Esc ends that.
document.addEventListener("click", (event) => {
  const image = event.target.closest(".enlarge")?.querySelector("img");
  if (!image || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const dialog = document.createElement("dialog"), close = document.createElement("button");
  dialog.className = "enlarged";
  dialog.ariaLabel = "The picture, enlarged";
  close.textContent = "Close";
  dialog.append(image.cloneNode(), close);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
});

// Another caption goes into the field for a better one.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-suggestion]");
  const field = button && (button.closest(".result") ?? document).querySelector(".correction [name=caption]");
  if (!field) return;
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.value = button.dataset.suggestion;
  field.focus();
});

// A part of another page is shown on this one, in place of the link to it.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-part]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const state = document.createElement("p");
  state.className = "state working";
  state.role = "status";
  state.textContent = "Searching …";
  link.replaceWith(state);
  try {
    const response = await fetch(link.href, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const part = page.getElementById(link.dataset.part);
    if (!part) throw new Error(page.querySelector("main")?.textContent.trim() || "Airflow is not reachable.");
    part.tabIndex = -1;
    document.querySelector("main").append(part);
    state.remove();
    part.focus();
  } catch (error) {
    state.className = "state bad";
    state.textContent = error.message;
  }
});

// The heading of a column sorts the rows by it: numbers from the largest, texts from A; again, the other way round. A cell
// with data-sort is sorted by that.
function enableSorting(table) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headings.forEach((heading, column) => {
    if (heading.classList.contains("plain")) return;
    const button = document.createElement("button"), isNumber = heading.classList.contains("number");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending", second = isNumber ? "ascending" : "descending";
      const order = heading.ariaSort === first ? second : first;
      for (const each of headings) each.ariaSort = null;
      heading.ariaSort = order;
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const compare = isNumber ? (a, b) => parseFloat(a) - parseFloat(b) : (a, b) => a.localeCompare(b);
      const [known, unknown] = [(row) => value(row), (row) => !value(row)].map((is) => [...body.rows].filter(is));
      known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(value(a), value(b)));
      body.append(...known, ...unknown);
    });
  });
}

// Where there is little room, each row is a card, in which each cell has the heading of its column before it.
function labelCells() {
  for (const table of document.querySelectorAll(".rows > table")) {
    const names = [...table.tHead.rows[0].cells].map((heading) => heading.textContent);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, column) => {
        cell.dataset.label = names[column];
        cell.classList.toggle("blank", !cell.children.length && !cell.textContent.trim());
      });
    }
  }
}

async function showCount(span) {
  const response = await fetch(span.dataset.url, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const { left } = await response.json();
  span.textContent = left ? left.toLocaleString("en") : "";
  span.hidden = !left;
}

document.addEventListener("DOMContentLoaded", () => {
  const page = document.querySelector(".review");
  if (page) enableReview(page);
  showSaved();
  const filters = document.querySelector("form.filters"), around = document.querySelector(".around");
  if (filters) enableFilters(filters);
  if (around) enableNeighbours(around);
  labelCells();
  document.addEventListener("keydown", pressKey);
  document.querySelectorAll("table.sortable").forEach(enableSorting);
  showCount(document.querySelector(".count")).catch(() => { /* the link works without it */ });
});

// Errors of pictures do not bubble. This script runs before any picture of the page is loaded.
document.addEventListener("error", async (event) => {
  const image = event.target;
  if (!image.dataset.missing) return;
  const text = document.createElement("p");
  text.className = "lost";
  text.textContent = image.dataset.missing;
  (image.closest(".enlarge") ?? image).replaceWith(text);
  // The event does not say why there is no picture; its address does.
  try {
    const response = await fetch(image.src, { headers: { Accept: "application/json" } });
    text.textContent = (await response.json()).detail || text.textContent;
  } catch { /* the text stays */ }
}, true);
