// Without scripts all can be read; they add the theme, copying, marking, and the page where one tries a picture.
"use strict";

const framed = window.parent !== window;
if (framed) document.documentElement.dataset.framed = "";

// The theme that Airflow's pages show: of the page around this one, or as its switch was left.
function theme() {
  let name = null;
  try {
    if (framed) name = window.parent.document.documentElement.classList.contains("dark") ? "dark" : "light";
    else name = localStorage.getItem("theme");
  } catch { /* storage may be shut */ }
  if (name === "dark" || name === "light") document.documentElement.dataset.theme = name;
}
theme();
if (framed) {
  new MutationObserver(theme).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
}

async function post(address, body) {
  let answer;
  try {
    answer = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
  } catch {
    throw new Error("Airflow can't be reached: is the network up?");
  }
  if (answer.status === 401) throw new Error("You are logged out: reload the page, and log in.");
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail || `That did not work (${answer.status}).`);
  return content;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Where the connection is not encrypted, there is no clipboard but the old way's.
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

// A mark: form.dataset.mark says of what; body is the picture, where it is not one of the inbox.
function marking(form, body) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = form.querySelector("output"), button = form.querySelector("button");
    const address = new URL(form.dataset.mark, document.baseURI);
    address.searchParams.set("better", form.elements.better.value);
    button.disabled = true;
    output.className = "";
    try {
      await post(address, body());
      output.textContent = "Kept. Thank you.";
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
  span.title = `a word's probability, on average; that of the whole caption is ${caption.probability.toPrecision(2)}`;
  return span;
}

function trying(page, mark) {
  const input = page.querySelector("input"), drop = page.querySelector(".drop"), preview = page.querySelector("img");
  const state = page.querySelector(".state"), found = page.querySelector(".found");
  let picture = null, number = 0;

  function say(text, kind) {
    state.textContent = text;
    state.className = `state ${kind}`;
  }

  function show(answer) {
    const [best, ...others] = answer.captions;
    found.querySelector(".caption").textContent = best.caption;
    found.querySelector("[data-copy]").dataset.copy = best.caption;
    found.querySelector(".alternatives").replaceChildren(...others.map((other) => {
      const item = document.createElement("li"), meter = document.createElement("meter");
      meter.value = Math.exp(other.log_prob);
      item.append(meter, other.caption, " ", probability(other));
      return item;
    }));
    found.querySelector("h2").hidden = !others.length;
    found.querySelector(".version").replaceChildren(probability(best), ` · ${answer.version}`);
    found.hidden = false;
    mark.hidden = false;
    mark.reset();
    mark.querySelector("output").textContent = "";
    mark.dataset.mark = `${page.dataset.marks}?${new URLSearchParams({ wrong: best.caption, version: answer.version })}`;
  }

  async function caption(file) {
    const mine = ++number;
    picture = file;
    found.hidden = mark.hidden = true;
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    if (file.size > page.dataset.megabytes * 1e6) {
      say(`The picture is larger than ${page.dataset.megabytes} MB: scale it down.`, "bad");
      return;
    }
    say("Looking at it …", "working");
    const slow = setTimeout(() => { if (mine === number) say("The model is loading: half a minute …", "working"); }, 3000);
    try {
      const answer = await post(page.dataset.try, file);
      if (mine !== number) return; // another picture was chosen meanwhile
      say("", "");
      show(answer);
    } catch (error) {
      if (mine === number) say(error.message, "bad");
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
    else say("That is no file: save the picture first, or copy and paste it.", "bad");
  });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) caption(event.clipboardData.files[0]); });
  marking(mark, () => picture);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const form of document.querySelectorAll("form[data-mark]")) marking(form, () => null);
  const page = document.querySelector("[data-try]");
  if (page) trying(page, page.querySelector("form.mark"));
  for (const image of document.querySelectorAll("img[data-missing]")) {
    const lost = () => {
      const note = document.createElement("p");
      note.className = "lost";
      note.textContent = image.dataset.missing;
      image.replaceWith(note);
    };
    if (image.complete && !image.naturalWidth) lost();
    else image.addEventListener("error", lost);
  }
});
