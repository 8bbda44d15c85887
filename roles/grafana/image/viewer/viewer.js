// The page around the panels: which dashboard, from when to when, how often.
import { GRAPHS, PANELS, clock, element, hideTip, showTip } from "./panels.js";
import { duration, sampling, series, span } from "./prometheus.js";

const SPANS = ["5m", "15m", "1h", "6h", "24h", "7d"];
const REFRESHES = ["", "10s", "30s", "1m", "5m"];
const $ = (selector) => document.querySelector(selector);
const json = async (path) => {
  const answer = await fetch(`/viewer/${path}`);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
};

let settings, dashboards, dashboard, timer, asking;
let cards = [];

const parameters = () => new URLSearchParams(location.search);
const range = () => ({ from: parameters().get("from") ?? dashboard.time.from, to: parameters().get("to") ?? dashboard.time.to });
const refresh = () => parameters().get("refresh") ?? dashboard.refresh;

/** The address of a dashboard that keeps what the present one says about time. */
function address(uid, changes = {}) {
  const kept = parameters();
  for (const [name, value] of Object.entries(changes)) value === null ? kept.delete(name) : kept.set(name, value);
  return `/d/${uid}${kept.size ? `?${kept}` : ""}`;
}

function go(url) {
  history.pushState(null, "", url);
  show();
}

/** What the dashboard wants marked on every graph: the first moment of each time its query gives something. */
async function marks(asked, signal) {
  const wanted = dashboard.annotations.list.filter((each) => each.enable && each.expr);
  const found = await Promise.all(wanted.map(async ({ expr, name, iconColor }) => {
    const data = await series([{ expr, legendFormat: name }], asked, signal).catch(() => []);
    return data.flatMap(({ values }) => values.flatMap((value, index) =>
      value !== null && (values[index - 1] ?? null) === null ? [{ time: asked.start + index * asked.step, name, colour: iconColor }] : []));
  }));
  return found.flat();
}

/** Ask for everything anew and draw what comes, each panel as soon as it can be. */
async function update() {
  clearTimeout(timer);
  asking?.abort();
  const { signal } = (asking = new AbortController());
  const spans = span(range());
  const scrape = duration(settings.scrape_interval);
  const annotations = marks(sampling(spans, innerWidth, scrape), signal);
  await Promise.all(cards.map(async (card) => {
    try {
      const asked = sampling(spans, card.body.clientWidth, scrape, { single: !GRAPHS.has(card.panel.type) });
      const data = await series(card.panel.targets, asked, signal);
      const marked = card.panel.type === "timeseries" ? await annotations : [];
      if (!signal.aborted) card.last = () => draw(card, data, asked, marked);
    } catch (error) {
      if (signal.aborted) return;
      card.last = () => say(card, "error", error.message);
    }
    if (!signal.aborted) card.last();
  }));
  if (signal.aborted) return;
  $("#about time").textContent = range().to === "now"
    ? `as of ${new Date(spans.to * 1000).toLocaleTimeString(undefined, { hourCycle: "h23" })}`
    : `${clock(spans.from * 1000, true)} – ${clock(spans.to * 1000, true)}`;
  if (refresh() && !document.hidden) timer = setTimeout(update, duration(refresh()) * 1000);
}

function clear(card) {
  card.release?.();
  card.release = undefined;
  card.body.replaceChildren();
}

function say(card, state, text) {
  clear(card);
  card.body.append(element("p", "none", text));
  card.root.dataset.state = state;
}

function draw(card, data, asked, annotations) {
  const { panel, body, root, hidden } = card;
  if (!data.some(({ values }) => values.some((value) => value !== null))) return say(card, "empty", panel.fieldConfig.defaults.noValue ?? "no data");
  const scrolled = body.querySelector(".scroll")?.scrollTop;
  clear(card);
  card.release = PANELS[panel.type](body, panel, data, asked, { annotations, hidden, zoom: (from, to) => go(address(dashboard.uid, { from, to })) });
  if (scrolled) body.querySelector(".scroll")?.scrollTo(0, scrolled);
  root.dataset.state = "data";
  if (!performance.getEntriesByName("first-picture").length) requestAnimationFrame(() => performance.mark("first-picture"));
}

function card(panel) {
  const heading = element("h3", "", panel.title);
  const title = element("div", "title", heading);
  if (panel.description) {
    const about = element("button", "about", "i");
    about.type = "button";
    about.setAttribute("aria-label", panel.description);
    const tell = () => {
      const { left, bottom } = about.getBoundingClientRect();
      showTip({ clientX: left - 16, clientY: bottom - 8 }, element("p", "", panel.description));
    };
    for (const event of ["pointerenter", "focus", "click"]) about.addEventListener(event, tell);
    for (const event of ["pointerleave", "blur"]) about.addEventListener(event, hideTip);
    title.append(about);
  }
  for (const { title: text, url } of panel.links ?? []) {
    const link = element("a", "more", text);
    const { from, to } = range();
    link.href = url.replace("${__url_time_range}", () => new URLSearchParams({ from, to }));
    title.append(link);
  }
  const body = element("div", "body");
  const root = element("section", `panel ${panel.type}`, title, body);
  Object.assign(root.dataset, { panel: panel.id, state: "loading" });
  return { panel, root, body, hidden: new Set() };
}

/** Lay out the dashboard of the address, with everything around it. */
function show() {
  hideTip();
  cards.forEach(clear);
  const uid = location.pathname.split("/")[2];
  dashboard = dashboards.find((each) => each.uid === uid) ?? dashboards[0];
  document.title = dashboard.title;
  $("#about span").textContent = dashboard.description;
  const { from, to } = range();
  $("nav").replaceChildren(...dashboards.map((each) => {
    const link = element("a", "", each.title);
    link.href = address(each.uid);
    if (each === dashboard) link.setAttribute("aria-current", "page");
    return link;
  }));
  $(".spans").replaceChildren(...SPANS.map((text) => {
    const button = element("button", "", text);
    button.type = "button";
    button.setAttribute("aria-pressed", from === `now-${text}` && to === "now");
    const own = dashboard.time.from === `now-${text}`;
    button.title = `The last ${text}${own ? ", as this dashboard opens" : ""}`;
    button.addEventListener("click", () => go(address(dashboard.uid, own ? { from: null, to: null } : { from: `now-${text}`, to: "now" })));
    return button;
  }));
  $("#refresh").replaceChildren(...[...new Set([...REFRESHES, refresh()])].map((text) => new Option(text ? `every ${text}` : "by hand", text, false, text === refresh())));
  cards = [];
  $("#grid").replaceChildren(...dashboard.panels.map((panel) => {
    if (panel.type === "row") return element("h2", "", panel.title);
    const made = card(panel);
    const { x, w, h } = panel.gridPos;
    made.root.style.setProperty("--column", `${x + 1} / span ${w}`);
    made.root.style.setProperty("--height", h);
    if (w <= 8) made.root.classList.add("narrow");
    cards.push(made);
    return made.root;
  }));
  update();
}

function paint(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  cards.forEach((each) => each.last?.());
}

const dark = matchMedia("(prefers-color-scheme: dark)");
paint(localStorage.getItem("theme"));
dark.addEventListener("change", () => paint());
$("#theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  localStorage.setItem("theme", next);
  paint(next);
});
$("#refresh").addEventListener("change", ({ target }) => go(address(dashboard.uid, { refresh: target.value === dashboard.refresh ? null : target.value })));
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/d/']");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(link.href);
  scrollTo(0, 0);
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : update()));
addEventListener("popstate", show);

try {
  const [known, files] = await Promise.all([json("settings.json"), json("dashboards/")]);
  settings = known;
  const loaded = await Promise.all(files.map(async ({ name }) => ({ name, ...(await json(`dashboards/${name}`)) })));
  const home = ({ name }) => name !== settings.home;
  dashboards = loaded.sort((one, other) => home(one) - home(other) || one.title.localeCompare(other.title));
  show();
} catch (error) {
  $("#grid").replaceChildren(element("p", "none", `The dashboards cannot be read (${error.message}). On the host: systemctl status mlops-grafana`));
}
