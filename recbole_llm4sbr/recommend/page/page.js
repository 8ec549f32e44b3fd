"use strict";
const byId = (id) => document.getElementById(id);
const title = byId("title"), found = byId("found"), session = byId("session"), results = byId("results"), error = byId("error");
let items = [], choices = [], at = -1, models = [], asked = 0, timer = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;   // never as HTML: titles are other people's
  if (className) made.className = className;
  return made;
}

function titled(name, text) {
  const made = element(name, text.length > 120 ? `${text.slice(0, 120)}…` : text);
  made.title = text.slice(0, 500);
  return made;
}

async function answer(path, body) {
  const given = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  const response = await fetch(path, given);
  const said = await response.json();
  if (!response.ok) throw new Error(typeof said.detail === "string" ? said.detail : "The request was refused.");
  return said;
}

function say(text) {
  error.textContent = text || "";
  error.hidden = !text;
}

function showChoices() {
  found.replaceChildren(...choices.map((choice, place) => {
    const line = titled("li", choice.title);
    line.append(" ", element("span", choice.item, "number"));
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", String(place === at));
    line.addEventListener("mousedown", (event) => { event.preventDefault(); add(choice); });
    return line;
  }));
  found.hidden = !choices.length;
  title.setAttribute("aria-expanded", String(!found.hidden));
}

async function look() {
  const text = title.value.trim();
  choices = text ? await answer(`items?q=${encodeURIComponent(text)}`).catch(() => []) : [];
  if (text !== title.value.trim()) return;
  at = choices.length ? 0 : -1;
  showChoices();
}

function add(choice) {
  items.push(choice);
  title.value = "";
  choices = [];
  showChoices();
  show();
}

function show() {
  session.replaceChildren(...items.map((item, place) => {
    const chip = titled("li", item.title);
    const remove = element("button", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `remove ${item.title.slice(0, 120)}`);
    remove.addEventListener("click", () => { items.splice(place, 1); show(); });
    chip.append(remove);
    return chip;
  }));
  byId("empty").hidden = items.length > 0;
  byId("clear").hidden = !items.length;
  recommend();
}

function list(kind, rows, number) {
  const made = element(kind);
  made.append(...rows.map((row) => {
    const line = titled("li", row.title);
    line.append(" ", element("span", row[number].toFixed(3), "number"));
    return line;
  }));
  return made;
}

function card(model, result) {
  const made = element("article");
  made.append(element("h2", model));
  made.append(list("ol", result.items, "score"));
  for (const [view, near] of Object.entries(result.localized)) {
    if (!near.length) continue;
    made.append(element("h3", `Intent, ${view} view (${result.intents})`), list("ul", near, "similarity"));
  }
  return made;
}

async function recommend() {
  const number = ++asked;
  say("");
  if (!items.length) { results.replaceChildren(); return; }
  const sessions = [items.map((item) => item.item)];
  try {
    const answers = await Promise.all(models.map((model) => answer("recommend", { sessions, model, topn: 10 })));
    if (number === asked) results.replaceChildren(...answers.map((each) => card(each.model, each.results[0])));
  } catch (problem) {
    if (number === asked) { results.replaceChildren(); say(problem.message); }
  }
}

title.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(look, 120); });
title.addEventListener("blur", () => { choices = []; showChoices(); });
title.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const step = event.key === "ArrowDown" ? 1 : choices.length - 1;
    at = choices.length ? (at + step) % choices.length : -1;
    showChoices();
  } else if (event.key === "Escape") {
    choices = [];
    showChoices();
  }
});
byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(timer);
  if (!choices.length) await look();
  if (at >= 0) add(choices[at]);
  else if (title.value.trim()) say(`No title holds “${title.value.trim()}”.`);
});
byId("clear").addEventListener("click", () => { items = []; show(); });
answer("health").then((said) => {
  models = said.models;
  byId("about").textContent = `${said.items.toLocaleString()} items, ${models.length === 1 ? "one model" : `${models.length} models`}.`;
}).catch((problem) => say(problem.message));
