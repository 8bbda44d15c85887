// Questions to Prometheus, asked as Grafana asks them: its variables, steps that fit the width, times on the step.

const UNITS = { s: 1, m: 60, h: 3600, d: 86400, w: 604800 };
const STEPS = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/** Seconds of a duration such as 15s or 1h30m. */
export const duration = (text) =>
  [...text.matchAll(/(\d+)([smhdw])/g)].reduce((sum, [, count, unit]) => sum + count * UNITS[unit], 0);

/** The seconds since 1970 of Grafana's times: now, now-6h, or milliseconds. */
const moment = (text) => (text.startsWith("now") ? Date.now() / 1000 - duration(text.slice(3)) : Number(text) / 1000);
export const span = ({ from, to }) => ({ from: moment(from), to: moment(to) });

/** From when to when and how close the points are, for a panel of this width: a graph's stay where they are, a single value is of now. */
export function sampling({ from, to }, width, scrape, { single = false } = {}) {
  const raw = Math.max(scrape, (to - from) / Math.max(width, 100));
  const step = STEPS.find((candidate) => candidate >= raw) ?? Math.ceil(raw / 86400) * 86400;
  const grid = single ? scrape : step;
  const end = Math.floor(to / grid) * grid;
  return { from, to, scrape, step, start: end - Math.floor((end - from) / step) * step, end };
}

function expand(expression, { from, to, step, scrape }) {
  const values = {
    __rate_interval: Math.max(step + scrape, 4 * scrape),
    __interval: step,
    __range: Math.round(to - from),
  };
  return expression.replace(/\$(__\w+)/g, (all, name) => (name in values ? `${values[name]}s` : all));
}

async function ask(path, parameters, signal) {
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}?${new URLSearchParams(parameters)}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("This page's server does not answer. On the host: systemctl status mlops-grafana");
  }
  const document = await answer.json().catch(() => null);
  if (!document) throw new Error("Prometheus does not answer. On the host: systemctl status mlops-prometheus");
  if (document.status !== "success") throw new Error(`Prometheus refuses the query: ${document.error}`);
  return document.data.result;
}

const number = (text) => (Number.isFinite(Number(text)) ? Number(text) : null);
const name = (target, labels) =>
  target.legendFormat
    ? target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? "").trim()
    : JSON.stringify(labels);

/** The series of a panel's queries: each has a name, and a value or null for each step. */
export async function series(targets, asked, signal) {
  const { start, end, step, to } = asked;
  const answers = await Promise.all(
    targets.map((target) => {
      const query = expand(target.expr, asked);
      return target.instant ? ask("query", { query, time: to }, signal) : ask("query_range", { query, start, end, step }, signal);
    }),
  );
  return answers.flatMap((results, index) =>
    results.map((result) => {
      if (result.value) return { name: name(targets[index], result.metric), values: [number(result.value[1])] };
      const values = Array(Math.round((end - start) / step) + 1).fill(null);
      for (const [time, text] of result.values) values[Math.round((time - start) / step)] = number(text);
      return { name: name(targets[index], result.metric), values };
    }),
  );
}
