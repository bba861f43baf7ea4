"use strict";
// Charts answer to the pointer and to keys; tables are sorted and filtered. Without this script all of it is there, and
// stands still. The charts' points are the JSON beside their pictures.

const SMOOTH_PARTS = 60; // as in the pictures: a moving average over this part of a curve's points
const MOST_SMOOTH = 20;
const LETTER = 6.5; // width, on average
const LONGEST_TEXT = 24; // letters of a value below the x axis; a longer one is cut
const TEXT_GAP = 10;
const EDGE = { left: 66, right: 18, top: 12, bottom: 46 };
const LEAST_HEIGHT = 230;
const FEW = 12; // points: a curve of fewer has nothing to smooth
const KEY_STEPS = 100; // of an arrow key, from one end of the curves to the other

// ---- elements

function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// ---- numbers

function short(value) {
  for (const [size, unit, scale] of [[1e12, " T", 1e12], [1e9, " B", 1e9], [1e6, " M", 1e6], [1e4, " k", 1e3]])
    if (Math.abs(value) >= size) return Number((value / scale).toPrecision(4)) + unit;
  if (value && Math.abs(value) < 1e-3) return value.toExponential(0);
  return exact(value, 4);
}

function exact(value, digits) {
  if (value && Math.abs(value) < 1e-3) return Number(value.toPrecision(digits)).toExponential();
  return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, String(Math.trunc(value)).length) });
}

function duration(seconds) {
  if (!seconds) return "0";
  if (seconds < 59.5) return Math.round(seconds) + " s";
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  const parts = [[days, "d"], [hours % 24, "h"], [minutes % 60, "min"]].filter(([amount]) => amount);
  return parts.slice(0, 2).map((part) => part.join(" ")).join(" ");
}

function averaged(values, share) {
  const reach = Math.floor((values.length * share) / 2), sums = [0];
  if (!reach) return values;
  for (const value of values) sums.push(sums.at(-1) + value);
  return values.map((_, i) => {
    const low = Math.max(0, i - reach), high = Math.min(values.length, i + reach + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

// ---- axes

function roundTicks(low, high, count) {
  if (high <= low) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const rough = (high - low) / Math.max(count - 1, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => power * factor).find((each) => each >= rough * (1 - 1e-9));
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high, count) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) powers.push(10 ** power);
  const inside = (ticks) => ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  const tens = inside(powers), more = inside(powers.flatMap((power) => [power, 2 * power, 5 * power]));
  if (tens.length >= 3) return tens.filter((_, i) => i % Math.ceil(tens.length / count) === 0);
  return more.length >= 3 ? more : inside(roundTicks(low, high, count));
}

// Return where values lie between two edges of the picture, and the marks; `whole`: the range ends at marks.
function axis(values, { log, zero, whole, count, ticks, edges }) {
  let low = values.reduce((least, each) => Math.min(least, each), Infinity);
  let high = values.reduce((most, each) => Math.max(most, each), -Infinity);
  if (zero && !log) low = Math.min(low, 0);
  if (low === high && !whole)
    [low, high] = log ? [low / 2, high * 2] : [Math.min(0, low), Math.max(0, high * 1.25) || 1.25];
  if (!whole && !log && !ticks && low > 0 && low < 0.15 * high) low = 0;
  if (log && low === high) [low, high] = [low / 2, high * 2];
  let marks = ticks ?? (log ? logTicks(low, high, count) : roundTicks(low, high, count));
  if (whole && !log) [low, high] = [marks[0], marks.at(-1)];
  else marks = marks.filter((mark) => mark >= low && mark <= high);
  const of = log ? Math.log10 : (value) => value;
  return { marks, at: (value) => edges[0] + ((of(value) - of(low)) / (of(high) - of(low))) * (edges[1] - edges[0]) };
}

// Yield middle and text of the marks whose texts do not touch the one before; all lie in the picture.
function* textsWithRoom(marks, width) {
  let end = -Infinity;
  for (const [place, whole] of marks) {
    const text = whole.length <= LONGEST_TEXT ? whole : whole.slice(0, LONGEST_TEXT - 1) + "…";
    const half = (text.length * LETTER) / 2, middle = Math.min(Math.max(place, half), width - half);
    if (middle - half < end) continue;
    yield [middle, text];
    end = middle + half + TEXT_GAP;
  }
}

// ---- a chart

// What the charts of a section share: a curve that is hidden in one is hidden in all.
class Names {
  constructor() {
    this.hidden = new Set();
    this.known = new Set();
    this.plots = [];
  }

  toggle(name) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    for (const plot of this.plots) plot.draw();
  }

  static of(section) {
    return (section.curveNames ??= new Names());
  }
}

class Plot {
  constructor(place) {
    this.place = place;
    this.data = JSON.parse(place.querySelector("script").textContent);
    this.names = Names.of(place.closest("section"));
    this.names.plots.push(this);
    this.buttons = [];
    this.log = { x: false, y: false };
    this.smooth = this.data.series.some((each) => each.smooth) ? 1 : 0;
    this.chosen = null;
    // Points without a name belong to the line before them.
    this.data.series.forEach((each, i, all) => { each.line = each.name || !i ? each.name : all[i - 1].line; });
    this.picture = shape("svg", { class: "chart", role: "slider", tabindex: 0, "aria-label": this.data.title });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.stage = make("div", { class: "stage" }, this.picture, this.tip);
    this.parts = [this.tools(), this.stage];
    for (const name of ["pointermove", "pointerdown"])
      this.picture.addEventListener(name, (event) => this.choose(this.nearest(event.clientX)));
    for (const name of ["pointerleave", "blur"]) this.picture.addEventListener(name, () => this.choose(null));
    this.picture.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => { if (this.room !== this.width) this.draw(); }).observe(place); // also when a tab shows it
  }

  tools() {
    const tools = make("div", { class: "tools" }), named = this.data.series.filter((each) => each.name);
    // A chart beside others whose curves bear the same names is told by theirs.
    const tabs = this.place.closest(".tabs"), isOnlyOne = tabs || named.some((each) => !this.names.known.has(each.name));
    const isOneOfSeveral = named.length > 1 || (tabs && this.names.known.size > 1);
    if (isOneOfSeveral && isOnlyOne) this.buttons = named.map((each) => this.buttonOf(each));
    named.forEach((each) => this.names.known.add(each.name));
    if (this.buttons.length) tools.append(make("div", { class: "names" }, ...this.buttons));
    const isLong = (each) => each.look === "line" && each.xs.length >= FEW;
    if (!this.data.ticks.length && this.data.series.some(isLong)) tools.append(this.slider());
    for (const each of this.data.ticks.length ? ["y"] : ["x", "y"]) tools.append(this.logBox(each));
    return tools;
  }

  buttonOf(series) {
    const button = make("button", { type: "button", "aria-pressed": "true", value: series.name }, swatch(series), series.name);
    button.addEventListener("click", () => this.names.toggle(series.name));
    return button;
  }

  slider() {
    const input = make("input", { type: "range", min: 0, max: MOST_SMOOTH, value: this.smooth });
    const told = make("output");
    const tell = () => { told.textContent = this.smooth ? `over ${Math.round((100 * this.smooth) / SMOOTH_PARTS)} %` : "off"; };
    input.addEventListener("input", () => { this.smooth = Number(input.value); tell(); this.draw(); });
    tell();
    return make("label", {}, "smoothing", input, told);
  }

  logBox(which) {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => { this.log[which] = box.checked; this.draw(); });
    return make("label", {}, box, `log ${which}`);
  }

  curves() {
    return this.data.series.filter((each) => !this.names.hidden.has(each.line)).map((each) => {
      const ys = each.look === "line" ? averaged(each.ys, this.smooth / SMOOTH_PARTS) : each.ys;
      const points = each.xs.map((x, i) => [x, ys[i]]);
      return { ...each, points: points.filter(([x, y]) => (!this.log.x || x > 0) && (!this.log.y || y > 0)) };
    }).filter((each) => each.points.length);
  }

  get room() {
    return (this.stage.isConnected ? this.stage : this.place).clientWidth;
  }

  draw() {
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(!this.names.hidden.has(button.value)));
    if (!this.room) return; // in a tab that is not shown, whose printed page has the picture as it was
    if (!this.stage.isConnected) {
      this.place.replaceChildren(...this.parts);
      this.place.classList.add("live");
    }
    const width = this.room;
    this.width = width;
    this.height = Math.max(LEAST_HEIGHT, Math.min(1, width / this.data.width) * this.data.height);
    this.shown = this.curves();
    const all = this.shown.flatMap((each) => each.points), ticks = this.data.ticks;
    this.xs = [...new Set(all.map(([x]) => x))].sort((a, b) => a - b);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.picture.style.height = `${this.height}px`;
    this.picture.replaceChildren();
    this.choose(null);
    if (!all.length) {
      const why = this.names.hidden.size ? "No curve is chosen." : "No value is above 0.";
      this.picture.append(shape("text", { x: width / 2, y: this.height / 2, "text-anchor": "middle" }, why));
      return;
    }
    for (const [name, x] of [["min", this.xs[0]], ["max", this.xs.at(-1)], ["now", this.xs[0]]])
      this.picture.setAttribute(`aria-value${name}`, x);
    this.x = axis(this.xs, { log: this.log.x, count: Math.max(5, Math.round(width / 130)),
      ticks: ticks.length ? ticks.map(([x]) => x) : undefined, edges: [EDGE.left, width - EDGE.right] });
    this.y = axis(all.map(([, y]) => y), { log: this.log.y, zero: this.data.fromZero, whole: true,
      count: Math.max(3, Math.round(this.height / 70)), edges: [this.height - EDGE.bottom, EDGE.top] });
    this.picture.append(...this.axes(), ...this.shown.flatMap((each) => [...this.curve(each)]));
  }

  * axes() {
    const bottom = this.height - EDGE.bottom, right = this.width - EDGE.right, middle = (EDGE.top + bottom) / 2;
    for (const mark of this.y.marks) {
      const y = this.y.at(mark);
      yield shape("line", { class: "grid", x1: EDGE.left, x2: right, y1: y, y2: y });
      yield shape("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, short(mark));
    }
    yield shape("line", { class: "axis", x1: EDGE.left, x2: right, y1: bottom, y2: bottom });
    for (const mark of this.x.marks) {
      const x = this.x.at(mark);
      yield shape("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 5 });
    }
    for (const [x, text] of textsWithRoom(this.x.marks.map((mark) => [this.x.at(mark), this.textOf(mark, short)]), this.width))
      yield shape("text", { x, y: bottom + 18, "text-anchor": "middle" }, text);
    const label = { class: "label", "text-anchor": "middle" };
    yield shape("text", { ...label, x: (EDGE.left + right) / 2, y: this.height - 8 }, this.data.x);
    yield shape("text", { ...label, x: 11, y: middle, transform: `rotate(-90 11 ${middle})` }, this.data.y);
  }

  textOf(x, format) {
    const named = this.data.ticks.find(([place]) => place === x);
    if (named) return named[1];
    return this.data.time ? duration(x) : format(x, 7);
  }

  * curve(series) {
    const places = series.points.map(([x, y]) => [this.x.at(x).toFixed(1), this.y.at(y).toFixed(1)]);
    if (series.look === "dots" || places.length === 1)
      for (const [cx, cy] of places) yield shape("circle", { class: "dots", cx, cy, r: 4, fill: `var(--c${series.colour})` });
    else yield shape("polyline", { class: classesOf(series), stroke: `var(--c${series.colour})`, points: places.join(" ") });
  }

  nearest(place) {
    if (!this.xs?.length) return null;
    const left = this.picture.getBoundingClientRect().left, gap = (x) => Math.abs(left + this.x.at(x) - place);
    return this.xs.reduce((best, x) => (gap(x) < gap(best) ? x : best));
  }

  key(event) {
    if (!this.xs?.length) return;
    const last = this.xs.length - 1, step = Math.ceil(this.xs.length / KEY_STEPS);
    const now = this.chosen === null ? -1 : this.xs.indexOf(this.chosen);
    const to = { ArrowRight: now + step, ArrowLeft: now < 0 ? last : now - step, Home: 0, End: last }[event.key];
    if (to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    this.choose(to === undefined ? null : this.xs[Math.min(last, Math.max(0, to))]);
  }

  // Show the values at an x of the curves; null: none.
  choose(x) {
    this.chosen = x;
    this.picture.querySelectorAll(".chosen").forEach((each) => each.remove());
    this.tip.hidden = x === null;
    if (x === null) return this.picture.removeAttribute("aria-valuetext");
    const place = this.x.at(x), found = this.shown.map((each) => [each, this.pointAt(each, x)]).filter(([, point]) => point);
    const ends = { y1: EDGE.top, y2: this.height - EDGE.bottom };
    this.picture.append(shape("line", { class: "axis chosen", x1: place, x2: place, ...ends }), ...found.map(([each, [px, py]]) =>
      shape("circle", { class: "dots chosen", cx: this.x.at(px), cy: this.y.at(py), r: 4.5, fill: `var(--c${each.colour})` })));
    const head = `${this.data.x} ${this.textOf(x, exact)}`;
    const rows = found.filter(([each]) => each.name || this.data.series.length === 1)
      .map(([each, [, y]]) => [each, each.name || this.data.y, exact(y, 5)]);
    this.tip.replaceChildren(make("b", {}, head), ...rows.map(([each, name, value]) =>
      make("div", {}, swatch(each), make("span", {}, name), make("span", { class: "value" }, value))));
    this.picture.setAttribute("aria-valuetext", [head, ...rows.map(([, ...told]) => told.join(" "))].join(", "));
    this.picture.setAttribute("aria-valuenow", x);
    const left = place > this.width / 2 ? place - this.tip.offsetWidth - 14 : place + 14;
    this.tip.style.left = `${Math.max(0, Math.min(left, this.width - this.tip.offsetWidth))}px`;
  }

  // The point of a curve at x or next to it; none where it has none near: before its beginning, or between two dots.
  pointAt(series, x) {
    const gap = (point) => Math.abs(this.x.at(point[0]) - this.x.at(x));
    const best = series.points.reduce((one, other) => (gap(other) < gap(one) ? other : one));
    const isBetween = x >= series.points[0][0] && x <= series.points.at(-1)[0];
    return gap(best) < 12 || (isBetween && series.look !== "dots") ? best : null;
  }
}

function classesOf(series) {
  return series.dash ? `${series.look} dash${series.dash}` : series.look;
}

function swatch(series) {
  const picture = shape("svg", { viewBox: "0 0 24 10", width: 24, height: 10, "aria-hidden": "true" });
  const colour = `var(--c${series.colour})`;
  picture.append(series.look === "dots" ? shape("circle", { class: "dots", cx: 12, cy: 5, r: 4, fill: colour })
    : shape("line", { class: classesOf(series), stroke: colour, x1: 0, x2: 24, y1: 5, y2: 5 }));
  return picture;
}

// ---- a table

function livenTable(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const order = !before ? head.dataset.first ?? "ascending" : before === "ascending" ? "descending" : "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...sorted(rows, column, order === "ascending" ? 1 : -1));
    });
  });
  if (rows.length > 1) table.closest(".scroll").before(filterOf(rows));
}

// What has no value comes last either way.
function sorted(rows, column, sign) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  return [...rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  });
}

function filterOf(rows) {
  const input = make("input", { type: "search", autocomplete: "off" }), told = make("span", { role: "status", class: "muted" });
  const texts = rows.map((row) => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
    told.textContent = input.value.trim() ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
  return make("p", { class: "tools" }, make("label", {}, "filter", input), told);
}

document.querySelectorAll("[data-chart]").forEach((place) => new Plot(place));
document.querySelectorAll("table[data-sortable]").forEach(livenTable);
