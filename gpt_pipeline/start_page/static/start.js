"use strict";
// Asks for the cards every few seconds while the page is seen, and replaces those that have changed.

const EVERY = 3000; // milliseconds
const list = document.getElementById("experiments");
const lost = document.getElementById("lost");
const news = document.getElementById("news");
let timer = 0;

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const answer = await fetch("/start/experiments", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
  timer = setTimeout(look, EVERY);
}

function show(fresh) {
  const cards = [...fresh.body.children];
  const before = [...list.children];
  const same = cards.length === before.length && cards.every((card, i) => card.id === before[i].id);
  if (!same) {
    list.replaceChildren(...cards);
    return;
  }
  cards.forEach((card, i) => {
    if (card.dataset.version !== before[i].dataset.version) replace(before[i], card);
  });
}

function replace(old, card) {
  for (const details of old.querySelectorAll("details")) {
    const fresh = card.querySelector("#" + CSS.escape(details.id));
    if (fresh) fresh.open = details.open;
  }
  tell(old, card);
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  old.replaceWith(card);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function tell(old, card) {
  const state = (each) => each.querySelector("[data-state]").textContent;
  if (state(old) !== state(card)) news.textContent = card.querySelector("h2").textContent + ": " + state(card);
}

document.addEventListener("visibilitychange", look);
timer = setTimeout(look, EVERY);
