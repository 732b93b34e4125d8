// One trial, its minimal pair beside it, and what others answered to the same question.
const CONTROLS = { blank: "a grey picture", mirrored: "the mirror image", shuffled: "the picture in tiles of random order", "other-picture": "the picture of another item", description: "the scene in words, and no picture", facts: "the picture, after the physics in words" };

function openDetail(trial) {
  const dialog = byId("detail"), index = units.findIndex((unit) => unit.includes(trial));
  if (index >= 0) current = index;
  const step = (by) => make("button", { type: "button", disabled: !units[index + by], onclick: () => openDetail(units[index + by][0]) }, by < 0 ? "← previous" : "next →");
  const partners = index < 0 ? [] : partnersOf(trial);
  dialog.replaceChildren(
    make("div", { class: "bar" }, make("h2", {}, of("item", trial)), step(-1), step(1), make("button", { type: "button", id: "close", onclick: () => dialog.close() }, "Close")),
    make("div", { class: "sides" }, side(trial), ...partners.map(side)), others(trial));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  byId("close").focus();
}

/** The other members of its minimal pair, as the same run answered them in the same manner. */
function partnersOf(trial) {
  const pair = of("pair", trial);
  if (pair === null) return [];
  const same = ["source", "pair", "manner", "attempt", "readout"].map((name) => data.columns[name].codes);
  const found = [];
  for (let t = 0; t < N && found.length < 3; t++) if (t !== trial && same.every((codes) => codes[t] === codes[trial])) found.push(t);
  return found;
}

function side(t) {
  const motion = data.motions[of("motion", t)], manner = of("manner", t), outcome = of("outcome", t);
  const control = Object.keys(CONTROLS).find((name) => manner.startsWith(name));
  const facts = [["right answer", of("truth", t)], ["answers that work", of("works", t)], ["reward", of("reward", t)], ["simulator", of("detail", t)], ["P(right)", of("p_correct", t)],
    ["chance", of("chance", t)], ["margin", of("margin", t)?.toFixed(4).replace("-", "−")], ["shift", of("shift", t)], ["manner", manner], ["attempt", of("attempts", t) > 1 ? `${of("attempt", t)} of at most ${of("attempts", t)}` : null],
    ["reading", of("status", t)], ["error", of("error", t)], ["run", of("run", t)], ["role", of("role", t)], ["picture", of("image", t)?.slice(0, 12)]];
  return make("div", { class: "side" }, bare ? null : image(t, "picture"),
    control ? make("p", { class: "note" }, `In this manner the model was given ${CONTROLS[control]}; shown here is the item's own picture.`) : null,
    make("p", { class: `outcome ${outcome}` }, `${SIGNS[outcome]} ${outcome}: ${of("answer", t) ?? "no legal answer"}`),
    of("prompt", t) === null ? null : make("h3", {}, "Prompt"), of("prompt", t) === null ? null : make("pre", {}, of("prompt", t)),
    of("raw", t) === null ? null : make("h3", {}, "Raw reply"), of("raw", t) === null ? null : make("pre", { class: "raw" }, of("raw", t)),
    optionBars(t),
    motion ? make("h3", {}, "What the simulator says") : null,
    motion ? make("img", { class: "motion", src: `data:image/webp;base64,${motion[0]}`, alt: "Four moments of the simulation, from left to right" }) : null,
    motion ? make("p", { class: "how" }, motion[1]) : null,
    make("dl", {}, ...facts.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
}

function optionBars(t) {
  const options = of("options", t), rest = of("others", t);
  if (!options.length) return null;
  const right = [of("truth", t), ...of("works", t).split("; ")];
  const rows = [...options.map(([name, p]) => [name, p]), ...(rest === null ? [] : [["all others", rest]])].map(([name, p]) =>
    make("tr", {}, make("td", {}, right.includes(name) ? `✓ ${name}` : name), make("td", {}, make("svg", { width: 130, height: 12, "aria-hidden": "true" }, make("rect", { width: Math.max(1, 130 * p), height: 12, fill: "var(--accent)" }))), make("td", { class: "number" }, proportion(p))));
  return make("div", { class: "options" }, make("h3", {}, "Probability of the legal answers"), make("table", {}, make("tbody", {}, ...rows)));
}

/** What the other runs, manners and attempts gave for the same item. */
function others(trial) {
  const same = ["item", "stimuli", "task"].map((name) => data.columns[name].codes);
  const found = [];
  for (let t = 0; t < N; t++) if (t !== trial && same.every((codes) => codes[t] === codes[trial])) found.push(t);
  if (!found.length) return make("p", { class: "how" }, "Nobody else was asked this item.");
  const rows = found.slice(0, 60).map((t) => make("tr", {}, make("th", { scope: "row" }, make("button", { type: "button", onclick: () => openDetail(t) }, of("run", t))),
    make("td", {}, [of("readout", t), of("manner", t), of("attempts", t) > 1 ? `attempt ${of("attempt", t)}` : ""].filter(Boolean).join(", ")),
    make("td", { class: of("outcome", t) }, `${SIGNS[of("outcome", t)]} ${of("answer", t) ?? of("outcome", t)}`), make("td", {}, of("raw", t) ?? "")));
  return make("div", {}, make("h3", {}, `The same item, answered ${found.length} time${found.length === 1 ? "" : "s"} more`), make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...rows))));
}
