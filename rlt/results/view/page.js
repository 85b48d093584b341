"use strict";
// Texts of models reach the page as text nodes only; nothing here parses markup.
(() => {
  const ROW_HEIGHT = 27;
  const NAMES = {
    id: "id", step: "step", reward: "reward", delta: "Δ reward", r_ss: "r_ss", r_kl: "r_kl",
    solution_log_prob_mean: "mean log-prob", solution_log_prob_min: "min log-prob", explanation_kl_mean: "mean divergence",
    explanation_kl_max: "max divergence", format_penalty: "penalty", accuracy: "accuracy",
    lift_over_empty: "lift / empty", lift_over_shuffled: "lift / shuffled", copied_share: "copied", length: "length",
    solution_tokens: "solution tokens", explanation_tokens: "explanation tokens", closed: "closed", correct: "correct",
    question: "question", mixture: "source",
  };
  const HINTS = {
    reward: "r_ss − λ·r_kl + penalty, in nats", delta: "reward minus that of the row it is compared with",
    r_ss: "mean + α·min of the student's log-probs of the solution", r_kl: "mean + α·max of the divergence over the explanation",
    lift_over_empty: "r_ss minus r_ss with an empty explanation", lift_over_shuffled: "r_ss minus r_ss with another question's explanation",
    copied_share: "share of the explanation's characters copied from the solution", length: "characters of the explanation",
    closed: "whether the explanation was closed", correct: "whether the explanation is correct",
  };
  const WIDE = { id: 96, question: 420, delta: 84, step: 56 };
  const BASES = { empty: "an empty explanation", shuffled: "another question's", other: "the other file's", none: "nothing (log-prob)" };

  let page, index, shown = [];
  const state = {
    view: null, source: 0, compare: -1, base: null, query: "", sort: "", down: true, x: "reward", y: "lift_over_empty",
    ranges: new Map(), row: null, student: null, metrics: "",
  };

  // -- small helpers ------------------------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);

  function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child != null));
    return node;
  }

  function svg(tag, attributes = {}, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.flat());
    return node;
  }

  const number = (value, digits = 2) =>
    value == null ? "–" : typeof value !== "number" ? String(value)
      : Math.abs(value) >= 1e5 ? value.toExponential(1) : value.toFixed(Number.isInteger(value) ? 0 : digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
  const signed = (value, digits = 3) => (value == null ? "–" : (Math.abs(value) < 0.5 / 10 ** digits ? "" : value > 0 ? "+" : "−") + Math.abs(value).toFixed(digits));
  const say = (text) => { byId("said").textContent = text; };

  function halves(text) {
    if (!text) return null;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer), values = new Float32Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) {
      const bits = view.getUint16(2 * i, true), exponent = (bits >> 10) & 31, rest = bits & 1023;
      const size = exponent === 0 ? rest * 2 ** -24 : exponent === 31 ? Infinity : (1 + rest / 1024) * 2 ** (exponent - 15);
      values[i] = bits & 0x8000 ? -size : size;
    }
    return values;
  }

  // What cannot be seen, or would turn the text around it, is shown by its sign.
  const HIDDEN = /[\n\t]|[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  function visible(text) {
    const nodes = [];
    let last = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > last) nodes.push(text.slice(last, match.index));
      const c = match[0];
      nodes.push(el("span", { class: "sign" }, c === "\n" ? "↵" : c === "\t" ? "⇥" : `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`));
      if (c === "\n" || c === "\t") nodes.push(c);
      last = match.index + 1;
    }
    if (last < text.length) nodes.push(text.slice(last));
    return nodes;
  }

  // -- data ---------------------------------------------------------------------------------------------------------

  function take(fresh) {
    page = fresh;
    index = { keys: new Map(), matches: new Map() };
    const count = new Map();
    for (const row of page.rows) {
      const name = page.sources.length > 1 && row.source ? `${page.sources[row.source].name}/${row.id}` : row.id;
      row.key = index.keys.has(name) ? `${name}#${row.source}.${index.keys.size}` : name;
      index.keys.set(row.key, row);
      const place = `${row.source} ${row.match}`;
      row.nth = count.get(place) ?? 0;
      count.set(place, row.nth + 1);
      index.matches.set(`${place} ${row.nth}`, row);
      row.copied = units(row.explanation ?? "", row.copied ?? []);
      row.low = `${row.id} ${row.question} ${row.solution} ${row.explanation}`.toLowerCase();
    }
    if (state.source >= page.sources.length) state.source = 0;
    page.scale = scale();
  }

  // Positions count characters; JavaScript's strings count some of them twice.
  function units(text, spans) {
    if (!spans.length || !/[\ud800-\udfff]/.test(text)) return spans;
    const places = [0];
    for (const character of text) places.push(places.at(-1) + character.length);
    return spans.map(([a, b]) => [places[a], places[b]]);
  }

  const partner = (row, source = state.compare) => (source < 0 || source === row.source ? null : index.matches.get(`${source} ${row.match} ${row.nth}`) ?? null);
  const tokensOf = (row) => row.tokens?.[state.student] ?? Object.values(row.tokens ?? {})[0] ?? null;

  function gains(row, base) {
    const tokens = tokensOf(row), own = halves(tokens?.log_probs);
    if (!own) return null;
    if (base === "none") return { own, other: null, gain: own };
    let other = null;
    if (base === "other") {
      const with_ = partner(row) ?? (row.source !== state.source ? partner(row, state.source) : null);
      other = with_ && halves(tokensOf(with_)?.log_probs);
    } else other = halves(tokens[`log_probs_${base}`]);
    if (!other || other.length !== own.length) return null;
    return { own, other, gain: own.map((value, i) => value - other[i]) };
  }

  // One scale for the whole page: nine tenths of the sampled tokens are inside it.
  function scale() {
    const sizes = [];
    for (const row of page.rows.slice(0, 200)) {
      const found = gains(row, "empty") ?? gains(row, "shuffled");
      for (const values of [found?.gain, halves(tokensOf(row)?.divergence)]) if (values) for (const v of values) sizes.push(Math.abs(v));
    }
    if (!sizes.length) return 4;
    sizes.sort((a, b) => a - b);
    const wanted = sizes[Math.floor(0.9 * (sizes.length - 1))];
    return [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12].find((size) => size >= wanted) ?? 16;
  }

  // -- frame --------------------------------------------------------------------------------------------------------

  function views() {
    const list = page.kind === "run" ? [["overview", "Overview"]] : [];
    if (page.curves?.length) list.push(["training", "Training"]);
    if (page.rows.length || page.kind !== "run") list.push(["rows", "Explanations"]);
    if (page.stages) list.push(["costs", "Time"]);
    if (page.recipe) list.push(["recipe", "Recipe"]);
    return list;
  }

  function frame() {
    document.title = `${page.title} – rlt view`;
    byId("title").textContent = page.title;
    const list = views();
    if (!list.some(([view]) => view === state.view)) state.view = list[0][0];
    byId("tabs").replaceChildren(...(list.length < 2 ? [] : list.map(([view, name]) =>
      el("button", { type: "button", "aria-current": view === state.view ? "page" : null, onclick: () => go(view) }, name))));
    const main = byId("main");
    hideTip();
    main.replaceChildren(...{ overview, training, rows: rowsView, costs, recipe }[state.view]());
    if (state.view === "rows") afterRows();
  }

  function go(view) {
    state.view = view;
    remember();
    frame();
  }

  function remember() {
    const hash = state.view === "rows" && state.row ? `#row=${encodeURIComponent(state.row.toWellFormed())}` : page.kind === "run" ? `#view=${state.view}` : "";
    if (hash !== location.hash) history.replaceState(null, "", hash || location.pathname + location.search);
  }

  function follow() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (wanted.has("row")) {
      const key = wanted.get("row");
      const row = index.keys.get(key) ?? page.rows.find((one) => one.id === key || one.key.toWellFormed() === key);
      state.view = "rows";
      if (row) {
        if (row.source !== state.source) { state.source = row.source; defaults(); }
        state.row = row.key;
        if (!matches(row)) { state.query = ""; state.ranges.clear(); }
      } else say(`There is no row ${key} on this page.`);
    } else if (wanted.has("view")) state.view = wanted.get("view");
  }

  // -- rows: find ---------------------------------------------------------------------------------------------------

  const inSource = () => page.rows.filter((row) => row.source === state.source);
  const value = (row, key) => {
    if (key !== "delta") return row[key];
    const other = partner(row);
    return other && row.reward != null && other.reward != null ? row.reward - other.reward : null;
  };

  function columns(rows) {
    const order = ["id", "step", "reward", "delta", "r_ss", "r_kl", "lift_over_empty", "lift_over_shuffled", "accuracy", "gain", "copied_share", "length", "closed", "correct", "mixture", "question"];
    return order.filter((key) => (key === "id" ? !rows.some((row) => row.step != null) : rows.some((row) => value(row, key) != null && value(row, key) !== "")));
  }

  function numeric(rows) {
    return Object.keys(NAMES).filter((key) => key !== "id" && rows.some((row) => typeof value(row, key) === "number"));
  }

  function defaults() {
    const rows = inSource(), keys = numeric(rows);
    state.ranges.clear();
    if (!keys.includes(state.x)) state.x = keys[0] ?? "length";
    if (!keys.includes(state.y) || state.y === state.x) state.y = ["lift_over_empty", "r_kl", "length"].find((key) => keys.includes(key) && key !== state.x) ?? keys[0];
    const has = (base) => rows.some((row) => gains(row, base));
    if (!state.base || !has(state.base)) state.base = ["empty", "shuffled"].find(has) ?? "none";
  }

  // Words are looked for in the texts; `reward>-1`, `closed=false` compare a column.
  function terms(query) {
    return query.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
      const match = /^([a-z_]+)(>=|<=|>|<|=)(.+)$/.exec(word);
      const key = match && (match[1] === "source" ? "mixture" : match[1]);
      return key in NAMES ? { key, sign: match[2], wanted: match[3] } : { word };
    });
  }

  function matches(row, parsed = terms(state.query)) {
    for (const [key, [low, high]] of state.ranges) {
      const v = value(row, key);
      if (v == null || v < low || v > high) return false;
    }
    return parsed.every((term) => {
      if (term.word != null) return row.low.includes(term.word);
      const v = value(row, term.key);
      if (term.sign === "=") return String(v ?? "").toLowerCase() === term.wanted || (typeof v === "number" && v === Number(term.wanted));
      if (typeof v !== "number") return false;
      const w = Number(term.wanted);
      return term.sign === ">" ? v > w : term.sign === "<" ? v < w : term.sign === ">=" ? v >= w : v <= w;
    });
  }

  function refilter() {
    const parsed = terms(state.query);
    shown = inSource().filter((row) => matches(row, parsed));
    if (state.sort) {
      const sign = state.down ? -1 : 1;
      shown.sort((a, b) => {
        const [p, q] = [value(a, state.sort), value(b, state.sort)];
        if (p == null || q == null) return (p == null) - (q == null);
        return sign * (typeof p === "string" || typeof q === "string" ? String(p).localeCompare(String(q), undefined, { numeric: true }) : p - q);
      });
    }
  }

  function picker(label, options, chosen, change) {
    const select = el("select", { onchange: (event) => change(event.target.value) },
      options.map(([key, name, off]) => el("option", { value: key, selected: String(key) === String(chosen), disabled: off }, name)));
    return el("label", {}, label, select);
  }

  function rowsView() {
    const all = inSource();
    if (!all.length) return [el("section", { class: "panel" }, el("p", {}, "No rows yet."))];
    const source = page.sources[state.source];
    const several = page.sources.length > 1;
    const keys = numeric(all).map((key) => [key, NAMES[key]]);
    const find = el("section", { class: "panel find", "aria-label": "Find rows" },
      several ? el("div", { class: "bar" },
        picker("rows of", page.sources.map((one, i) => [i, one.name, !one.shown]), state.source, (v) => { state.source = +v; if (state.compare === +v) state.compare = -1; state.row = null; defaults(); frame(); }),
        picker("compare with", [[-1, "nothing"], ...page.sources.map((one, i) => [i, one.name, i === state.source])], state.compare, (v) => { state.compare = +v; if (state.compare < 0 && state.base === "other") state.base = null; defaults(); frame(); })) : null,
      el("div", { class: "bar" },
        el("input", { type: "search", id: "search", "aria-label": "Search", placeholder: "Search ( / )   or   reward>-1  closed=false", value: state.query, spellcheck: "false",
          oninput: (event) => { state.query = event.target.value; filtered(); } }),
        el("span", { id: "chips", class: "bar" })),
      el("p", { class: "dim", id: "count" }),
      el("div", { class: "bar" }, picker("plot", keys, state.x, (v) => { state.x = v; draw(); }), picker("against", keys, state.y, (v) => { state.y = v; draw(); }),
        el("span", { class: "dim" }, "drag over a plot to select")),
      el("div", { class: "plots" }, el("canvas", { id: "histogram", role: "img" }), el("canvas", { id: "scatter", role: "img" })),
      table(all));
    const mixture = source.by_source ? el("section", { class: "panel" }, el("h2", {}, "Sources"), grid(...source.by_source), el("p", { class: "dim" }, "Means over all rows of the file that have no error. source=NAME in the search shows one.")) : null;
    return [el("div", { class: "rows" }, find, el("section", { class: "panel", id: "detail", "aria-label": "One explanation" })),
      el("p", { class: "dim" }, `${source.name}: ${source.shown} of ${source.total} rows are on this page. ↑ ↓ change the row, / searches, ← → walk through tokens.`), mixture].filter(Boolean);
  }

  function afterRows() {
    refilter();
    if (!state.row || index.keys.get(state.row)?.source !== state.source) state.row = shown[0]?.key ?? null;
    brush(byId("histogram"), false);
    brush(byId("scatter"), true);
    filtered();
    detail();
  }

  function filtered() {
    refilter();
    const chips = [...state.ranges].map(([key, [low, high]]) =>
      el("button", { type: "button", class: "chip", "aria-label": `Remove the filter on ${NAMES[key]}`, onclick: () => { state.ranges.delete(key); filtered(); } },
        `${number(low)} ≤ ${NAMES[key]} ≤ ${number(high)} ×`));
    byId("chips").replaceChildren(...chips);
    byId("count").textContent = `${shown.length} of ${inSource().length} rows`;
    draw();
    tableHead();
    tableBody(true);
  }

  // -- rows: the table, of which only what is in sight is in the document ----------------------------------------------

  let shape = [];
  function table(all) {
    shape = columns(all);
    return el("div", { class: "grid", id: "grid", role: "grid", tabindex: "0", "aria-label": "Rows", onscroll: () => requestAnimationFrame(() => tableBody(false)) },
      el("div", { role: "rowgroup" }, el("div", { class: "head", role: "row", "aria-rowindex": "1" })),
      el("div", { class: "body", role: "rowgroup" }));
  }

  const template = () => shape.map((key) => (key === "question" ? `minmax(${WIDE.question}px, 1fr)` : `${WIDE[key] ?? Math.max(72, 7.5 * NAMES[key].length + 22)}px`)).join(" ");
  const textual = (key) => key === "id" || key === "question";

  function tableHead() {
    const head = byId("grid").querySelector(".head");
    head.style.gridTemplateColumns = template();
    const focused = document.activeElement?.dataset?.sort;
    head.replaceChildren(...shape.map((key) =>
      el("div", { class: `cell${textual(key) ? " text" : ""}`, role: "columnheader", "aria-sort": state.sort === key ? (state.down ? "descending" : "ascending") : null },
        el("button", { type: "button", "data-sort": key, title: HINTS[key] ?? null, onclick: () => {
          state.down = state.sort === key ? !state.down : !textual(key);
          state.sort = key;
          filtered();
        } }, NAMES[key] + (state.sort === key ? (state.down ? " ↓" : " ↑") : "")))));
    if (focused) head.querySelector(`[data-sort="${focused}"]`)?.focus();
  }

  function tableBody(reset) {
    const grid = byId("grid"), body = grid?.querySelector(".body");
    if (!body) return;
    grid.setAttribute("aria-rowcount", shown.length + 1);
    body.style.height = `${shown.length * ROW_HEIGHT}px`;
    if (reset) {
      const place = shown.findIndex((row) => row.key === state.row);
      if (place < 0) grid.scrollTop = 0;
      else inSight(grid, place);
    }
    const first = Math.max(0, Math.floor(grid.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(shown.length, first + Math.ceil(grid.clientHeight / ROW_HEIGHT) + 10);
    const width = grid.querySelector(".head").scrollWidth;
    body.replaceChildren(...shown.slice(first, last).map((row, i) => {
      const node = el("div", { class: "row", role: "row", id: `r${first + i}`, "aria-rowindex": first + i + 2, "aria-selected": row.key === state.row ? "true" : "false", onclick: () => choose(row.key) },
        shape.map((key) => el("div", { class: `cell${textual(key) ? " text" : ""}`, role: "gridcell" }, cell(row, key))));
      node.style.top = `${(first + i) * ROW_HEIGHT}px`;
      node.style.width = `${width}px`;
      node.style.gridTemplateColumns = template();
      return node;
    }));
    body.style.width = `${width}px`;
    const chosen = shown.findIndex((row) => row.key === state.row);
    if (chosen >= first && chosen < last) grid.setAttribute("aria-activedescendant", `r${chosen}`);
    else grid.removeAttribute("aria-activedescendant");
  }

  function cell(row, key) {
    const v = value(row, key);
    if (key === "copied_share") return v == null ? "–" : `${Math.round(100 * v)} %`;
    if (typeof v === "boolean") return v ? "yes" : "no";
    return textual(key) ? String(v ?? "").slice(0, 200).replace(HIDDEN, " ") : number(v);
  }

  function inSight(grid, place) {
    const top = place * ROW_HEIGHT, room = grid.clientHeight - 2 * ROW_HEIGHT;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top > grid.scrollTop + room) grid.scrollTop = top - room;
  }

  function choose(key) {
    state.row = key;
    remember();
    tableBody(true);
    draw();
    detail();
  }

  function move(by) {
    if (!shown.length) return;
    const place = shown.findIndex((row) => row.key === state.row);
    const next = Math.min(shown.length - 1, Math.max(0, place < 0 ? 0 : place + by));
    if (shown[next].key !== state.row) choose(shown[next].key);
    say(`row ${next + 1} of ${shown.length}, reward ${number(shown[next].reward)}`);
  }

  // -- rows: histogram and scatter --------------------------------------------------------------------------------------

  const PAD = { left: 42, right: 8, top: 8, bottom: 20 };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function extent(key) {
    const values = inSource().map((row) => value(row, key)).filter((v) => typeof v === "number");
    if (!values.length) return [0, 1];
    let low = Infinity, high = -Infinity;
    for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  }

  function canvas(node) {
    const ratio = devicePixelRatio || 1, box = node.getBoundingClientRect();
    node.width = Math.max(1, Math.round(box.width * ratio));
    node.height = Math.max(1, Math.round(box.height * ratio));
    const pen = node.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    return [pen, box.width, box.height];
  }

  function axes(pen, width, height, x, y) {
    pen.fillStyle = colour("--dim");
    pen.textAlign = "left"; pen.fillText(number(x[0]), PAD.left, height - 6);
    pen.textAlign = "right"; pen.fillText(number(x[1]), width - PAD.right, height - 6);
    pen.fillText(number(y[1]), PAD.left - 4, PAD.top + 9);
    pen.fillText(number(y[0]), PAD.left - 4, height - PAD.bottom);
    pen.strokeStyle = colour("--line");
    pen.strokeRect(PAD.left, PAD.top, width - PAD.left - PAD.right, height - PAD.top - PAD.bottom);
  }

  function draw() {
    const histogram = byId("histogram"), scatter = byId("scatter");
    if (!histogram) return;
    const keep = new Set(shown), all = inSource(), chosen = index.keys.get(state.row);
    {
      const [pen, width, height] = canvas(histogram), [low, high] = extent(state.x), bins = 30;
      const counts = [new Array(bins).fill(0), new Array(bins).fill(0)];
      for (const row of all) {
        const v = value(row, state.x);
        if (typeof v !== "number") continue;
        const bin = Math.min(bins - 1, Math.floor((bins * (v - low)) / (high - low)));
        counts[0][bin]++;
        if (keep.has(row)) counts[1][bin]++;
      }
      const most = Math.max(1, ...counts[0]), inner = width - PAD.left - PAD.right, tall = height - PAD.top - PAD.bottom;
      axes(pen, width, height, [low, high], [0, most]);
      [[counts[0], "--line"], [counts[1], "--data"]].forEach(([bars, name]) => {
        pen.fillStyle = colour(name);
        bars.forEach((count, i) => pen.fillRect(PAD.left + (i * inner) / bins + 0.5, height - PAD.bottom - (count / most) * tall, inner / bins - 1, (count / most) * tall));
      });
      histogram.setAttribute("aria-label", `Histogram of ${NAMES[state.x]} from ${number(low)} to ${number(high)}; ${shown.length} rows selected`);
    }
    {
      const [pen, width, height] = canvas(scatter), x = extent(state.x), y = extent(state.y);
      axes(pen, width, height, x, y);
      const put = (row, size) => {
        const a = value(row, state.x), b = value(row, state.y);
        if (typeof a !== "number" || typeof b !== "number") return;
        pen.beginPath();
        pen.arc(PAD.left + ((a - x[0]) / (x[1] - x[0])) * (width - PAD.left - PAD.right), height - PAD.bottom - ((b - y[0]) / (y[1] - y[0])) * (height - PAD.top - PAD.bottom), size, 0, 7);
        pen.fill();
      };
      pen.fillStyle = colour("--line");
      for (const row of all) if (!keep.has(row)) put(row, 2);
      pen.fillStyle = colour("--data");
      pen.globalAlpha = all.length > 500 ? 0.5 : 0.85;
      for (const row of all) if (keep.has(row)) put(row, all.length > 500 ? 2 : 3);
      pen.globalAlpha = 1;
      if (chosen) { pen.fillStyle = colour("--neg"); pen.strokeStyle = colour("--ink"); put(chosen, 5); pen.stroke(); }
      scatter.setAttribute("aria-label", `${NAMES[state.y]} against ${NAMES[state.x]}`);
    }
  }

  function brush(node, both) {
    let from = null, mark = null;
    const at = (event) => {
      const box = node.getBoundingClientRect();
      const share = (v, low, high) => Math.min(1, Math.max(0, (v - low) / (high - low)));
      return [share(event.clientX - box.left, PAD.left, box.width - PAD.right), share(event.clientY - box.top, box.height - PAD.bottom, PAD.top)];
    };
    const range = (key, a, b) => {
      const [low, high] = extent(key), step = 1e-9 * (high - low);
      return [low + Math.min(a, b) * (high - low) - step, low + Math.max(a, b) * (high - low) + step];
    };
    node.addEventListener("pointerdown", (event) => { from = at(event); mark = null; node.setPointerCapture(event.pointerId); });
    node.addEventListener("pointermove", (event) => {
      if (!from) return;
      mark = at(event);
      draw();
      const pen = node.getContext("2d"), box = node.getBoundingClientRect();
      const x = (share) => PAD.left + share * (box.width - PAD.left - PAD.right), y = (share) => box.height - PAD.bottom - share * (box.height - PAD.top - PAD.bottom);
      pen.strokeStyle = colour("--ink");
      pen.strokeRect(x(from[0]), both ? y(from[1]) : PAD.top, x(mark[0]) - x(from[0]), both ? y(mark[1]) - y(from[1]) : box.height - PAD.top - PAD.bottom);
    });
    node.addEventListener("pointerup", () => {
      if (!from) return;
      state.ranges.delete(state.x);
      if (both) state.ranges.delete(state.y);
      if (mark && Math.abs(mark[0] - from[0]) > 0.01) {
        state.ranges.set(state.x, range(state.x, from[0], mark[0]));
        if (both) state.ranges.set(state.y, range(state.y, from[1], mark[1]));
      }
      from = mark = null;
      filtered();
      say(`${shown.length} rows selected`);
    });
  }

  // -- one row ------------------------------------------------------------------------------------------------------

  function detail() {
    const box = byId("detail"), row = index.keys.get(state.row);
    hideTip();
    if (!row) return box.replaceChildren(el("p", { class: "dim" }, "No row is selected."));
    const other = partner(row), sides = other ? [row, other] : [row];
    const bases = Object.entries(BASES).map(([key, name]) => [key, name, !gains(row, key)]).filter(([key]) => key !== "other" || page.sources.length > 1);
    let base = gains(row, state.base) ? state.base : bases.find(([, , off]) => !off)?.[0];
    const students = Object.keys(row.tokens ?? {});
    const steps = row.step == null ? [] : page.rows.filter((one) => one.source === row.source && one.match === row.match);
    box.replaceChildren(...[
      el("h2", {}, row.step == null ? `Row ${row.id}` : `Step ${row.step}`, el("span", { class: "dim" }, other || row.step != null ? page.sources[row.source].name : "")),
      steps.length > 1 ? el("div", {}, el("p", { class: "dim" }, "The same question during training:"), el("div", { class: "steps" },
        steps.map((one) => el("button", { type: "button", "aria-pressed": one === row ? "true" : "false", onclick: () => choose(one.key) }, String(one.step))))) : null,
      row.question ? el("div", {}, el("h3", {}, "Question"), el("div", { class: "text question", tabindex: "0", "aria-label": "Question" }, visible(row.question))) : null,
      row.tokens ? legend(bases, base, students, Boolean(other)) : null,
      el("div", { class: `sides${other ? " two" : ""}` }, sides.map((one) => side(one, base, other ? (one === row ? other : row) : null))),
    ].filter(Boolean));
  }

  const rank = (ranks, i) => ranks?.[i] == null ? [] : [["rank for the student", String(ranks[i])]];

  function legend(bases, base, students, two) {
    const limit = number(page.scale, page.scale % 1 ? 1 : 0);
    return el("div", { class: "legend" },
      picker("solution: gain over", bases, base, (v) => { state.base = v; detail(); byId("detail").querySelector(".legend select").focus(); }),
      students.length > 1 ? picker("student", students.map((name) => [name, name]), state.student ?? students[0], (v) => { state.student = v; detail(); }) : null,
      el("span", { class: "scale" }, `costs reward  −${limit}`, el("i", { role: "img", "aria-label": "orange to blue" }), `+${limit} nats  earns reward`),
      el("span", {}, el("span", { class: "key-low" }, "minimum / maximum")),
      el("span", {}, el("span", { class: "key-copied" }, "copied from the solution")),
      two ? el("span", {}, "dotted: words missing from the other") : null);
  }

  function side(row, base, other) {
    const tokens = tokensOf(row);
    return el("div", { class: "side" },
      other ? el("h3", {}, page.sources[row.source].name) : null,
      row.error ? el("p", {}, "Not scored: ", ...visible(row.error)) : null,
      el("h3", {}, "Explanation", tokens?.divergence ? el("span", { class: "dim" }, "orange: easy only for a teacher that saw the solution · blue: what the student would have said") : null),
      explanationOf(row, tokens, other),
      el("h3", {}, "Solution", tokens ? el("span", { class: "dim" }, base === "none" ? "orange: unlikely to the student" : "blue: the explanation made it more likely · orange: less") : null),
      solutionOf(row, tokens, base),
      strip(row), facts(row));
  }

  function explanationOf(row, tokens, other) {
    const divergence = halves(tokens?.divergence);
    const words = other ? newWords(row, other) : [];
    if (!divergence) return plain(row, words);
    const teacher = halves(tokens.teacher), student = halves(tokens.student);
    const worst = divergence.indexOf(Math.max(...divergence));
    const start = offset(row.explanation, tokens.explanation);
    let at = start;
    const items = tokens.explanation.map((text, i) => {
      const from = at;
      at += text.length;
      return {
        text, shade: -divergence[i], extreme: i === worst, copied: inside(row.copied, from, at, text), other: inside(words, from, at, text),
        lines: [["teacher, seeing the solution", number(teacher?.[i], 3)], ["student", number(student?.[i], 3)], ...rank(tokens.explanation_ranks, i), ["divergence", signed(divergence[i])]],
        note: i === worst ? "the maximum of the row" : "",
      };
    });
    return strand("Explanation's tokens", items, row.explanation, start, at);
  }

  function solutionOf(row, tokens, base) {
    const found = tokens && gains(row, base);
    if (!found) return el("div", { class: "text" }, visible(row.solution ?? ""));
    const empty = halves(tokens.log_probs_empty), shuffled = halves(tokens.log_probs_shuffled);
    const least = found.own.indexOf(Math.min(...found.own));
    const start = offset(row.solution, tokens.solution);
    const items = tokens.solution.map((text, i) => ({
      text, shade: found.gain[i], extreme: i === least,
      lines: [["with this explanation", number(found.own[i], 3)], ...rank(tokens.solution_ranks, i), empty && ["with an empty one", number(empty[i], 3)], shuffled && ["with another question's", number(shuffled[i], 3)],
        base === "other" && ["with the other file's", number(found.other[i], 3)], base !== "none" && ["gain", signed(found.gain[i])]].filter(Boolean),
      note: i === least ? "the minimum of the row" : "",
    }));
    return strand("Solution's tokens", items, row.solution, start, start + tokens.solution.join("").length);
  }

  // Tokens are inside their text; what merged with a tag at its ends is no token of it and stays without colour.
  const offset = (text, tokens) => Math.max(0, (text ?? "").indexOf(tokens.join("")));
  const inside = (spans, from, to, text) => /\S/.test(text) && (spans ?? []).some(([a, b]) => from < b && to > a);

  function plain(row, words) {
    const text = row.explanation ?? "", nodes = [], spans = row.copied ?? [];
    if (!text) return el("p", { class: "dim" }, row.question ? "(empty)" : "Its text is in the scored file, which no longer exists.");
    let last = 0;
    const marked = (a, b) => [...words.filter(([from, to]) => from < b && to > a), [b, b]].reduce((done, [from, to]) => {
      const start = Math.max(a, from), end = Math.min(b, to);
      done.nodes.push(...visible(text.slice(done.at, start)), ...(end > start ? [el("span", { class: "tok other" }, visible(text.slice(start, end)))] : []));
      done.at = Math.max(done.at, end);
      return done;
    }, { nodes: [], at: a }).nodes;
    for (const [a, b] of spans) {
      nodes.push(...marked(last, a), el("span", { class: "key-copied" }, marked(a, b)));
      last = b;
    }
    return el("div", { class: "text" }, nodes, marked(last, text.length));
  }

  function strand(label, items, whole, start, end) {
    const box = el("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
    const before = (whole ?? "").slice(0, start), after = (whole ?? "").slice(end);
    if (/\S/.test(before)) box.append(el("span", { class: "outside" }, visible(before)));
    items.forEach((item, i) => {
      const node = el("span", { class: "tok", role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0" }, item.text ? visible(item.text) : el("span", { class: "sign" }, "·"));
      if (item.shade) {
        node.classList.add(item.shade > 0 ? "pos" : "neg");
        node.style.setProperty("--share", `${Math.min(100, (100 * Math.abs(item.shade)) / page.scale).toFixed(1)}%`);
      }
      for (const name of ["extreme", "copied", "other"]) if (item[name]) node.classList.add(name);
      node.item = item;
      box.append(node);
    });
    if (/\S/.test(after)) box.append(el("span", { class: "outside" }, visible(after)));
    return box;
  }

  // Words of one explanation that are not in the other's longest common sequence.
  function newWords(row, other) {
    const split = (text) => [...(text ?? "").matchAll(/\S+/gu)].map((m) => [m[0], m.index, m.index + m[0].length]);
    const a = split(row.explanation), b = split(other.explanation);
    if (!a.length || a.length * b.length > 4e6) return [];
    const wide = b.length + 1, best = new Uint16Array((a.length + 1) * wide);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i * wide + j] = a[i][0] === b[j][0] ? best[(i + 1) * wide + j + 1] + 1 : Math.max(best[(i + 1) * wide + j], best[i * wide + j + 1]);
    const spans = [];
    let i = 0, j = 0;
    while (i < a.length) {
      if (j < b.length && a[i][0] === b[j][0]) { i++; j++; }
      else if (j < b.length && best[i * wide + j + 1] >= best[(i + 1) * wide + j]) j++;
      else { spans.push([a[i][1], a[i][2]]); i++; }
    }
    return spans;
  }

  function strip(row) {
    if (row.reward == null) return null;
    const c = page.sources[row.source].coefficients, alphaKl = c?.alpha_kl ?? c?.alpha;
    const list = [];
    if (c && row.solution_log_prob_mean != null) {
      list.push(["mean log-prob of the solution", c.mean_coef * row.solution_log_prob_mean], [`α · minimum (α = ${c.alpha})`, c.alpha * row.solution_log_prob_min]);
      if (row.r_kl != null) list.push([`−λ · mean divergence (λ = ${c.kl_coef})`, -c.kl_coef * c.mean_coef * row.explanation_kl_mean], [`−λα · maximum`, -c.kl_coef * alphaKl * row.explanation_kl_max]);
    } else if (row.r_ss != null) {
      list.push(["r_ss", row.r_ss]);
      if (row.r_kl != null) list.push(["−λ · r_kl", row.reward - row.r_ss - (row.format_penalty ?? 0)]);
    }
    if (row.format_penalty) list.push(["not closed", row.format_penalty]);
    const rest = row.reward - list.reduce((sum, [, v]) => sum + v, 0);
    if (Math.abs(rest) > 1e-4) list.push(["accuracy, gain, floor", rest]);
    let sum = 0, low = Math.min(0, row.reward), high = Math.max(0, row.reward);
    const bars = list.map(([name, v]) => { const from = sum; sum += v; low = Math.min(low, sum); high = Math.max(high, sum); return [name, v, from]; });
    const place = (v) => (100 * (v - low)) / (high - low || 1);
    const track = (from, v, kind) => {
      const bar = el("i", { class: kind }), zero = el("b");
      bar.style.left = `${place(Math.min(from, from + v))}%`;
      bar.style.width = `${Math.max(0.4, (100 * Math.abs(v)) / (high - low || 1))}%`;
      zero.style.left = `${place(0)}%`;
      return el("span", { class: "track", "aria-hidden": "true" }, bar, zero);
    };
    return el("div", {}, el("h3", {}, "The reward"), el("div", { class: "terms" },
      bars.flatMap(([name, v, from]) => [el("span", {}, name), track(from, v, v < 0 ? "neg" : "pos"), el("span", { class: "value" }, signed(v))]),
      el("span", { class: "total" }, "reward"), track(0, row.reward, "sum"), el("span", { class: "value total", id: `total-${row.source}` }, signed(row.reward))));
  }

  function facts(row) {
    const list = [["lift over empty", signed(row.lift_over_empty)], ["lift over shuffled", signed(row.lift_over_shuffled)], ["copied", `${Math.round(100 * (row.copied_share ?? 0))} %`],
      ["solution tokens", number(row.solution_tokens)], ["explanation tokens", number(row.explanation_tokens)], ["accuracy", row.accuracy == null ? "–" : number(row.accuracy)], ["closed", row.closed == null ? "–" : row.closed ? "yes" : "no"]];
    return el("p", { class: "facts" }, list.filter(([, v]) => v !== "–").map(([name, v]) => el("span", {}, `${name} `, el("b", {}, v))));
  }

  // -- what a token is worth ------------------------------------------------------------------------------------------

  function showTip(node) {
    const tip = byId("tip"), item = node.item;
    const word = item.text.length > 200 ? `${item.text.slice(0, 200)}… (${item.text.length} characters)` : item.text;
    tip.replaceChildren(el("div", { class: "word" }, el("span", {}, item.text ? visible(JSON.stringify(word).slice(1, -1).replaceAll('\\"', '"')) : "another byte of the previous character")),
      ...item.lines.map(([name, v]) => el("div", {}, el("span", {}, name), el("span", {}, v))), ...(item.note ? [el("div", {}, item.note)] : []));
    tip.hidden = false;
    node.setAttribute("aria-describedby", "tip");
    const at = node.getClientRects()[0] ?? node.getBoundingClientRect(), box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(at.left, innerWidth - box.width - 6))}px`;
    tip.style.top = `${at.bottom + 8 + box.height < innerHeight ? at.bottom + 8 : Math.max(6, at.top - box.height - 8)}px`;
  }

  function hideTip() {
    byId("tip").hidden = true;
    document.querySelector('[aria-describedby="tip"]')?.removeAttribute("aria-describedby");
  }

  const token = (target) => (target instanceof Element ? target.closest('.tok[role="option"]') : null);
  document.addEventListener("mouseover", (event) => { const node = token(event.target); if (node) showTip(node); else if (!token(document.activeElement)) hideTip(); });
  document.addEventListener("focusin", (event) => {
    const node = token(event.target);
    if (!node) return hideTip();
    for (const one of node.parentNode.querySelectorAll('.tok[tabindex="0"]')) one.tabIndex = -1;
    node.tabIndex = 0;
    showTip(node);
  });
  document.addEventListener("scroll", hideTip, { capture: true, passive: true });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || state.view !== "rows") return;
    const target = event.target, typing = target instanceof Element && target.matches("input, select, textarea");
    if (event.key === "Escape") { hideTip(); if (typing) target.blur(); return; }
    if (typing) return;
    const node = token(target);
    if (node && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      const all = [...node.parentNode.querySelectorAll(".tok")], place = all.indexOf(node);
      const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: all.length - 1 }[event.key];
      all[next]?.focus();
      event.preventDefault();
      return;
    }
    const page_ = Math.max(1, Math.floor((byId("grid")?.clientHeight ?? 270) / ROW_HEIGHT) - 2);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page_, PageUp: -page_, Home: -Infinity, End: Infinity }[event.key];
    const inGrid = target instanceof Element && target.closest("#grid");
    if (by && (inGrid || Math.abs(by) === 1)) { move(by === -Infinity ? -shown.length : by === Infinity ? shown.length : by); event.preventDefault(); }
    else if (event.key === "/") { byId("search")?.focus(); byId("search")?.select(); event.preventDefault(); }
  });

  // -- a run --------------------------------------------------------------------------------------------------------

  function overview() {
    const report = page.report ?? {}, parts = [];
    const said = [page.description ? el("p", {}, page.description) : null, ...(report.headline ?? []).map((text) => el("p", { class: "lead" }, text)),
      report.note ? el("p", { class: "dim" }, report.note) : null,
      report.incomplete?.length ? el("p", { class: "dim" }, `Left out because incomplete: ${report.incomplete.join(", ")}.`) : null].filter(Boolean);
    if (said.length) parts.push(el("section", { class: "panel" }, said));
    if (report.arms?.length) parts.push(el("section", { class: "panel" }, el("h2", {}, "Students: share of held-out problems solved"),
      el("p", { class: "dim" }, "One line per arm. Small dots are seeds, the large dot is their mean, the bar the 95 % interval over seeds."), arms(report.arms)));
    if (report.bands) parts.push(el("section", { class: "panel" }, el("h2", {}, "Students of the original explanations, split by reward"),
      el("p", { class: "dim" }, "Do explanations with a higher reward teach better? One line per seed."), bands(report.bands)));
    for (const [heading, head, rows, meanings] of report.tables ?? [])
      parts.push(el("section", { class: "panel" }, el("h2", {}, heading), grid(head, rows), ...(meanings ?? []).map(([name, meaning]) => el("p", { class: "dim meaning" }, el("b", {}, name), `: ${meaning}`))));
    if (report.versions) parts.push(el("p", { class: "dim" }, Object.entries(report.versions).map(([name, version]) => `${name} ${version}`).join(", ")));
    return parts.length ? parts : [el("section", { class: "panel" }, el("p", {}, "No step is complete yet."))];
  }

  const grid = (head, rows) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text) => (text ? el("th", { scope: "col" }, text) : el("td"))))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((text, i) => (i || !text ? el("td", {}, text) : el("th", { scope: "row" }, text))))))));

  function arms(list) {
    const names = [...new Set(list.map((one) => one.arm))], labels = [...new Set(list.map((one) => one.label))];
    const left = 14 + 7 * Math.max(...names.map((name) => name.length)), width = 760, step = 15 * labels.length + 14, height = names.length * step + 44;
    const x = (share) => left + share * (width - left - 20);
    const nodes = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [svg("line", { class: "axis", x1: x(share), x2: x(share), y1: 6, y2: height - 38 }), svg("text", { x: x(share), y: height - 24, "text-anchor": "middle" }, String(share))]);
    for (const one of list) {
      const row = names.indexOf(one.arm), kind = labels.indexOf(one.label), y = 18 + row * step + kind * 15, side_ = kind ? "b" : "a";
      if (!kind) nodes.push(svg("text", { class: "label", x: left - 10, y: y + 4 + (labels.length - 1) * 7.5, "text-anchor": "end" }, one.arm));
      if (one.low != null) nodes.push(svg("line", { class: side_, x1: x(one.low), x2: x(one.high), y1: y, y2: y, "stroke-width": 2, opacity: 0.6 }));
      for (const v of one.values) nodes.push(svg("circle", { class: `dot ${side_}`, cx: x(v), cy: y, r: 2.5, opacity: 0.7 }));
      nodes.push(svg("circle", { class: `dot ${side_}`, cx: x(one.mean), cy: y, r: 5 }, svg("title", {}, `${one.arm}, ${one.label}: ${number(one.mean, 3)}`)));
    }
    let at = left;
    labels.forEach((label, kind) => { nodes.push(svg("circle", { class: `dot ${kind ? "b" : "a"}`, cx: at + 5, cy: height - 7, r: 4 }), svg("text", { x: at + 14, y: height - 3 }, label)); at += 40 + 7 * label.length; });
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Share solved by arm" }, (() => {
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": list.map((one) => `${one.arm}, ${one.label}: ${number(one.mean, 3)}`).join("; ") }, nodes);
      picture.style.minWidth = "520px"; picture.style.maxWidth = "900px";
      return picture;
    })());
  }

  function bands(found) {
    const width = 520, height = 190, left = 40, count = found.seeds[0].values.length, most = Math.max(0.01, ...found.seeds.flatMap((one) => one.values));
    const x = (i) => left + 20 + (i * (width - left - 60)) / Math.max(1, count - 1), y = (v) => height - 34 - (v / most) * (height - 54);
    const nodes = [svg("line", { class: "axis", x1: left, x2: width - 10, y1: y(0), y2: y(0) }), svg("text", { x: left - 6, y: y(0) + 4, "text-anchor": "end" }, "0"), svg("text", { x: left - 6, y: y(most) + 4, "text-anchor": "end" }, number(most))];
    for (let i = 0; i < count; i++) nodes.push(svg("text", { x: x(i), y: height - 16, "text-anchor": "middle" }, i === 0 ? "lowest reward" : i === count - 1 ? "highest" : `band ${i + 1}`));
    for (const one of found.seeds) nodes.push(svg("polyline", { class: "line", points: one.values.map((v, i) => `${x(i)},${y(v)}`).join(" ") }), ...one.values.map((v, i) => svg("circle", { class: "dot", cx: x(i), cy: y(v), r: 3 }, svg("title", {}, `seed ${one.seed}: ${number(v, 3)}`))));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": found.seeds.map((one) => `seed ${one.seed}: ${one.values.map((v) => number(v, 3)).join(", ")}`).join("; ") }, nodes);
    picture.style.maxWidth = "620px";
    return picture;
  }

  function training() {
    const list = el("div", {});
    const fill = () => {
      const groups = new Map();
      for (const curve of page.curves) if (`${curve.step} ${curve.metric}`.toLowerCase().includes(state.metrics.toLowerCase())) groups.set(curve.step, [...(groups.get(curve.step) ?? []), curve]);
      const order = (curve) => (/(^|\/)reward$/.test(curve.metric) ? 0 : curve.metric.startsWith("rlt/") ? 1 : 2);
      const steps = [...groups].sort((a, b) => b[1].some((c) => order(c) < 2) - a[1].some((c) => order(c) < 2));
      list.replaceChildren(...steps.map(([step, curves]) => el("section", { class: "panel" }, el("h2", {}, step),
        el("div", { class: "curves" }, curves.sort((a, b) => order(a) - order(b)).map(curve_)))));
    };
    fill();
    return [el("section", { class: "panel" }, el("div", { class: "bar" }, el("input", { type: "search", "aria-label": "Filter metrics", placeholder: "Filter metrics: reward, lift, loss", value: state.metrics, oninput: (event) => { state.metrics = event.target.value; fill(); } }),
      el("span", { class: "dim" }, "The band spans the lowest to the highest seed; the line is their mean. Explanations shows how one question's explanation changes over the steps."))), list];
  }

  function curve_(curve) {
    const seeds = Object.entries(curve.seeds), width = 300, height = 130, left = 46;
    const at = new Map();
    for (const [, points] of seeds) for (const [step, v] of points) if (v != null) at.set(step, [...(at.get(step) ?? []), v]);
    const steps = [...at.keys()].sort((a, b) => a - b), all = [...at.values()].flat();
    let low = Math.min(...all), high = Math.max(...all);
    const ends = low === high ? ["", number(low, 3)] : [number(low, 3), number(high, 3)];
    if (low === high) { low -= 0.5; high += 0.5; }
    const first = steps[0], last = steps.at(-1);
    const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - 8), y = (v) => 8 + ((high - v) / (high - low)) * (height - 30);
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const nodes = [svg("line", { class: "axis", x1: left, x2: width - 8, y1: height - 22, y2: height - 22 }), svg("text", { x: left - 5, y: ends[0] ? 14 : (height - 14) / 2 + 4, "text-anchor": "end" }, ends[1]), svg("text", { x: left - 5, y: height - 22, "text-anchor": "end" }, ends[0]),
      svg("text", { x: left, y: height - 6 }, String(first)), svg("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, `step ${last}`)];
    if (seeds.length > 1) nodes.push(svg("polygon", { class: "band", points: [...steps.map((s) => `${x(s)},${y(Math.max(...at.get(s)))}`), ...steps.toReversed().map((s) => `${x(s)},${y(Math.min(...at.get(s)))}`)].join(" ") }));
    nodes.push(svg("polyline", { class: "line", points: steps.map((s) => `${x(s)},${y(mean(at.get(s)))}`).join(" ") }));
    return el("figure", {}, el("figcaption", {}, curve.metric), svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${curve.metric}: from ${number(mean(at.get(first)), 3)} at step ${first} to ${number(mean(at.get(last)), 3)} at step ${last}` }, nodes));
  }

  function costs() {
    const most = Math.max(1, ...page.stages.map((one) => one.seconds)), total = page.stages.reduce((sum, one) => sum + one.seconds, 0);
    const words = (s) => (s >= 3600 ? `${(s / 3600).toFixed(1)} h` : s >= 60 ? `${(s / 60).toFixed(1)} min` : `${s.toFixed(1)} s`);
    return [el("section", { class: "panel" }, el("h2", {}, `Time of each step, all seeds together: ${words(total)}`), el("div", { class: "cost" }, page.stages.flatMap((one) => {
      const bar = el("i");
      bar.style.width = `${(100 * one.seconds) / most}%`;
      return [el("span", {}, one.step), bar, el("span", {}, one.done === one.of ? words(one.seconds) : `${words(one.seconds)}, ${one.done} of ${one.of} complete`)];
    })))];
  }

  function recipe() {
    return [el("section", { class: "panel" }, el("h2", {}, "recipe.yaml: running it again repeats the run"), el("pre", {}, page.recipe))];
  }

  // -- begin --------------------------------------------------------------------------------------------------------

  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", () => { if (state.view === "rows") { draw(); tableBody(false); } });
  addEventListener("hashchange", () => { follow(); frame(); });

  take(JSON.parse(byId("data").textContent));
  if (page.kind === "scores" && page.sources.length > 1) state.compare = 1;
  if (page.side_by_side) [state.source, state.compare] = page.side_by_side;
  defaults();
  follow();
  frame();

  // While a run is under way its server is asked every two seconds for what is new.
  if (page.live) {
    let version = null;
    setInterval(async () => {
      try {
        const answer = await fetch("data.json", { cache: "no-store", headers: version ? { "If-None-Match": version } : {} });
        if (answer.status !== 200) return;
        const known = version;
        version = answer.headers.get("ETag");
        if (known === null && page.version === version) return;
        const place = scrollY;
        take(await answer.json());
        if (!document.activeElement?.matches("input, select, .tok")) { frame(); scrollTo(0, place); }
      } catch { say("The server does not respond; the page shows the last data."); }
    }, 2000);
  }
})();
