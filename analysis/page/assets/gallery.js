// The gallery: only what is on the screen is in the document, so that it does not matter how many trials there are.
const CAPTION = 70, GUTTER = 10, PAD = 14;
let units = [];
let columns = 1, unitWidth = 0, unitHeight = 0, pictureWidth = 0, current = 0;
const cards = new Map();

/** Units of the gallery: single trials, or the members of a minimal pair as one run answered them. */
function gather(trials) {
  if (!filter.pairs) return trials.map((t) => [t]);
  const key = (t) => `${of("source", t)}\n${of("pair", t) ?? of("item", t)}\n${of("manner", t)}\n${of("attempt", t)}\n${of("readout", t)}`;
  // Of a pair of which one member passes the filters, both are shown: that is what makes them comparable.
  const wanted = new Set(trials.map(key));
  const whole = chosen(["outcome", "text", "low", "high"]).filter((t) => wanted.has(key(t)));
  return [...grouped(whole, key).values()].map((members) => members.sort((a, b) => natural(of("role", a) ?? "", of("role", b) ?? "")));
}

function drawGallery(trials) {
  units = gather(trials);
  current = Math.min(current, Math.max(0, units.length - 1));
  for (const card of cards.values()) card.remove();
  cards.clear();
  layout();
}

function layout() {
  const gallery = byId("gallery"), width = gallery.clientWidth;
  const members = filter.pairs ? Math.min(4, units.reduce((most, unit) => Math.max(most, unit.length), 1)) : 1;
  const least = width < 480 ? 150 : 176;
  columns = Math.max(1, Math.floor((width + GUTTER) / (least * members + GUTTER)));
  unitWidth = Math.floor((width - (columns - 1) * GUTTER) / columns);
  pictureWidth = (unitWidth - PAD - 6 * (members - 1)) / members;
  unitHeight = Math.ceil((bare ? 0 : pictureWidth) + CAPTION + PAD);
  gallery.style.height = `${Math.ceil(units.length / columns) * (unitHeight + GUTTER)}px`;
  for (const [index, card] of cards) place(card, index);
  scrolled();
}

function place(card, index) {
  card.style.width = `${unitWidth}px`;
  card.style.height = `${unitHeight}px`;
  card.style.left = `${(index % columns) * (unitWidth + GUTTER)}px`;
  for (const trial of card.children) trial.style.width = `${pictureWidth}px`;
  card.style.top = `${Math.floor(index / columns) * (unitHeight + GUTTER)}px`;
}

/** Cards of the rows on the screen, and of two rows beyond it on either side. */
function scrolled() {
  const gallery = byId("gallery"), top = -gallery.getBoundingClientRect().top, row = unitHeight + GUTTER;
  const first = Math.max(0, Math.floor(top / row) - 2) * columns;
  const last = Math.min(units.length, (Math.ceil((top + innerHeight) / row) + 2) * columns);
  for (const [index, card] of cards) if ((index < first || index >= last) && !card.contains(document.activeElement)) { card.remove(); cards.delete(index); }
  for (let index = first; index < last; index++) {
    if (cards.has(index)) continue;
    const card = drawUnit(index);
    place(card, index);
    cards.set(index, card);
    gallery.append(card);
  }
}

function drawUnit(index) {
  return make("div", { class: units[index].length > 1 ? "unit pair" : "unit", role: "listitem" }, ...units[index].map((t, member) =>
    make("button", { type: "button", class: "trial", "data-unit": index, tabindex: index === current && !member ? 0 : -1, "aria-label": summary(t),
      onclick: () => { current = index; openDetail(t); } }, bare ? null : image(t, "thumb"),
      make("span", { class: `outcome ${of("outcome", t)}` }, `${SIGNS[of("outcome", t)]} ${of("outcome", t)}: ${of("answer", t) ?? of("raw", t) ?? of("error", t) ?? ""}`),
      make("span", {}, `${of("role", t) && of("role", t) !== "base" ? `${of("role", t)}, ` : ""}truth: ${of("truth", t) ?? "–"}`),
      make("span", { class: "soft" }, marginText(t)), make("span", { class: "soft" }, of("run", t)))));
}

const marginText = (t) => [of("test", t), of("margin", t) === null ? "" : `${of("margin", t) > 0 ? "+" : ""}${of("margin", t).toFixed(2)}`.replace("-", "−"), of("manner", t), of("attempts", t) > 1 ? `attempt ${of("attempt", t)}` : ""].filter(Boolean).join(" · ");
const summary = (t) => `${of("outcome", t)}, answered ${of("answer", t) ?? "nothing legal"}, truth ${of("truth", t)}, ${marginText(t)}, ${of("run", t)}`;

function image(t, kind) {
  const source = pictureOf(t);
  if (source === null) return make("div", { class: "blank", role: "img", "aria-label": "no picture" });
  return make("img", { src: source, alt: kind === "thumb" ? "" : `The picture of ${of("item", t)}`, class: kind, decoding: "async" });
}

/** Move the focus by so many units, and the page with it. */
function go(index) {
  if (!units.length) return;
  current = Math.min(units.length - 1, Math.max(0, index));
  const gallery = byId("gallery"), top = gallery.getBoundingClientRect().top + Math.floor(current / columns) * (unitHeight + GUTTER);
  const bar = byId("filters").getBoundingClientRect().height;
  if (top < bar) scrollBy(0, top - bar - GUTTER);
  else if (top + unitHeight > innerHeight) scrollBy(0, top + unitHeight - innerHeight + GUTTER);
  scrolled();
  for (const button of gallery.querySelectorAll("[tabindex='0']")) button.tabIndex = -1;
  const button = cards.get(current)?.querySelector("button");
  if (button) { button.tabIndex = 0; button.focus({ preventScroll: true }); }
}

function galleryKey(event) {
  if (!event.target.dataset.unit || event.ctrlKey || event.metaKey || event.altKey) return;
  current = Number(event.target.dataset.unit);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  go(current + steps[event.key]);
}
