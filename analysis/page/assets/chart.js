// Success over the margin, one line per training, of the trials of one test that pass the filters.
const BINS = 8, MOST_LINES = 8;
const DASHES = ["", "6 3", "2 2", "8 3 2 3"]; // of trainings that share the colour of their method

function drawChart() {
  const tests = [...grouped(comparable(chosen(["outcome", "text"])).filter((t) => of("margin", t) !== null), "test")].sort((a, b) => natural(a[0], b[0]));
  if (!tests.length) return byId("chart").replaceChildren("No trials with a margin pass the filters.");
  const [test, trials] = tests[0];
  const all = [...grouped(trials, "training")].sort((a, b) => byMethod(a[0], b[0]));
  const lines = all.slice(0, MOST_LINES).map(([name, own]) => ({ name, own, colour: sourceOf(own[0]).colour }));
  for (const line of lines) line.dash = DASHES[lines.slice(0, lines.indexOf(line)).filter((other) => other.colour === line.colour).length % DASHES.length];
  const told = [`${test}. `, comparedIn(), tests.length > 1 ? "Margins of different tests are different quantities: choose another under Test. " : "", all.length > lines.length ? `The first ${lines.length} of ${all.length} trainings. ` : ""];
  const margins = trials.map((t) => of("margin", t)).sort((a, b) => a - b);
  const edges = [...new Set(Array.from({ length: BINS - 1 }, (_, i) => margins[Math.floor((i + 1) * margins.length / BINS)]))];
  const [least, most] = [margins[0], margins[margins.length - 1]];
  const pad = (most - least) * 0.05 || 0.5;
  const W = 640, H = 300, left = 46, bottom = 42, top = 14;
  const x = (m) => left + (W - left - 14) * (m - least + pad) / (most - least + 2 * pad);
  const y = (p) => top + (H - top - bottom) * (1 - p);
  const shapes = [];
  for (const p of [0, .25, .5, .75, 1]) {
    shapes.push(make("line", { x1: left, x2: W - 14, y1: y(p), y2: y(p), class: "grid" }), make("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, String(p).replace("0.", ".")));
  }
  for (const m of ticks(least, most)) shapes.push(make("line", { x1: x(m), x2: x(m), y1: y(0), y2: y(0) + 5, class: "axis" }), make("text", { x: x(m), y: y(0) + 18, "text-anchor": "middle" }, String(m).replace("-", "−")));
  shapes.push(make("text", { x: (W + left) / 2, y: H - 8, "text-anchor": "middle" }, "signed margin"));
  lines.forEach(({ own, colour: stroke, dash }, number) => {
    const bins = [...grouped(own, (t) => edges.filter((edge) => of("margin", t) >= edge).length)].sort((a, b) => a[0] - b[0]);
    const points = bins.map(([, members]) => ({ at: x(mean(members.map((t) => of("margin", t)))) + (number - (lines.length - 1) / 2) * 3, ...wilson(successes(members), members.length) }));
    shapes.push(make("path", { d: points.map((q, i) => `${i ? "L" : "M"}${q.at} ${y(q.p)}`).join(""), fill: "none", stroke, "stroke-width": 1.6, "stroke-dasharray": dash || null }));
    for (const q of points) shapes.push(make("line", { x1: q.at, x2: q.at, y1: y(q.low), y2: y(q.high), stroke }), make("circle", { cx: q.at, cy: y(q.p), r: 3.6, fill: stroke }));
  });
  const legend = lines.map(({ name, own, colour, dash }) => {
    const dot = make("svg", { width: 26, height: 12, "aria-hidden": "true" }, make("line", { x1: 0, x2: 24, y1: 6, y2: 6, stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash || null }), make("circle", { cx: 12, cy: 6, r: 4, fill: colour }));
    return make("span", {}, dot, ` ${name}: ${proportion(successes(own) / own.length)} of ${own.length}  `);
  });
  byId("chart").replaceChildren(make("p", { class: "how" }, ...told), make("p", { class: "how" }, ...legend), make("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Success rate over the signed margin" }, ...shapes));
}

function ticks(low, high) {
  const span = high - low || 1;
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100].find((s) => span / s <= 7) ?? span;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(Number((k * step).toFixed(6)));
  return found;
}
