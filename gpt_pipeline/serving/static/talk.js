"use strict";
// Asks every chosen model the same question at once, and shows what each writes as it comes.

const by = (id) => document.getElementById(id);
const form = by("ask");
const question = by("question");
const pick = by("pick");
const cards = [...document.querySelectorAll("article")];
let known = []; // held-out questions
let running = null; // what stops the answers under way

function headers() {
  const key = by("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}

async function request(path, options, signal) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store", signal, ...options });
  if (answer.ok) return answer;
  if (answer.status === 401) by("locked").hidden = false;
  const text = await answer.text();
  let reason = text;
  try { reason = JSON.parse(text).error.message; } catch { /* a refusal in plain text */ }
  throw new Error(reason);
}

function complain(error) {
  by("problem").hidden = error === null;
  by("problem").textContent = error === null ? "" : error.message;
}

// --- held-out questions

async function loadKnown() {
  try {
    known = await (await request("/talk/questions")).json();
  } catch (error) {
    if (by("locked").hidden) complain(error); // where a key is needed, its field says so
    return;
  }
  const groups = new Map();
  known.forEach((each, place) => {
    if (!groups.has(each.experiment)) {
      const group = document.createElement("optgroup");
      group.label = each.experiment;
      groups.set(each.experiment, group);
    }
    const text = each.question.replace(/\s+/g, " ");
    groups.get(each.experiment).append(new Option(text.length > 90 ? text.slice(0, 90) + "..." : text, String(place)));
  });
  pick.replaceChildren(pick.options[0], ...groups.values());
  by("known").hidden = known.length === 0;
}

function take() {
  if (pick.value !== "") question.value = known[Number(pick.value)].question;
}

pick.addEventListener("change", take);
question.addEventListener("input", () => { pick.value = ""; }); // a changed question has no known answer
by("next").addEventListener("click", () => {
  pick.value = String(pick.value === "" ? 0 : (Number(pick.value) + 1) % known.length);
  take();
});
by("key").addEventListener("change", () => { complain(null); loadKnown(); });

// --- settings

const number = (id) => by(id).valueAsNumber;

function settings() {
  const temperature = number("temperature") || 0; // an empty field is none, not the server's default
  const wanted = { temperature, seed: number("seed"), max_tokens: number("max_tokens") };
  if (temperature > 0) Object.assign(wanted, { top_p: number("top_p"), top_k: number("top_k") });
  return Object.fromEntries(Object.entries(wanted).filter(([, value]) => !Number.isNaN(value)));
}

function summarize() {
  const { temperature, top_k: k, top_p: p, seed } = settings();
  const parts = ["temperature " + temperature, k ? "top k " + k : "", p < 1 ? "top p " + p : "", seed === undefined ? "any seed" : "seed " + seed];
  by("summary").textContent = temperature > 0 ? parts.filter(Boolean).join(", ") : "always the likeliest token";
}

by("settings").addEventListener("input", summarize);

// --- answers

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  const names = new Set([...form.querySelectorAll("[name=model]:checked")].map((box) => box.value));
  const chosen = cards.filter((card) => names.has(card.dataset.model));
  cards.forEach((card) => { card.hidden = !names.has(card.dataset.model); });
  complain(chosen.length ? null : new Error("Choose who answers."));
  by("told").textContent = "";
  if (!chosen.length) return;
  running = new AbortController();
  lock(true);
  const place = pick.value === "" ? null : Number(pick.value);
  await Promise.all(chosen.map((card) => answer(card, question.value, place, running.signal)));
  running = null;
  lock(false);
  const marked = chosen.filter((card) => card.dataset.right), right = marked.filter((card) => card.dataset.right === "yes");
  by("told").textContent = marked.length ? `${right.length} of ${marked.length} right` : "";
});

by("stop").addEventListener("click", () => running?.abort());

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

function lock(busy) {
  by("go").disabled = busy;
  by("stop").disabled = !busy;
}

async function answer(card, text, place, signal) {
  const part = (name) => card.querySelector(`[data-${name}]`);
  const began = performance.now();
  for (const name of ["reasoning", "answer", "note", "expected"]) part(name).textContent = "";
  for (const name of ["thought", "mark", "expected"]) part(name).hidden = true;
  part("answer").classList.remove("muted");
  card.dataset.right = "";
  card.setAttribute("aria-busy", "true");
  let said = "";
  let thought = "";
  let end = { finish: "", tokens: 0 };
  try {
    end = await read(card, text, place, signal, (reasoning, content) => {
      thought += reasoning;
      said += content;
      part("reasoning").textContent = thought;
      part("thought").hidden = thought === "";
      part("answer").textContent = said;
    });
    if (place !== null && card.dataset.chats === "yes") await mark(card, said, place, part);
  } catch (error) {
    part("note").textContent = signal.aborted ? "stopped" : error.message;
    return;
  } finally {
    card.setAttribute("aria-busy", "false");
  }
  if (said === "") {
    part("answer").textContent = "(no answer)";
    part("answer").classList.add("muted");
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const cut = end.finish === "length" ? ", cut off: no more tokens fit or were asked for" : "";
  part("note").textContent = `${end.tokens} token${end.tokens === 1 ? "" : "s"} in ${seconds} s${cut}`;
}

async function mark(card, said, place, part) {
  const body = JSON.stringify({ question: place, answer: said });
  const { is_right: isRight, expected } = await (await request("/talk/mark", { method: "POST", body })).json();
  card.dataset.right = isRight ? "yes" : "no";
  part("mark").className = "pill " + (isRight ? "good" : "bad");
  part("mark").textContent = isRight ? "right" : "not right";
  part("mark").hidden = false;
  part("expected").textContent = "expected: " + expected;
  part("expected").hidden = isRight;
}

function asked(card, text, place) {
  const common = { model: card.dataset.model, stream: true, stream_options: { include_usage: true }, ...settings() };
  if (card.dataset.chats === "no") return ["/v1/completions", { max_tokens: 64, ...common, prompt: text }];
  const body = { ...common, messages: [{ role: "user", content: text }] };
  const reasons = place === null ? by("reasons")?.checked : known[place].reasons;
  if (card.dataset.reasons === "yes" && !reasons) body.reasoning_effort = "none";
  return ["/v1/chat/completions", body];
}

async function read(card, text, place, signal, show) {
  const [path, body] = asked(card, text, place);
  const answer = await request(path, { method: "POST", body: JSON.stringify(body) }, signal);
  const end = { finish: "", tokens: 0 };
  for await (const event of events(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) end.tokens = event.usage.completion_tokens;
    for (const choice of event.choices) {
      show(choice.delta?.reasoning_content ?? "", choice.delta?.content ?? choice.text ?? "");
      end.finish = choice.finish_reason ?? end.finish;
    }
  }
  return end;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

loadKnown();
