// The overview and the transfer matrix: counts of the trials that pass the filters, and what the mixed-effects models say.
const MEASURES = { rate: "success rate", difference: "difference from the base model" };
let measure = "rate";

/** What trials count for the tables: the filters that do not name a row or a column of them, or an outcome. */
const base = () => chosen(["test", "shift", "training", "run", "outcome", "text"]);

function drawOverview() {
  const rows = [];
  for (const [, trials] of grouped(base().filter((t) => of("attempt", t) === 1), (t) => ["run", "test", "source", "manner", "readout"].map((name) => of(name, t)).join("\n"))) {
    const held = counted(trials), n = held.length, k = successes(held), first = trials[0];
    const shortcuts = Object.entries(sourceOf(first).shortcuts).sort((a, b) => b[1] - a[1])[0];
    const chances = trials.map((t) => of("chance", t)).filter((c) => c !== null);
    rows.push({
      run: of("run", first), test: of("test", first), manner: of("manner", first), readout: of("readout", first), n, ...wilson(k, n), shortcut: shortcuts ?? null,
      chance: chances.length ? mean(chances) : null, unread: n ? held.filter((t) => of("outcome", t) === "unread").length / n : null, failed: trials.length - n,
    });
  }
  rows.sort((a, b) => natural(a.test, b.test) || natural(a.run, b.run) || natural(a.manner, b.manner));
  const more = [["Manner", manners, (row) => row.manner || "plain"], ["Readout", readouts, (row) => row.readout]].filter(([, levels]) => levels.length > 1);
  const failed = rows.some((row) => row.failed);
  const head = ["Run", "Test", ...more.map(([name]) => name), "n", "Success", "95 %", "", "Chance", "Best shortcut", "Unread", ...(failed ? ["Failed"] : [])];
  const body = rows.map((row) => {
    const shown = filter.run === row.run && filter.test === row.test && more.every(([name]) => filter[name.toLowerCase()] === row[name.toLowerCase()]);
    return make("tr", { class: shown ? "chosen" : null },
      make("th", { scope: "row" }, make("button", { type: "button", "aria-pressed": String(shown), onclick: () => choose({ run: row.run, test: row.test, training: null, shift: null, ...(more.length ? { manner: row.manner, readout: row.readout } : {}) }, true) }, row.run)),
      make("td", {}, row.test), ...more.map(([, , text]) => make("td", {}, text(row))), number(row.n), number(proportion(row.p)), number(`[${proportion(row.low)}, ${proportion(row.high)}]`),
      make("td", {}, row.n ? interval(row) : null), number(proportion(row.chance)),
      make("td", {}, row.shortcut ? `${proportion(row.shortcut[1])} ${row.shortcut[0]}` : "–"), number(proportion(row.unread)), failed ? number(row.failed) : null);
  });
  byId("table").replaceChildren(make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...body));
}

const number = (text) => make("td", { class: "number" }, text);

/** A rate with its interval on a line from 0 to 1; chance as a tick. */
function interval({ p, low, high, chance }) {
  const x = (value) => 4 + 112 * value;
  return make("svg", { class: "interval", viewBox: "0 0 120 14", "aria-hidden": "true" },
    make("line", { x1: x(0), x2: x(1), y1: 7, y2: 7, class: "grid" }),
    chance === null ? null : make("line", { x1: x(chance), x2: x(chance), y1: 1, y2: 13, class: "axis", "stroke-dasharray": "2 2" }),
    make("line", { x1: x(low), x2: x(high), y1: 7, y2: 7, stroke: "var(--accent)", "stroke-width": 2 }),
    make("circle", { cx: x(p), cy: 7, r: 3.5, fill: "var(--accent)" }));
}

/** Cells of the matrix: the mean of the runs' rates, and what the mixed-effects model of `probe analyze` says of all plain trials. */
function matrixCells() {
  const cells = new Map();
  for (const [key, trials] of grouped(comparable(base()), (t) => `${of("training", t)}\n${of("test", t)}`)) {
    const runs = [...grouped(trials, "run").values()];
    const first = trials[0];
    cells.set(key, {
      training: of("training", first), test: of("test", first), n: trials.length, runs: runs.length,
      rate: mean(runs.map((own) => successes(own) / own.length)), level: sourceOf(first).levels[of("test", first)] ?? null, model: null,
    });
  }
  for (const row of data.transfer?.rows ?? []) {
    const cell = cells.get(`${row.training}\n${row.test}`);
    if (cell) cell.model = row;
  }
  return cells;
}

function drawMatrix() {
  const cells = matrixCells();
  const tests = [...new Set([...cells.values()].map((c) => c.test))].sort(natural);
  const trainings = [...new Set([...cells.values()].map((c) => c.training))].sort(byMethod);
  const known = data.transfer !== null;
  byId("measures").replaceChildren(...(known ? Object.entries(MEASURES) : []).map(([name, words]) =>
    make("button", { type: "button", "aria-pressed": String(measure === name), onclick: () => { measure = name; drawMatrix(); byId("measures").querySelector("[aria-pressed=true]").focus(); } }, (measure === name ? "● " : "○ ") + words)));
  const rows = trainings.map((training) => make("tr", {}, make("th", { scope: "row" }, training), ...tests.map((test) => {
    const cell = cells.get(`${training}\n${test}`);
    if (!cell) return make("td", {});
    const value = measure === "rate" ? cell.rate : cell.model?.difference ?? null;
    const told = measure === "difference" && cell.model?.p_holm !== null && cell.model?.p_holm < 0.05;
    const td = make("td", { class: [cell.level === "within" ? "within" : "", told ? "told" : ""].join(" ") },
      make("button", { type: "button", title: words(cell), "aria-label": `${training} on ${test}: ${words(cell)}`, onfocus: () => say(cell), onpointerenter: () => say(cell),
        onclick: () => choose({ training, test, run: null, shift: null }, true) }, (measure === "difference" && value > 0 ? "+" : "") + proportion(value, 2)));
    td.style.background = tint(value);
    return td;
  })));
  byId("matrix").replaceChildren(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Trained \\ tested"), ...tests.map((test) => make("th", { scope: "col" }, test)))), make("tbody", {}, ...rows));
  byId("cell").textContent = measure === "rate"
    ? `${comparedIn()}Mean of the runs' success rates; the filters of margin, manner and readout count. Framed: the trained task itself. A cell shows its trials.`
    : "Of all plain trials, whatever the filters. Framed: the trained task itself. Bold: told from 0 (Holm, p < .05). A cell shows its trials.";
}

function tint(value) {
  if (value === null || Number.isNaN(value)) return "";
  if (measure === "rate") return `color-mix(in srgb, var(--accent) ${Math.round(45 * value)}%, var(--card))`;
  return `color-mix(in srgb, var(${value > 0 ? "--more" : "--less"}) ${Math.round(Math.min(1, Math.abs(value) / 0.5) * 60)}%, var(--card))`;
}

function words(cell) {
  const parts = [`${proportion(cell.rate)} of ${cell.n} trials, ${cell.runs} run${cell.runs === 1 ? "" : "s"}`];
  if (cell.level) parts.push(cell.level);
  const m = cell.model;
  if (m && m.difference !== null) {
    const p = m.p_holm === null ? "" : m.p_holm < 0.001 ? ", Holm p < .001" : `, Holm p = ${proportion(m.p_holm)}`;
    parts.push(`from base ${m.difference > 0 ? "+" : ""}${proportion(m.difference)} [${proportion(m.difference_low)}, ${proportion(m.difference_high)}]${p}${m.verdict ? `, ${m.verdict}` : ""}`);
  }
  return parts.join("; ");
}
const say = (cell) => { byId("cell").textContent = `${cell.training} on ${cell.test}: ${words(cell)}.`; };
