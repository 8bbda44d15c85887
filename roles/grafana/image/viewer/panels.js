// Panels as Grafana's JSON describes them. Each function draws into a body and returns how to let go of it.
import { format, parts } from "./units.js";

const Dygraph = window.Dygraph;
// Its legend writes styles into HTML, which the page's policy refuses; the panels have their own.
Dygraph.PLUGINS = [Dygraph.Plugins.Axes, Dygraph.Plugins.Grid];

// A canvas takes no variables of the style sheet, and no colour that depends on light and dark.
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;
const css = (name) => {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
};
const COLOURS = 8;
export const clock = (milliseconds, withDay) =>
  new Date(milliseconds).toLocaleString(undefined, {
    ...(withDay && { day: "numeric", month: "short" }), hour: "2-digit", minute: "2-digit", hourCycle: "h23",
  });

/** An element with its class, and children or text. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

const tip = document.getElementById("tip");
export const hideTip = () => { tip.hidden = true; };
export function showTip({ clientX, clientY }, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = clientX + 16 + width > innerWidth ? clientX - width - 16 : clientX + 16;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(clientY + 16, innerHeight - height - 8))}px`;
}

const last = (values) => values.findLast((value) => value !== null) ?? null;
const CALCS = {
  mean: (values) => values.reduce((sum, value) => sum + value, 0) / values.length,
  max: (values) => Math.max(...values),
  lastNotNull: (values) => values.at(-1),
};
const CALC_NAMES = { mean: "mean", max: "max", lastNotNull: "last" };

/** The text and the colour of a value, by mappings and thresholds. */
function shown(value, { mappings = [], thresholds, unit, decimals }) {
  const mapped = mappings.find(({ options }) => String(value) in options)?.options[String(value)];
  const step = thresholds.steps.findLast((each) => each.value === null || value >= each.value);
  const [text, suffix] = mapped ? [mapped.text, ""] : parts(value, unit, decimals);
  return { text, suffix, colour: `var(--${mapped?.color ?? step.color})` };
}

function swatch(colour) {
  const mark = element("i", "swatch");
  mark.style.background = colour;
  return mark;
}

function stat(body, panel, data) {
  const { textMode, graphMode } = panel.options;
  const tiles = element("div", data.length > 1 ? "tiles many" : "tiles");
  for (const { name, values } of data) {
    const value = last(values);
    if (value === null) continue;
    const { text, suffix, colour } = shown(value, panel.fieldConfig.defaults);
    const big = textMode === "name" ? element("b", "name", name) : element("b", "", text, suffix && element("small", "", suffix));
    const tile = element("div", "tile", data.length > 1 && textMode !== "name" ? element("span", "", name) : null, big);
    tile.style.color = colour;
    if (graphMode === "area" && values.length > 1) tile.append(sparkline(values));
    tiles.append(tile);
  }
  body.append(tiles);
}

function sparkline(values) {
  const real = values.filter((value) => value !== null);
  const low = Math.min(...real), high = Math.max(...real);
  const points = values.flatMap((value, index) =>
    value === null ? [] : [`${((index / (values.length - 1)) * 100).toFixed(2)} ${(high > low ? 30 - ((value - low) / (high - low)) * 28 : 29).toFixed(2)}`]);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 31");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const begin = points[0].split(" ")[0], end = points.at(-1).split(" ")[0];
  for (const [kind, path] of [["area", `M${begin} 31L${points.join("L")}L${end} 31Z`], ["line", `M${points.join("L")}`]]) {
    const drawn = document.createElementNS(svg.namespaceURI, "path");
    drawn.setAttribute("class", kind);
    drawn.setAttribute("d", path);
    svg.append(drawn);
  }
  return svg;
}

function bargauge(body, panel, data) {
  const { min = 0, max, unit, decimals } = panel.fieldConfig.defaults;
  const rows = data.map(({ name, values }) => ({ name, value: last(values) })).filter(({ value }) => value !== null);
  const top = max ?? Math.max(...rows.map(({ value }) => value));
  const list = element("ul", "bars");
  for (const { name, value } of rows) {
    const bar = element("i");
    bar.style.width = `${Math.min(100, Math.max(0, ((value - min) / (top - min || 1)) * 100))}%`;
    const row = element("li", "", element("span", "", name), element("b", "", format(value, unit, decimals)), element("div", "", bar));
    row.style.color = shown(value, panel.fieldConfig.defaults).colour;
    list.append(row);
  }
  body.append(list);
}

/** Calls back with the moment under the pointer, on every chart of the page, and with null when it left. */
function crosshair(plot, toTime, toX, move) {
  const line = element("i", "crosshair");
  line.hidden = true;
  plot.append(line);
  plot.addEventListener("pointermove", (event) => {
    const time = toTime(event.clientX - plot.getBoundingClientRect().left);
    document.dispatchEvent(new CustomEvent("crosshair", { detail: time }));
    move(event, time);
  });
  plot.addEventListener("pointerleave", () => {
    hideTip();
    document.dispatchEvent(new CustomEvent("crosshair", { detail: null }));
  });
  const follow = ({ detail }) => {
    line.hidden = detail === null;
    if (detail !== null) line.style.transform = `translateX(${toX(detail)}px)`;
  };
  document.addEventListener("crosshair", follow);
  return () => document.removeEventListener("crosshair", follow);
}

function statetimeline(body, panel, data, { from, to, start, step }) {
  const states = new Map();
  const names = element("div", "names"), tracks = element("div", "tracks");
  const place = (time) => ((time - from) / (to - from)) * 100;
  for (const { name, values } of data) {
    const track = element("div", "track");
    let segment;
    values.forEach((value, index) => {
      if (value === null) { segment = undefined; return; }
      if (segment?.value !== value) {
        const state = shown(value, panel.fieldConfig.defaults);
        states.set(state.text, state.colour);
        segment = { value, begin: start + index * step, bar: element("i") };
        segment.bar.style.background = state.colour;
        track.append(segment.bar);
      }
      const begin = Math.max(0, place(segment.begin - step));
      segment.bar.style.left = `${begin}%`;
      segment.bar.style.width = `${place(start + index * step) - begin}%`;
    });
    names.append(element("span", "", name));
    tracks.append(track);
  }
  const axis = element("div", "axis");
  const every = [60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800].find((gap) => (to - from) / gap <= body.clientWidth / 95) ?? 604800;
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  for (let time = Math.ceil((from - offset) / every) * every + offset; time < to; time += every) {
    // A label that the edge would cut is left out.
    if (Math.min(place(time), 100 - place(time)) < 5) continue;
    const label = element("span", "", clock(time * 1000, every >= 86400));
    label.style.left = `${place(time)}%`;
    axis.append(label);
  }
  const legend = element("div", "states", ...[...states].map(([text, colour]) => element("span", "", swatch(colour), text)));
  body.append(element("div", "timeline", names, tracks, element("div"), axis), legend);
  return crosshair(
    tracks,
    (x) => (from + (x / tracks.clientWidth) * (to - from)) * 1000,
    (time) => (place(time / 1000) / 100) * tracks.clientWidth,
    (event, time) => {
      const index = Math.ceil((time / 1000 - start) / step);
      const rows = data.flatMap(({ name, values }) => {
        if ((values[index] ?? null) === null) return [];
        const { text, colour } = shown(values[index], panel.fieldConfig.defaults);
        return [element("tr", "", element("td", "", swatch(colour), name), element("td", "", text))];
      });
      showTip(event, element("time", "", clock(time, true)), element("table", "", ...rows));
    },
  );
}

function timeseries(body, panel, data, asked, { annotations, zoom, hidden }) {
  const { unit, decimals, min = null, max = null, thresholds, custom } = panel.fieldConfig.defaults;
  const { start, end, step, from, to } = asked;
  const lines = data.map((each, index) => ({ ...each, colour: css(`series-${(index % COLOURS) + 1}`), real: each.values.filter((value) => value !== null) }))
    .filter(({ real }) => real.length);
  const stacked = custom.stacking?.mode === "normal";
  // Dygraphs stacks from the last series up, Grafana from the first.
  const order = stacked ? lines.toReversed() : lines;
  const visible = ({ name }) => !hidden.has(name);
  const rows = Array.from({ length: Math.round((end - start) / step) + 1 }, (_, index) =>
    [new Date((start + index * step) * 1000), ...order.map(({ values }) => values[index])]);
  const plot = element("div", "plot");
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", panel.title);
  const legend = element("table", "legend");
  body.append(plot, element("div", "scroll", legend));

  const graph = new Dygraph(plot, rows, {
    labels: ["time", ...order.map(({ name }, index) => `${index} ${name}`)],
    colors: order.map(({ colour }) => colour),
    visibility: order.map(visible),
    dateWindow: [from * 1000, to * 1000],
    valueRange: [min, max],
    labelsKMG2: unit === "bytes",
    stackedGraph: stacked,
    fillGraph: custom.fillOpacity > 0,
    fillAlpha: custom.fillOpacity / 100,
    strokeWidth: custom.lineWidth * 1.5,
    gridLineColor: css("line"),
    axisLineColor: css("line"),
    axisLabelFontSize: 11,
    axes: {
      // The first label would touch those of the other axis.
      x: {
        pixelsPerLabel: 70, drawGrid: false,
        axisLabelFormatter: (date, ...more) => (date / 1000 - from < (to - from) * 0.05 ? "" : Dygraph.dateAxisLabelFormatter(date, ...more)),
      },
      y: { axisLabelWidth: 62, pixelsPerLabel: 24, axisLabelFormatter: (value) => format(value, unit, decimals) },
    },
    highlightCircleSize: 3,
    interactionModel: {},
    underlayCallback(canvas, area, drawn) {
      canvas.save();
      canvas.lineWidth = 1;
      const rule = (colour, dash, x1, y1, x2, y2) => {
        canvas.strokeStyle = colour;
        canvas.setLineDash(dash);
        canvas.beginPath();
        canvas.moveTo(x1, y1);
        canvas.lineTo(x2, y2);
        canvas.stroke();
      };
      for (const { value, color } of custom.thresholdsStyle?.mode === "dashed" ? thresholds.steps : []) {
        const y = value === null ? -1 : drawn.toDomYCoord(value);
        if (y >= area.y && y <= area.y + area.h) rule(css(color), [6, 5], area.x, y, area.x + area.w, y);
      }
      for (const { time, colour } of annotations) {
        const x = drawn.toDomXCoord(time * 1000);
        if (x >= area.x && x <= area.x + area.w) rule(css(colour), [], x, area.y, x, area.y + area.h);
      }
      canvas.restore();
    },
  });

  legend.append(element("thead", "", element("tr", "", element("th"), ...panel.options.legend.calcs.map((calc) => element("th", "", CALC_NAMES[calc])))));
  const keys = lines.map((line) => {
    const key = element("button", "", swatch(line.colour), element("span", "", line.name));
    key.type = "button";
    key.title = `${line.name}: only this, or all`;
    key.addEventListener("click", () => {
      const alone = visible(line) && lines.every((other) => other === line || !visible(other));
      hidden.clear();
      if (!alone) lines.filter((other) => other.name !== line.name).forEach(({ name }) => hidden.add(name));
      graph.updateOptions({ visibility: order.map(visible) });
      keys.forEach((row, index) => row.classList.toggle("off", !visible(lines[index])));
    });
    const row = element("tr", visible(line) ? "" : "off", element("td", "", key),
      ...panel.options.legend.calcs.map((calc) => element("td", "", format(CALCS[calc](line.real), unit, decimals))));
    return row;
  });
  legend.append(element("tbody", "", ...keys));

  const release = crosshair(
    plot,
    (x) => Math.min(Math.max(graph.toDataXCoord(x), from * 1000), to * 1000),
    (time) => graph.toDomXCoord(time),
    (event, time) => {
      const index = Math.min(rows.length - 1, Math.max(0, Math.round((time / 1000 - start) / step)));
      const values = lines.filter(visible).map((line) => ({ ...line, value: line.values[index] })).filter(({ value }) => value !== null);
      const found = values.sort((one, other) => other.value - one.value).slice(0, 12)
        .map(({ name, colour, value }) => element("tr", "", element("td", "", swatch(colour), name), element("td", "", format(value, unit, decimals))));
      const switched = annotations.filter((each) => Math.abs(each.time - time / 1000) < (to - from) / 100)
        .map((each) => element("p", "", swatch(css(each.colour)), each.name));
      showTip(event, element("time", "", clock(rows[index][0], true)), element("table", "", ...found), ...switched);
    },
  );
  const observer = new ResizeObserver(() => plot.clientWidth && graph.resize());
  observer.observe(plot);
  drag(plot, (x1, x2) => zoom(Math.round(graph.toDataXCoord(x1)), Math.round(graph.toDataXCoord(x2))));
  return () => {
    release();
    observer.disconnect();
    graph.destroy();
  };
}

/** Calls back with the two ends of what the mouse selects. */
function drag(plot, selected) {
  const area = element("i", "selection");
  area.hidden = true;
  plot.append(area);
  let begin = null;
  const at = (event) => event.clientX - plot.getBoundingClientRect().left;
  plot.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    event.preventDefault();
    begin = at(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    if (begin === null) return;
    area.hidden = false;
    area.style.left = `${Math.min(begin, at(event))}px`;
    area.style.width = `${Math.abs(at(event) - begin)}px`;
  });
  plot.addEventListener("pointerup", (event) => {
    if (begin === null) return;
    const ends = [begin, at(event)].sort((one, other) => one - other);
    begin = null;
    area.hidden = true;
    if (ends[1] - ends[0] > 8) selected(...ends);
  });
}

export const GRAPHS = new Set(["timeseries", "state-timeline"]);
export const PANELS = { stat, bargauge, timeseries, "state-timeline": statetimeline };
