// Filters, keys, the look, and news of a run that goes on.
const form = byId("filter");

function fill(name, label) {
  const select = form.elements[name], levels = [...data.columns[name].levels].sort(natural);
  select.append(make("option", { value: "-1" }, label), ...levels.map((level) => make("option", { value: data.columns[name].levels.indexOf(level) }, level === "" ? "plain" : level)));
  select.parentElement.hidden = levels.length < 2;
}
for (const name of CHOICES) fill(name, "all");

/** Set filters, draw everything anew, and keep them in the address, so that a view can be sent to a co-author. */
function choose(changes, jump = false) {
  Object.assign(filter, changes);
  for (const name of CHOICES) form.elements[name].value = filter[name] === null ? "-1" : data.columns[name].levels.indexOf(filter[name]);
  for (const name of ["low", "high"]) if (form.elements[name] !== document.activeElement) form.elements[name].value = filter[name] ?? "";
  if (form.elements.text !== document.activeElement) form.elements.text.value = filter.text;
  form.elements.pairs.checked = filter.pairs;
  const kept = Object.entries(filter).filter(([, value]) => value !== null && value !== "" && value !== false);
  try {
    history.replaceState(null, "", location.href.split("#")[0] + (kept.length ? `#${new URLSearchParams(kept)}` : ""));
  } catch { /* a page inside another one may not change its address; only the link is lost */ }
  draw();
  if (jump) byId("trials").scrollIntoView();
}

function draw() {
  const trials = chosen();
  byId("count").textContent = trials.length === N ? `All ${N} trials` : `${trials.length} of ${N} trials`;
  drawOverview();
  drawMatrix();
  drawChart();
  drawGallery(trials);
}

const asNumber = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));
form.addEventListener("input", () => {
  const changes = Object.fromEntries(CHOICES.map((name) => [name, form.elements[name].value === "-1" ? null : data.columns[name].levels[form.elements[name].value]]));
  choose({ ...changes, low: asNumber(form.elements.low.value), high: asNumber(form.elements.high.value), text: form.elements.text.value, pairs: form.elements.pairs.checked });
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  choose({ ...Object.fromEntries(CHOICES.map((name) => [name, null])), low: null, high: null, text: "", pairs: false });
});

/** Filters that the address names; what the data does not have is passed over. */
function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const changes = {};
  for (const name of CHOICES) if (data.columns[name].levels.includes(wanted.get(name))) changes[name] = wanted.get(name);
  for (const name of ["low", "high"]) if (wanted.has(name)) changes[name] = asNumber(wanted.get(name));
  if (wanted.has("text")) changes.text = wanted.get("text");
  changes.pairs = wanted.get("pairs") === "true";
  return changes;
}

for (const note of data.notes) byId("notes").append(make("li", {}, note));
if (data.transfer) byId("how").append(make("p", { class: "how" }, `${data.transfer.how}.`), make("ul", { class: "how" }, ...data.transfer.notes.map((note) => make("li", {}, note))));
byId("how").hidden = !data.transfer;
for (const source of data.sources) {
  const state = source.status === "running" || (source.expected !== null && source.n < source.expected) ? `, ${source.n} of ${source.expected ?? "?"}, not finished` : `, ${source.n} trials`;
  byId("sources").append(make("details", {}, make("summary", {}, `${source.run} (${source.path}${state})`), make("pre", {}, source.facts)));
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", (event) => { event.preventDefault(); byId(link.hash.slice(1)).scrollIntoView(); });
addEventListener("scroll", scrolled, { passive: true });
addEventListener("resize", layout);
byId("gallery").addEventListener("keydown", galleryKey);
byId("detail").addEventListener("close", () => go(current));
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (byId("detail").open) {
    const by = { ArrowLeft: -1, ArrowRight: 1, k: -1, j: 1 }[event.key];
    if (by && units[current + by]) openDetail(units[current + by][0]);
  } else if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("filters").open = true;
    form.elements.text.focus();
  }
});

/** While a run goes on, ask the server whether there is more. Nothing is replaced under the reader's eyes. */
async function news() {
  try {
    const answer = await fetch("stamp");
    if (answer.ok && (await answer.text()) !== data.stamp) {
      byId("news").replaceChildren("There are new trials. ", make("button", { type: "button", onclick: () => location.reload() }, "Show them"));
      byId("news").hidden = false;
      return;
    }
  } catch { /* the server has ended; the page stays as it is */ }
  setTimeout(news, 3000);
}
if (data.stamp) setTimeout(news, 3000);

if (matchMedia("(max-width: 40rem)").matches) byId("filters").open = false;
choose(fromAddress());
