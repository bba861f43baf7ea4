"use strict";
// Asks for the cards every few seconds while the page is seen, and replaces those that have changed.

const EVERY = 3000; // milliseconds
const list = document.getElementById("page-experiments");
const lost = document.getElementById("page-lost");
const news = document.getElementById("page-news");
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
  const focused = list.contains(document.activeElement) ? document.activeElement.id : "";
  const before = new Map([...list.children].map((card) => [card.id, card]));
  const cards = [...fresh.body.children].map((card) => newer(before.get(card.id), card));
  if (cards.length !== list.children.length || cards.some((card, i) => card !== list.children[i])) {
    list.replaceChildren(...cards);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }
}

function newer(old, card) {
  if (!old) return card;
  if (old.dataset.version === card.dataset.version) return old;
  for (const details of old.querySelectorAll("details")) {
    const fresh = card.querySelector("#" + CSS.escape(details.id));
    if (fresh) fresh.open = details.open;
  }
  tell(old, card);
  return card;
}

function tell(old, card) {
  const state = (each) => each.querySelector("[data-state]").textContent;
  if (state(old) !== state(card)) news.textContent = card.querySelector("h2").textContent + ": " + state(card);
}

document.addEventListener("visibilitychange", look);
timer = setTimeout(look, EVERY);
