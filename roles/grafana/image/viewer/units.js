// Values as people read them, by the names of Grafana's units.

const scaled = (base, prefixes, unit) => (value) => {
  const power = Math.min(prefixes.length - 1, Math.max(0, Math.floor(Math.log(Math.abs(value) || 1) / Math.log(base))));
  return [value / base ** power, prefixes[power] + unit];
};
const si = (unit) => scaled(1000, ["", "k", "M", "G", "T"], unit);
const rate = (word) => scaled(1000, ["", "k ", "M ", "G ", "T "], word);

const TIMES = [[31536000, "years"], [86400, "days"], [3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "µs"]];
const seconds = (value) => {
  const [size, name] = TIMES.find(([least]) => Math.abs(value) >= least) ?? (value ? TIMES.at(-1) : [1, "s"]);
  return [value / size, name];
};

export const UNITS = {
  none: (value) => [value, ""],
  short: si(""),
  percentunit: (value) => [value * 100, "%"],
  s: seconds,
  bytes: scaled(1024, ["B", "KiB", "MiB", "GiB", "TiB"], ""),
  Bps: si("B/s"),
  reqps: rate("req/s"),
  rowsps: rate("rows/s"),
  ops: rate("ops/s"),
  pps: rate("p/s"),
};

// Three digits that count, unless the dashboard says how many stand after the point.
function digits(value, decimals) {
  const wanted = decimals ?? Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 100))));
  const text = value.toFixed(wanted);
  return decimals === undefined && text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** The number and its unit, apart. */
export function parts(value, unit, decimals) {
  const [number, suffix] = UNITS[unit](value);
  return [digits(number, decimals), suffix];
}

export function format(value, unit, decimals) {
  if (value === null) return "–";
  const [number, suffix] = parts(value, unit, decimals);
  return /^(?:[%kMGT](?: |$)|$)/.test(suffix) ? number + suffix : `${number} ${suffix}`;
}
