/* Asks the model that is served: a form made from its input example and signature, and the answer. */

const INPUT_KEYS = ["dataframe_split", "dataframe_records", "inputs", "instances"];
const INTEGERS = ["integer", "long"];
const NUMBERS = [...INTEGERS, "float", "double"];
const SCALARS = [...NUMBERS, "boolean", "string", "datetime", "binary"];
const MOST_FIELDS = 400;
const EXAMPLE_ROWS = 3;
const SHOWN_ROWS = 200;
const SHOWN_COLUMNS = 40;
const LOOK_AGAIN_MS = 3000;

const $ = (id) => document.getElementById(id);
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isScalar = (value) => value === null || typeof value !== "object";
const isRecord = (value) => isObject(value) && Object.values(value).every(isScalar);
const isFilled = (list, test) => Array.isArray(list) && list.length > 0 && list.every(test);

const tabs = [...document.querySelectorAll("[role=tab]")];

let model = null;
let form = null;
let mode = "json";
let signature;
let lastId = 0;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** JSON with a line for what fits on one, and for each list of numbers. */
function pretty(value, pad = "") {
  if (isScalar(value)) return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Object.entries(value).map(
    ([key, item]) => (open === "{" ? `${JSON.stringify(key)}: ` : "") + pretty(item, `${pad}  `),
  );
  const line = open + items.join(", ") + close;
  const flat = open === "[" && value.every((item) => typeof item === "number");
  if (flat || (pad.length + line.length <= 76 && !line.includes("\n"))) return line;
  return `${open}\n${pad}  ${items.join(`,\n${pad}  `)}\n${pad}${close}`;
}

/** The value of JSON; undefined when it is none. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// --- what is served -------------------------------------------------------------------------------------------------

function typeOf(column) {
  if (column.type === "tensor") return `${column["tensor-spec"].dtype} [${column["tensor-spec"].shape.join(", ")}]`;
  if (column.type === "array") return `list of ${typeOf(column.items)}`;
  if (column.type === "map") return `map of ${typeOf(column.values)}`;
  if (column.type === "object") return `{${Object.keys(column.properties).join(", ")}}`;
  return column.type;
}

function signatureTable(title, columns) {
  const rows = columns.map((column) => {
    const notes = [column.required === false && "optional"];
    if (column.default !== undefined) notes.push(`default ${JSON.stringify(column.default)}`);
    const type = [typeOf(column), ...notes.filter(Boolean)].join(", ") + (column.shape ? ", a list" : "");
    if (column.name === undefined) return make("tr", {}, make("td", { colSpan: 2, textContent: type }));
    return make("tr", {}, make("th", { scope: "row", textContent: column.name }), make("td", { textContent: type }));
  });
  const table = make("table", {}, make("caption", { textContent: title }), make("tbody", {}, ...rows));
  return make("div", { className: "scroll", tabIndex: 0, ariaLabel: title, role: "region" }, table);
}

function describe() {
  const since = make("time", { dateTime: model.loaded_since, title: model.loaded_since });
  const style = { dateStyle: "medium", timeStyle: "short" };
  since.textContent = new Date(model.loaded_since).toLocaleString(undefined, style);
  const { name, version, run_id: run, mlflow_version: mlflow } = model;
  const facts = { Model: name, Version: version, Since: since, Run: run, MLflow: mlflow };
  const known = Object.entries(facts).filter(([, value]) => value);
  const lines = known.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]);
  $("facts").replaceChildren(...lines);
  const { doubt, rejected } = model;
  const warnings = [doubt && `Doubtful: ${doubt}.`, rejected && `Not the champion: ${rejected}.`];
  const notes = warnings.filter(Boolean).map((text) => make("p", { className: "note", textContent: text }));
  $("warnings").replaceChildren(...notes);
  const { inputs, params, outputs } = model.signature ?? {};
  const parts = { Inputs: inputs, Params: params, Outputs: outputs };
  const tables = Object.entries(parts).filter(([, columns]) => Array.isArray(columns) && columns.length);
  if (tables.length === 0) tables.push(["No signature", []]);
  $("signature").replaceChildren(...tables.map(([title, columns]) => signatureTable(title, columns)));
  $("name").textContent = model.name;
  $("version").textContent = `version ${model.version}`;
  document.title = `${model.name}, version ${model.version}`;
}

function setState(name, text) {
  $("state").className = `state ${name}`;
  $("state").textContent = text;
}

async function look() {
  let response, found;
  try {
    response = await fetch("model");
    found = await response.json();
  } catch {
    response = { ok: false };
    found = { message: "The server does not answer." };
  }
  $("absence").hidden = response.ok;
  $("version").hidden = $("about").hidden = $("form").hidden = !response.ok;
  if (!response.ok) {
    model = null;
    setState("absent", "Not serving");
    $("reason").textContent = found.message;
    setTimeout(look, LOOK_AGAIN_MS);
    return;
  }
  model = found;
  setState("serving", "Serving");
  describe();
  // What was typed for another version is kept where it still fits.
  const former = signature;
  signature = JSON.stringify(found.signature);
  if (signature !== former) reset();
}

// --- the form -------------------------------------------------------------------------------------------------------

function field(column, value, title) {
  const id = `field-${++lastId}`;
  const properties = { id, className: "value" };
  const optional = column.required === false;
  let input;
  if (column.type === "boolean") {
    const options = optional || typeof value !== "boolean" ? ["", "true", "false"] : ["true", "false"];
    const shown = options.map((text) => make("option", { value: text, textContent: text || "–" }));
    input = make("select", properties, ...shown);
  } else if (NUMBERS.includes(column.type)) {
    const whole = INTEGERS.includes(column.type);
    // Beyond this, what a browser reads of a number is not what was typed.
    const bounds = whole ? { min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER } : {};
    input = make("input", { ...properties, type: "number", step: whole ? "1" : "any", ...bounds });
  } else if (String(value ?? "").length > 90 || /\n/.test(value)) {
    input = make("textarea", { ...properties, rows: 4 });
  } else {
    input = make("input", { ...properties, type: "text", autocomplete: "off" });
  }
  input.value = value ?? "";
  if (column.default !== undefined) input.placeholder = `default: ${JSON.stringify(column.default)}`;
  input.required = !optional && !column.nullable && column.type !== "string";
  const name = make("span", {}, ...title.split(/(?<=[_/.])/).flatMap((part) => [part, make("wbr")]));
  const kind = make("span", { className: "kind", textContent: typeOf(column) + (optional ? ", optional" : "") });
  const read = () => {
    const text = input.value;
    if (text === "") return column.type === "string" && !optional ? "" : null;
    if (column.json) return parsed(text) ?? text;
    if (column.type === "boolean") return text === "true";
    return NUMBERS.includes(column.type) ? Number(text) : text;
  };
  const label = make("label", { htmlFor: id }, name, " ", kind);
  return { element: make("div", { className: "field" }, label, input), read, input };
}

/** The input as a table: its columns, its rows, and how to write rows again; or null when it is none. */
function tableOf(key, data) {
  const known = (Array.isArray(model.signature?.inputs) && model.signature.inputs) || [];
  let names, rows, write;
  if (key === "dataframe_split" && isObject(data) && isFilled(data.data, Array.isArray)) {
    names = data.columns ?? data.data[0].map((_, index) => index);
    rows = data.data;
    write = (columns, values) => ({ ...(data.columns && { columns: columns.map(({ name }) => name) }), data: values });
  } else if (isFilled(data, isRecord)) {
    names = [...new Set(data.flatMap(Object.keys))];
    rows = data.map((record) => names.map((name) => record[name] ?? null));
    const record = (columns, row) => Object.fromEntries(columns.map(({ name }, index) => [name, row[index]]));
    write = (columns, values) => values.map((row) => record(columns, row));
  } else if (isFilled(data, isScalar) && known.length <= 1) {
    names = [known[0]?.name];
    rows = data.map((value) => [value]);
    write = (_, values) => values.map(([value]) => value);
  } else {
    return null;
  }
  const columns = names.map((name, index) => {
    const sample = rows.find((row) => row[index] !== null)?.[index];
    const guess = { type: { number: "double", boolean: "boolean" }[typeof sample] ?? "string" };
    const unnamed = known.length === names.length ? known[index] : undefined;
    const column = known.find((one) => one.name === name) ?? unnamed ?? guess;
    return { ...column, name, nullable: rows.some((row) => row[index] === null) };
  });
  for (const column of known) {
    if (column.required === false && column.name !== undefined && !names.includes(column.name)) columns.push(column);
  }
  const fits = rows.every((row) => row.every(isScalar)) && columns.every(({ type }) => SCALARS.includes(type));
  return fits && rows.length * columns.length <= MOST_FIELDS ? { columns, rows, write } : null;
}

/** A form filled with a body; null when there is no form for such a body. */
function formOf(body) {
  const key = isObject(body) ? INPUT_KEYS.find((one) => one in body) : undefined;
  const table = key && tableOf(key, body[key]);
  if (!table) return null;
  const { columns } = table;
  const alone = columns.length === 1;
  const rows = [];
  const list = make("div", { className: "rows" });

  const number = () => {
    rows.forEach((row, index) => {
      const title = alone ? (columns[0].name ?? "Input") : "Row";
      row.title.textContent = alone && rows.length === 1 ? title : `${title} ${index + 1}`;
      row.remove.hidden = rows.length === 1;
      row.remove.ariaLabel = `Remove ${row.title.textContent}`;
    });
  };
  const add = (values) => {
    const fields = columns.map((column, index) => field(column, values[index] ?? null, String(column.name ?? "Input")));
    const remove = make("button", { type: "button", className: "remove", textContent: "×" });
    const title = alone ? fields[0].element.querySelector("span") : make("legend");
    const element = make(alone ? "div" : "fieldset", { className: alone ? "row alone" : "row" });
    if (!alone) element.append(title);
    element.append(make("div", { className: "fields" }, ...fields.map(({ element }) => element)), remove);
    const row = { element, title, remove, fields };
    remove.addEventListener("click", () => {
      rows.splice(rows.indexOf(row), 1);
      element.remove();
      number();
      rows[0].fields[0].input.focus();
    });
    rows.push(row);
    list.append(element);
    number();
  };
  table.rows.forEach(add);
  const more = make("button", { type: "button", className: "plain" });
  more.textContent = alone ? "Add an input" : "Add a row";
  more.addEventListener("click", () => {
    add(alone ? [] : rows.at(-1).fields.map(({ read }) => read()));
    rows.at(-1).fields[0].input.focus();
  });
  const params = (model.signature?.params ?? []).map((param) => {
    const given = body.params?.[param.name];
    const nested = Boolean(param.shape) || !SCALARS.includes(param.type);
    const column = { ...param, type: nested ? "JSON" : param.type, json: nested, required: false };
    const value = nested && given !== undefined ? JSON.stringify(given) : given;
    return [param.name, field(column, value, param.name)];
  });
  const elements = [list, more];
  if (params.length) {
    const inputs = make("div", { className: "fields" }, ...params.map(([, { element }]) => element));
    elements.push(make("fieldset", { className: "row" }, make("legend", { textContent: "Params" }), inputs));
  }
  const read = () => {
    const values = rows.map(({ fields }) => fields.map(({ read }) => read()));
    // An optional column that nobody filled in is not there.
    const isThere = (index) => columns[index].required !== false || values.some((row) => row[index] !== null);
    const keep = (list) => list.filter((_, index) => isThere(index));
    const given = params.map(([name, { read }]) => [name, read()]).filter(([, value]) => value !== null);
    const made = { [key]: table.write(keep(columns), values.map(keep)) };
    return given.length ? { ...made, params: Object.fromEntries(given) } : made;
  };
  return { elements, read };
}

/** The body to begin with: the model's example, or one of its columns where it has none. */
function example() {
  const body = structuredClone(model.input_example);
  if (body) {
    const key = INPUT_KEYS.find((one) => one in body);
    const split = key === "dataframe_split";
    const rows = split ? body[key].data : body[key];
    if (Array.isArray(rows) && rows.length > EXAMPLE_ROWS) {
      note(`These are ${EXAMPLE_ROWS} of the example's ${rows.length} rows.`);
      body[key] = split ? { ...body[key], data: rows.slice(0, EXAMPLE_ROWS) } : rows.slice(0, EXAMPLE_ROWS);
    }
    return body;
  }
  const columns = model.signature?.inputs ?? [];
  const empty = ({ type }) => (NUMBERS.includes(type) ? 0 : type === "boolean" ? false : "");
  if (columns.length && columns.every(({ type, name }) => SCALARS.includes(type) && name !== undefined)) {
    return { dataframe_split: { columns: columns.map(({ name }) => name), data: [columns.map(empty)] } };
  }
  return { inputs: columns.length === 1 && SCALARS.includes(columns[0].type) ? [empty(columns[0])] : [] };
}

function note(text) {
  $("note").textContent = text;
  $("note").hidden = text === "";
}

function reset() {
  note("");
  const body = example();
  write(body);
  const made = formOf(body);
  $("tab-form").hidden = made === null;
  mode = "json";
  if (made) fill(made);
  select(mode);
}

function fill(made) {
  form = made;
  mode = "form";
  $("panel-form").replaceChildren(...form.elements);
}

function write(body) {
  const text = pretty(body);
  $("body").value = text;
  $("body").rows = Math.min(Math.max(text.split("\n").length + 1, 5), 24);
}

function bodyText() {
  return mode === "form" ? JSON.stringify(form.read()) : $("body").value;
}

function select(name) {
  if (name === "json" && mode === "form") {
    write(form.read());
    mode = "json";
  } else if (name === "form" && mode === "json") {
    const made = formOf(parsed($("body").value));
    note(made ? "" : "There is no form for this body. It can be sent as it is.");
    if (!made) return;
    fill(made);
  } else if (name === "curl") {
    const quoted = bodyText().replaceAll("'", `'\\''`);
    const url = new URL("invocations", location.href).href;
    $("command").value = `curl ${url} \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
  }
  // A browser would not say what is wrong with a field that is not shown.
  $("form").noValidate = name !== "form";
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.ariaSelected = String(chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`panel-${tab.id.slice(4)}`).hidden = !chosen;
  }
}

// --- the answer -----------------------------------------------------------------------------------------------------

function cell(value) {
  const number = typeof value === "number";
  const text = number ? Number(Math.abs(value) < 1000 ? value.toPrecision(6) : value.toFixed(3)) : value;
  const shown = isScalar(value) ? String(text) : JSON.stringify(value);
  return make("td", { className: number ? "number" : "", textContent: shown });
}

function table(headings, rows, caption = "") {
  const head = make("tr", {}, ...headings.map((text) => make("th", { scope: "col", textContent: text })));
  const body = rows.slice(0, SHOWN_ROWS).map((row) => make("tr", {}, ...row.map(cell)));
  const element = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  const cut = rows.length > SHOWN_ROWS ? `the first ${SHOWN_ROWS} of ${rows.length} rows` : "";
  const title = [caption, cut].filter(Boolean).join(": ");
  if (title) element.prepend(make("caption", { textContent: title }));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: title || "Predictions" }, element);
}

function records(list, caption) {
  if (list.length === 0) return make("p", { className: "quiet", textContent: `${caption}: nothing found.` });
  const names = [...new Set(list.flatMap(Object.keys))];
  return table(names, list.map((record) => names.map((name) => record[name] ?? null)), caption);
}

/** The predictions as tables or a text, or nothing when they are of another form. */
function rendered(predictions, asked) {
  if (typeof predictions === "string") return [make("p", { className: "words", textContent: predictions })];
  if (isFilled(predictions, isObject)) return [records(predictions)];
  if (isFilled(predictions, (list) => Array.isArray(list) && list.every(isObject))) {
    return predictions.map((list, index) => records(list, asked[index] ?? `Input ${index + 1}`));
  }
  if (isFilled(predictions, isScalar)) {
    return [table(["row", "prediction"], predictions.map((value, index) => [index + 1, value]))];
  }
  const isRow = (row) => isFilled(row, isScalar) && row.length <= SHOWN_COLUMNS;
  if (isFilled(predictions, isRow)) {
    const width = Math.max(...predictions.map((row) => row.length));
    return [table([...Array(width).keys()], predictions)];
  }
  return [];
}

async function ask() {
  const body = bodyText();
  const began = performance.now();
  $("ask").disabled = true;
  $("ask").textContent = "Asking …";
  let response, text;
  try {
    response = await fetch("invocations", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    text = await response.text();
  } catch {
    response = { ok: false, status: "", statusText: "no answer", headers: new Headers() };
    text = JSON.stringify({ message: "The server does not answer." });
  }
  const took = performance.now() - began;
  $("ask").disabled = false;
  $("ask").textContent = "Ask the model";
  show(response, text, took, body);
  if ((response.headers.get("X-Model-Version") ?? model.version) !== model.version) look();
}

function show(response, text, took, body) {
  const answer = parsed(text);
  let shown = [];
  if (response.ok) {
    const asked = parsed(body)?.inputs;
    shown = rendered(answer?.predictions ?? answer, isFilled(asked, (one) => typeof one === "string") ? asked : []);
  } else if (answer?.message) {
    shown = [make("p", { className: "words", textContent: answer.message })];
    if (answer.detail) shown.push(make("pre", { textContent: answer.detail }));
  }
  const version = response.headers.get("X-Model-Version");
  $("status").className = response.ok ? "badge good" : "badge bad";
  const meaning = answer?.error_code ?? (response.statusText || "OK");
  $("status").textContent = [response.status, meaning].filter(Boolean).join(" ");
  $("time").textContent = `${took < 10 ? took.toFixed(1) : took.toFixed(0)} ms${version ? `, version ${version}` : ""}`;
  $("request").textContent = response.headers.get("X-Request-Id") ?? "–";
  $("shown").replaceChildren(...shown);
  $("text").textContent = answer === undefined ? text : pretty(answer);
  $("raw").open = shown.length === 0;
  $("answer").hidden = false;
}

// --- what the page does by itself and when it is asked --------------------------------------------------------------

for (const tab of tabs) {
  tab.addEventListener("click", () => select(tab.id.slice(4)));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const there = tabs.filter(({ hidden }) => !hidden);
    const next = there[(there.indexOf(tab) + step + there.length) % there.length];
    select(next.id.slice(4));
    next.focus();
  });
}
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("reset").addEventListener("click", reset);
$("copy").addEventListener("click", () => {
  $("command").select();
  // The newer way is there with TLS only.
  document.execCommand("copy");
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && model) look();
});
look();
