// The data, the choice of trials, and counts. A trial is its number in the log order; a column is read with `of(name, trial)`.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const N = data.n;
const SIGNS = { right: "✓", wrong: "✗", unread: "?", failed: "!" };
let pictures = null;
const bare = byId("pictures").textContent.length < 10; // no picture at all

const of = (name, trial) => data.columns[name].levels[data.columns[name].codes[trial]];
const sourceOf = (trial) => data.sources[of("source", trial)];

/** Derived columns, packed like the others: what filters choose by. */
function derive(name, value) {
  const levels = new Map();
  const codes = new Array(N);
  for (let trial = 0; trial < N; trial++) {
    const level = value(trial);
    if (!levels.has(level)) levels.set(level, levels.size);
    codes[trial] = levels.get(level);
  }
  data.columns[name] = { levels: [...levels.keys()], codes };
}
derive("test", (t) => (of("shift", t) === "none" ? of("task", t) : `${of("task", t)}@${of("shift", t)}`));
derive("run", (t) => sourceOf(t).run);
derive("training", (t) => sourceOf(t).training || sourceOf(t).run);

/** A picture as the address of an image; null if the page does not have it. Decoded when first asked for. */
function pictureOf(trial) {
  pictures ??= JSON.parse(byId("pictures").textContent);
  const found = pictures[(of("image", trial) ?? "").slice(0, data.key)];
  return found ? `data:image/webp;base64,${found}` : null;
}

const CHOICES = ["test", "shift", "training", "run", "manner", "readout", "outcome"];
const filter = { low: null, high: null, text: "", pairs: false };
for (const name of CHOICES) filter[name] = null;

/** The trials that pass the filters but for those named in `but`. */
function chosen(but = []) {
  const tests = [];
  for (const name of CHOICES) {
    if (filter[name] === null || but.includes(name)) continue;
    const { levels, codes } = data.columns[name];
    const code = levels.indexOf(filter[name]);
    tests.push((t) => codes[t] === code);
  }
  if (filter.low !== null || filter.high !== null) {
    const low = filter.low ?? -Infinity, high = filter.high ?? Infinity;
    tests.push((t) => { const m = of("margin", t); return m !== null && m >= low && m <= high; });
  }
  const words = but.includes("text") ? "" : filter.text.trim().toLowerCase();
  if (words) tests.push(matcher(words));
  const found = [];
  for (let t = 0; t < N; t++) if (tests.every((test) => test(t))) found.push(t);
  return found;
}

/** Whether a trial's texts contain some words: every different text is looked at once. */
function matcher(words) {
  const hits = ["raw", "prompt", "item", "answer", "error"].map((name) => {
    const { levels, codes } = data.columns[name];
    const found = levels.map((text) => text !== null && String(text).toLowerCase().includes(words));
    return (t) => found[codes[t]];
  });
  return (t) => hits.some((hit) => hit(t));
}

const manners = data.columns.manner.levels;
const readouts = data.columns.readout.levels;

/** Of trials, those that success rates are about: first attempts that took place. */
const counted = (trials) => trials.filter((t) => of("attempt", t) === 1 && of("outcome", t) !== "failed");

/** The manner and readout in which trainings are compared, where none is chosen: as in `probe analyze`. */
const manner = () => filter.manner ?? (manners.includes("") ? "" : manners[0]);
const readout = () => filter.readout ?? (readouts.includes("generate") ? "generate" : readouts[0]);
function comparable(trials) {
  const found = counted(trials).filter((t) => of("manner", t) === manner() && of("readout", t) === readout());
  if (data.columns.attempts.levels.length < 2) return found;
  // Where a run was asked an item with one attempt and with several, the former counts, as in `probe analyze`.
  const first = new Map();
  for (const t of found) {
    const key = ["run", "stimuli", "test", "item"].map((name) => of(name, t)).join("\n");
    if (!first.has(key) || of("attempts", t) < of("attempts", first.get(key))) first.set(key, t);
  }
  return [...first.values()];
}
const comparedIn = () => [manners.length > 1 ? `manner: ${manner() || "plain"}` : "", readouts.length > 1 ? `readout: ${readout()}` : ""].filter(Boolean).map((text) => `${text}. `).join("");

function grouped(trials, name) {
  const groups = new Map();
  for (const t of trials) {
    const key = typeof name === "function" ? name(t) : of(name, t);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(t);
  }
  return groups;
}

const successes = (trials) => trials.reduce((sum, t) => sum + (of("outcome", t) === "right"), 0);

/** Success rate with its 95 % Wilson interval; all null of no trials. */
function wilson(k, n) {
  if (!n) return { p: null, low: null, high: null };
  const z = 1.959963984540054, p = k / n, d = 1 + z * z / n;
  const middle = (p + z * z / (2 * n)) / d, half = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d;
  return { p, low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
/** As the APA writes proportions, with a true minus. */
const proportion = (x, digits = 3) => x === null || Number.isNaN(x) ? "–" : x.toFixed(digits).replace(/^(-?)0\./, "$1.").replace("-", "−");
const natural = new Intl.Collator("en", { numeric: true }).compare;

/** Trainings in the order of their methods, as figures and tables have them; observers last. */
const places = new Map(data.sources.map((source) => [source.training || source.run, source.place]));
const byMethod = (a, b) => places.get(a) - places.get(b) || natural(a, b);

/** An element with text or children; never HTML, so that no reply can be anything but text. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "rect", "circle", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}
