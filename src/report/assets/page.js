"use strict";
// The page of `herd report`. Whatever comes from files goes into the document as text, never as markup.

const $ = id => document.getElementById(id);
const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
};
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = i => css(`--run${i % 6}`);
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

let data = JSON.parse($("data").textContent);
let plots = [];
let zoom = null;

// ─── numbers for people ───
const isNumber = x => typeof x === "number" && isFinite(x);
const dash = "–";
function digits(x, n = 4) {
  if (!isNumber(x)) return dash;
  const a = Math.abs(x);
  if (a !== 0 && (a < 1e-3 || a >= 1e7)) return x.toExponential(Math.max(1, n - 2)).replace("e+", "e");
  return x.toLocaleString("en", { maximumSignificantDigits: Math.max(n, a >= 1 ? Math.ceil(Math.log10(a + 1)) : 0) });
}
const whole = x => isNumber(x) ? Math.round(x).toLocaleString("en") : dash;
function scaled(x) {
  if (!isNumber(x)) return dash;
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(x) >= size) return digits(x / size, 3) + unit;
  return digits(x, 3);
}
function span(s) {
  if (!isNumber(s)) return dash;
  if (s < 120) return `${digits(s, 3)} s`;
  if (s < 7200) return `${digits(s / 60, 3)} min`;
  if (s < 172800) return `${digits(s / 3600, 3)} h`;
  return `${digits(s / 86400, 3)} days`;
}
const percent = (x, n = 3) => isNumber(x) ? `${digits(100 * x, n)} %` : dash;
function moment(t) {
  const d = new Date(t);
  if (isNaN(d)) return dash;
  const p = n => String(n).padStart(2, "0");
  return `${d.getUTCFullYear()}-${p(d.getUTCMonth() + 1)}-${p(d.getUTCDate())} ${p(d.getUTCHours())}:${p(d.getUTCMinutes())}:${p(d.getUTCSeconds())}`;
}
const seconds = t => { const d = Date.parse(t); return isNaN(d) ? null : d / 1000; };
const plural = (n, what) => `${whole(n)} ${what}${n === 1 ? "" : "s"}`;

function names() {
  const seen = data.runs.map(r => r.status.name || "run");
  return data.runs.map((r, i) => seen.filter(n => n === seen[i]).length > 1 ? `${seen[i]} (${r.path.split("/").slice(-2).join("/")})` : seen[i]);
}

// ─── overview ───
const STATES = {
  not_started: ["not started", "quiet"], running: ["running", "calm"], queued: ["in the queue", "warn"],
  finished: ["finished", "good"], stopped: ["stopped", "bad"],
};
function swatch(i) {
  const s = el("span", { className: "swatch" });
  s.style.borderTopColor = colour(i);
  s.style.borderTopStyle = ["solid", "dashed", "dotted", "dashed"][i % 4];
  return s;
}
function tile(name, value, small) {
  return el("div", {}, el("dt", { textContent: name }), el("dd", {}, value, small ? el("small", { textContent: small }) : null));
}
function overview() {
  const box = $("overview");
  box.replaceChildren();
  data.runs.forEach((r, i) => {
    const s = r.status, m = r.summary;
    const [word, tone] = STATES[s.state] || [s.state, "quiet"];
    const head = el("div", { className: "run-head" });
    if (data.runs.length > 1) head.append(swatch(i));
    head.append(el("h3", { textContent: names()[i] }), el("span", { className: `chip ${tone}`, textContent: word }));
    if (s.detail) head.append(el("span", { className: "quiet", textContent: s.detail }));
    const part = s.steps > 0 ? Math.min(1, s.step / s.steps) : 0;
    const bar = el("i");
    bar.style.width = `${100 * part}%`;
    const progress = el("div", { className: "progress", role: "progressbar", ariaLabel: "steps done", ariaValueNow: String(Math.round(100 * part)), ariaValueMin: "0", ariaValueMax: "100" }, bar);
    const running = s.state === "running";
    const tiles = el("dl", { className: "tiles" },
      tile("Step", whole(s.step), s.steps ? `of ${whole(s.steps)}, ${percent(part)}` : ""),
      tile("Loss", digits(s.loss, 5), isNumber(m.least_loss) ? `least ${digits(m.least_loss, 5)} at step ${whole(m.least_loss_step)}` : ""),
      isNumber(m.validation_loss) ? tile("Best validation", digits(m.validation_loss, 5), `step ${whole(m.validation_step)}`) : null,
      tile("Tokens", scaled(m.tokens), isNumber(s.tokens_per_s) ? `${scaled(s.tokens_per_s)} a second` : ""),
      isNumber(m.mfu_causal) ? tile("MFU", percent(m.mfu_causal), "causal attention") : null,
      running ? tile("Time left", span(m.left_s), `last step ${span(s.since_last_step_s)} ago`) : tile("Took", span(s.wall_s), "since the first start"),
      tile("Training time", percent(s.effective_time_ratio, 4), `${span(s.lost_s)} lost to faults`),
      tile("Faults", whole(s.faults.length), `${plural(s.attempts, "attempt")}, ${plural(s.steps_lost, "step")} done again`));
    box.append(el("div", { className: "card run" }, head, progress, tiles));
  });
}

// What a person should look at: facts with their numbers.
function concerns(r) {
  const s = r.status, m = r.summary, c = r.counts || {}, out = [];
  if (s.state === "running" && isNumber(s.since_last_step_s) && isNumber(s.step_s) && s.since_last_step_s > Math.max(60, 10 * s.step_s))
    out.push(`the last step ended ${span(s.since_last_step_s)} ago; a step takes ${span(s.step_s)}`);
  if (m.skipped) out.push(`${plural(m.skipped, "step")} skipped because loss or gradient were not finite, the last at ${whole(m.last_skipped)}`);
  if (isNumber(m.least_loss) && isNumber(s.loss) && s.step > 50 && s.loss > 1.5 * m.least_loss) out.push(`loss is ${digits(s.loss)} and was ${digits(m.least_loss)} at step ${whole(m.least_loss_step)}`);
  for (const [kind, words] of [["checkpoint_failed", "checkpoints failed"], ["checkpoint_slow", "checkpoints were still being written when the next was due"],
    ["checkpoint_rejected", "checkpoints were found damaged"], ["snapshot_skipped", "snapshots were left out"], ["slow_rank", "times a rank was slow"],
    ["export_failed", "exports failed"], ["no_snapshots", "starts without snapshots in memory"], ["no_second_copy", "starts without second copies"]])
    if (c[kind]) out.push(`${whole(c[kind])} ${words} (${kind})`);
  const given = r.ledger.filter(n => n.given_up).map(n => n.node);
  if (given.length) out.push(`given up: ${given.slice(0, 8).join(", ")}${given.length > 8 ? ` and ${given.length - 8} more` : ""}`);
  return out.concat(r.notes);
}
function notes() {
  const list = el("ul");
  data.runs.forEach((r, i) => concerns(r).forEach(text => list.append(el("li", { textContent: data.runs.length > 1 ? `${names()[i]}: ${text}` : text }))));
  (data.problems || []).forEach(text => list.append(el("li", { textContent: text })));
  $("notes").hidden = !list.children.length;
  $("notes").replaceChildren(el("div", { className: "card" }, el("h2", { textContent: "To look at" }), list));
}

// ─── curves ───
// column, words for the readout, dash of its own where several columns are in one plot
const GIB = 2 ** 30;
const CHARTS = [
  { title: "Loss", unit: "nats per token", y: "nats/token", wide: true, log: true, lines: [{ column: "loss", name: "loss" }, { column: "validation_loss", name: "validation", points: true }] },
  { title: "Held-out accuracy", unit: "% of tokens guessed right", y: "%", factor: 100, lines: [{ column: "validation_accuracy", name: "validation", points: true }] },
  { title: "Reward margin", unit: "chosen less rejected, mean of the pairs", y: "reward", lines: [{ column: "reward_margin", name: "training" }, { column: "held_out_margin", name: "validation", points: true }] },
  { title: "Reward accuracy", unit: "% of pairs with the chosen answer ahead", y: "%", factor: 100, lines: [{ column: "reward_accuracy", name: "training" }, { column: "held_out_accuracy", name: "validation", points: true }] },
  { title: "Learning rate", unit: "per update", y: "rate", lines: [{ column: "lr", name: "rate", plain: true, bare: true }] },
  { title: "Gradient norm", unit: "L2 norm before clipping", y: "L2 norm", lines: [{ column: "grad_norm", name: "norm" }] },
  { title: "Throughput", unit: "tokens per second", y: "tokens/s", lines: [{ column: "tokens_per_s", name: "rate" }], zero: true, show: scaled },
  { title: "MFU", unit: "% of peak FLOP/s", y: "%", factor: 100, zero: true, lines: [{ column: "mfu_causal", name: "causal" }, { column: "mfu_full", name: "full attention", dash: [2, 3], bare: true }] },
  { title: "Exposed communication", unit: "% of a step", y: "%", factor: 100, zero: true, lines: [{ column: "exposed_part", name: "wires" }, { column: "pipeline_wait_part", name: "pipeline", dash: [2, 3], bare: true }] },
  { title: "Memory", unit: "GiB, peak of rank 0", y: "GiB", factor: 1 / GIB, zero: true, lines: [{ column: "memory_peak", name: "peak" }] },
  { title: "Step time", unit: "seconds", y: "seconds", zero: true, lines: [{ column: "step_s", name: "step" }] },
  { title: "Work per rank", unit: "seconds a step, waiting left out", y: "seconds", lines: [{ column: "rank_work_max_s", name: "slowest", bare: true }, { column: "rank_work_mean_s", name: "mean", dash: [8, 4], bare: true }, { column: "rank_work_min_s", name: "fastest", dash: [2, 3], bare: true }] },
];

function column(run, name) {
  return run.series.columns[name];
}
function xs(run) {
  const axis = $("axis").value, s = run.series;
  if (axis === "step") return s.step;
  const found = column(run, axis);
  return found ? found.max || found.mean : s.step.map(() => null);
}
// Exponential mean over about a fiftieth of the buckets; gaps stay gaps, and the first values are not pulled to zero.
function smoothed(values) {
  const a = 2 / (Math.max(5, values.length / 50) + 1);
  let sum = 0, weight = 0;
  return values.map(v => {
    if (!isNumber(v)) return v;
    sum = (1 - a) * sum + a * v;
    weight = (1 - a) * weight + a;
    return sum / weight;
  });
}

// Tables of all runs and columns of one chart, over one x, with what is needed to draw them.
function table(chart) {
  const tables = [], series = [], bands = [], readings = [];
  const factor = chart.factor || 1, log = chart.log && $("log").checked;
  const fine = v => isNumber(v) && !(log && v <= 0) ? v * factor : null;
  data.runs.forEach((run, i) => {
    const x = xs(run);
    chart.lines.forEach(line => {
      const c = column(run, line.column);
      if (!c) return;
      const keep = [];
      let before = -Infinity;
      x.forEach((v, k) => {
        if (isNumber(v) && v > before && !(line.points && !isNumber(c.mean[k]))) { keep.push(k); before = v; }
      });
      const pick = list => keep.map(k => fine(list[k]));
      const mean = pick(c.mean);
      const smooth = $("smooth").checked && !line.plain && !line.points;
      const columns = [keep.map(k => x[k]), smooth ? smoothed(mean) : mean];
      const own = colour(i), at = series.length + 1;
      const many = data.runs.length > 1;
      series.push({
        label: line.name, stroke: line.points ? own : own, width: line.points ? 1 : 1.75, dash: line.points ? [3, 3] : (line.dash || (many ? DASHES[i % 4] : [])),
        spanGaps: !!line.points, points: line.points ? { show: true, size: 7, fill: css("--card"), stroke: own, width: 2 } : { show: mean.length < 2 },
      });
      const reading = { run: i, line, at, low: null, high: null };
      const low = smooth && !c.min ? c.mean : c.min, high = smooth && !c.max ? c.mean : c.max;
      if (low && !line.bare && !line.points) {
        const shown = $("band").checked;
        columns.push(pick(low), pick(high));
        const edge = { stroke: own + "59", width: 1, points: { show: false }, show: shown };
        series.push({ ...edge }, { ...edge });
        bands.push({ series: [at + 2, at + 1], fill: own + "2e" });
        [reading.low, reading.high] = [at + 1, at + 2];
      }
      tables.push(columns);
      readings.push(reading);
    });
  });
  return tables.length ? { table: tables.length > 1 ? uPlot.join(tables) : tables[0], series, bands, readings } : null;
}

function axisTitle() {
  return { step: "step", tokens: "tokens", hours: "hours since the first step" }[$("axis").value];
}
function faultsAt() {
  if ($("axis").value !== "step") return [];
  return data.runs.flatMap((r, i) => r.status.faults.map(f => ({ step: f.step, run: i })));
}

function readout(node, chart, found, u, index) {
  const many = data.runs.length > 1, parts = [];
  const pick = at => {
    const list = u.data[at];
    for (let k = index, n = 0; n < 400 && k >= 0; k--, n++) if (isNumber(list[k])) return list[k];
    return null;
  };
  const show = chart.show || (v => digits(v, chart.title === "Loss" ? 5 : 4));
  if (isNumber(u.data[0][index])) parts.push(el("span", { textContent: `${$("axis").value} ${$("axis").value === "tokens" ? scaled(u.data[0][index]) : $("axis").value === "step" ? whole(u.data[0][index]) : digits(u.data[0][index])}` }));
  found.readings.forEach(r => {
    const v = pick(r.at);
    if (v === null) return;
    const label = many ? `${names()[r.run]}${chart.lines.length > 1 ? " " + r.line.name : ""}` : r.line.name;
    const s = el("span", {}, `${label} `, el("b", { textContent: show(v) }));
    if (many) s.style.borderBottom = `2px solid ${colour(r.run)}`;
    const lo = r.low && pick(r.low), hi = r.low && pick(r.high);
    if (isNumber(lo) && isNumber(hi) && show(hi) !== show(lo) && $("band").checked) s.append(` (${show(lo)}–${show(hi)})`);
    parts.push(s);
  });
  node.replaceChildren(...parts);
}

function draw() {
  plots.forEach(p => p.u.destroy());
  plots = [];
  const box = $("charts"), absent = [];
  box.replaceChildren();
  const sync = uPlot.sync("x");
  CHARTS.forEach(chart => {
    const found = table(chart);
    if (!found || found.readings.every(r => found.table[r.at].every(v => !isNumber(v)))) { absent.push(chart.title.toLowerCase()); return; }
    const read = el("div", { className: "readout" });
    const place = el("div");
    const card = el("div", { className: `card${chart.wide ? " wide" : ""}` },
      el("div", { className: "chart-head" }, el("h3", {}, chart.title, " ", el("span", { className: "quiet", textContent: chart.unit })), read), place);
    card.setAttribute("role", "group");
    card.setAttribute("aria-label", `${chart.title}, ${chart.unit}`);
    box.append(card);
    const height = chart.wide ? (innerWidth < 760 ? 250 : 330) : 210;
    const ink = css("--quiet"), grid = { stroke: css("--grid"), width: 1 };
    const log = chart.log && $("log").checked;
    const font = "12px system-ui, sans-serif";
    const opts = {
      width: Math.max(200, place.clientWidth), height, legend: { show: false }, padding: [10, 18, 0, 0],
      cursor: { sync: { key: "x", scales: ["x", null] }, points: { size: 7 }, drag: { x: true, y: false } },
      scales: {
        x: { time: false },
        y: log ? { distr: 3, range: (u, lo, hi) => isNumber(lo) && lo > 0 ? [lo / 1.06, hi * 1.06] : [1, 10] } : { range: (u, lo, hi) => range(lo, hi, chart.zero) },
      },
      axes: [
        { stroke: ink, grid, ticks: grid, font, label: axisTitle(), labelFont: font, labelSize: 20, size: 30, space: 70, values: (u, v) => v.map(x => $("axis").value === "tokens" || x >= 1e4 ? scaled(x) : digits(x)) },
        { stroke: ink, grid, ticks: grid, font, label: chart.y, labelFont: font, labelSize: 18, size: 54, ...(log ? { splits: u => decades(u.scales.y.min, u.scales.y.max), filter: (u, s) => s } : {}), values: (u, v) => v.map(x => x === null ? "" : Math.abs(x) >= 1e4 ? scaled(x) : digits(x, 3)) },
      ],
      series: [{}, ...found.series], bands: found.bands,
      hooks: {
        setCursor: [u => readout(read, chart, found, u, u.cursor.idx ?? lastShown(u))],
        setScale: [(u, key) => { if (key === "x" && !u.quiet && u.ready_) spread(u); }],
        drawClear: [u => marks(u)],
      },
    };
    const u = new uPlot(opts, found.table, place);
    u.ready_ = true;
    sync.sub(u);
    plots.push({ u, place, height });
    if (zoom) { u.quiet = true; u.setScale("x", zoom); u.quiet = false; }
    readout(read, chart, found, u, lastShown(u));
  });
  $("absent").textContent = data.runs.length && absent.length ? `Not written by ${data.runs.length > 1 ? "these runs" : "this run"}: ${absent.join(", ")}.` : "";
}
function range(lo, hi, zero) {
  if (!isNumber(lo) || !isNumber(hi)) return [0, 1];
  if (zero && lo >= 0) lo = 0;
  if (hi === lo) { const d = Math.abs(hi) || 1; return [lo - (zero && lo === 0 ? 0 : d * .1), hi + d * .1]; }
  const pad = .06 * (hi - lo);
  return [zero && lo === 0 ? 0 : lo - pad, hi + pad];
}
// Round numbers on a logarithmic axis.
function decades(lo, hi) {
  const steps = hi / lo > 300 ? [1] : hi / lo > 20 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], out = [];
  for (let k = Math.floor(Math.log10(lo)); k <= Math.log10(hi); k++) steps.forEach(m => { const v = +(m * 10 ** k).toPrecision(3); if (v >= lo && v <= hi) out.push(v); });
  return out;
}
function lastShown(u) {
  const x = u.data[0], max = u.scales.x.max;
  let k = x.length - 1;
  while (k > 0 && isNumber(max) && x[k] > max) k--;
  return k;
}
// The other plots show the same part.
function spread(from) {
  const { min, max } = from.scales.x, all = from.data[0];
  zoom = min <= all[0] && max >= all[all.length - 1] ? null : { min, max };
  plots.forEach(({ u }) => { if (u !== from) { u.quiet = true; u.setScale("x", { min, max }); u.quiet = false; } });
}
// A dashed line where a fault was.
function marks(u) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.setLineDash([3, 4]);
  ctx.lineWidth = Math.max(1, devicePixelRatio);
  faultsAt().forEach(f => {
    if (f.step < u.scales.x.min || f.step > u.scales.x.max) return;
    const x = Math.round(u.valToPos(f.step, "x", true));
    ctx.strokeStyle = css("--bad") + "99";
    ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
  });
  ctx.restore();
}
function legend() {
  const parts = [];
  if (data.runs.length > 1) data.runs.forEach((r, i) => parts.push(el("span", {}, swatch(i), names()[i])));
  const widths = [...new Set(data.runs.map(r => r.series.width).filter(w => w > 1))];
  if (widths.length) parts.push(el("span", { className: "quiet", textContent: `A point is the mean of ${widths.map(whole).join(" or ")} steps; the band goes from the least to the most of them.` }));
  if (faultsAt().length) parts.push(el("span", { className: "quiet", textContent: "Dashed upright lines: faults." }));
  if (!matchMedia("(pointer: coarse)").matches) parts.push(el("span", { className: "quiet", textContent: "Drag to look closer, double click for the whole." }));
  $("legend").replaceChildren(...parts);
}

// ─── timeline ───
const SVG = "http" + "://www.w3.org/2000/svg";
function svg(tag, props, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(props)) node.setAttribute(k, v);
  node.append(...children);
  return node;
}
const TONES = { done: "--good", stopped: "--run3", stop_at: "--run3" };
let tip = null;
function explained(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("aria-label", text.replaceAll("\n", ", "));
  const show = e => {
    tip ??= document.body.appendChild(el("div", { id: "tip" }));
    tip.textContent = text;
    tip.hidden = false;
    const box = node.getBoundingClientRect(), w = tip.offsetWidth, h = tip.offsetHeight;
    const x = e.clientX ?? box.left;
    tip.style.left = `${Math.max(8, Math.min(x, innerWidth - w - 8))}px`;
    tip.style.top = `${box.top - h - 8 > 4 ? box.top - h - 8 : box.bottom + 8}px`;
  };
  const hide = () => { if (tip) tip.hidden = true; };
  for (const e of ["pointerenter", "focus", "click"]) node.addEventListener(e, show);
  for (const e of ["pointerleave", "blur"]) node.addEventListener(e, hide);
}
function lane(run, index) {
  const end = Math.max(...[seconds(data.written), ...run.attempts.map(a => seconds(a.ended))].filter(isNumber));
  const running = run.status.state === "running";
  const steps = (run.series.columns.hours?.mean || []).filter(isNumber).map(h => run.summary.first + 3600 * h);
  const bars = run.attempts.map(a => ({ from: seconds(a.started), to: seconds(a.ended) ?? (running ? end : seconds(a.started)), a }));
  if (!bars.length && steps.length) bars.push({ from: run.summary.first ?? steps[0], to: steps[steps.length - 1], a: null });
  if (!bars.length) return null;
  const from = Math.min(...bars.map(b => b.from)), to = Math.max(...bars.map(b => b.to), from + 1);
  const width = Math.max(260, $("lanes").clientWidth - 34), height = 74;
  const x = t => Math.max(0, Math.min(width, (t - from) / (to - from) * width));
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  root.append(svg("rect", { x: 0, y: 22, width, height: 22, rx: 5, fill: css("--grid") }));
  bars.forEach(({ from: a, to: b, a: attempt }) => {
    const tone = attempt ? (attempt.class ? TONES[attempt.class] || "--run1" : "--run0") : "--run0";
    const bar = svg("rect", { x: x(a), y: 22, width: Math.max(2, x(b) - x(a) - 1), height: 22, rx: 3, fill: css(tone), "fill-opacity": .82 });
    explained(bar, attempt
      ? `attempt ${attempt.attempt}, job ${attempt.job}: ${attempt.class || (running ? "running" : "end not written")}\n${moment(attempt.started)} UTC, ${span(b - a)}\n${plural(attempt.count, "node")}: ${attempt.nodes}\nlast step ${whole(attempt.last_step)}${attempt.fact ? "\n" + attempt.fact : ""}`
      : `started by hand: ${span(b - a)} from the first step to the last`);
    root.append(bar);
  });
  run.status.faults.forEach(f => {
    const t = seconds(f.time);
    if (!isNumber(t)) return;
    const cx = x(t);
    if (isNumber(f.recovered_s)) root.append(svg("rect", { x: cx, y: 47, width: Math.max(2, x(t + f.recovered_s) - cx), height: 4, rx: 2, fill: css("--bad") }));
    const mark = svg("path", { d: `M${cx} 3 l6 7 l-6 7 l-6 -7 z`, fill: css("--bad") });
    explained(mark, `${f.class || "fault"} at step ${whole(f.step)}, ${moment(f.time)} UTC\n${f.fact}\n${isNumber(f.recovered_s) ? `training again after ${span(f.recovered_s)}, ${plural(f.steps_lost, "step")} done again` : "no recovery written"}`);
    root.append(mark);
  });
  const ticks = Math.max(2, Math.min(6, Math.floor(width / 150)));
  for (let k = 0; k <= ticks; k++) {
    const anchor = k === 0 ? "start" : k === ticks ? "end" : "middle";
    const t = svg("text", { x: k * width / ticks, y: 68, "text-anchor": anchor });
    t.textContent = k === 0 ? `${moment(from * 1000)} UTC` : `+${span((to - from) * k / ticks)}`;
    root.append(t);
  }
  const title = data.runs.length > 1 ? el("h3", {}, swatch(index), " ", names()[index]) : null;
  return el("div", { className: "lane" }, title, root);
}
function grid(heads, rows) {
  const cell = (v, h) => el("td", { className: h.n ? "n" : h.k ? "k" : "", textContent: v ?? dash });
  const body = rows.map(row => {
    const tr = el("tr", {}, ...row.map((v, k) => cell(v, heads[k])));
    [...tr.children].forEach((td, k) => { td.dataset.name = heads[k].name; });
    return tr;
  });
  return el("div", { className: "scroll" }, el("table", { className: "stack" },
    el("thead", {}, el("tr", {}, ...heads.map(h => el("th", { scope: "col", className: h.n ? "n" : "", textContent: h.name })))),
    el("tbody", {}, ...body)));
}
function timeline() {
  const box = $("lanes");
  box.replaceChildren();
  const many = data.runs.length > 1, who = many ? [{ name: "run" }] : [];
  const card = el("div", { className: "card" });
  box.append(card);
  data.runs.forEach((r, i) => { const l = lane(r, i); if (l) card.append(l); });
  if (card.children.length) {
    const key = (tone, text) => { const i = el("i"); i.style.background = css(tone); return el("span", {}, i, text); };
    card.append(el("div", { className: "keys" }, key("--good", "done"), key("--run3", "stopped on request"), key("--run0", "running, or by hand"), key("--run1", "ended by a fault"), key("--bad", "fault, and until training again")));
  } else card.append(el("p", { className: "quiet", textContent: "Nothing has been started yet." }));
  const faults = data.runs.flatMap((r, i) => r.status.faults.map(f => [...(many ? [names()[i]] : []), moment(f.time), whole(f.attempt), whole(f.step), f.class || "?", f.fact, (f.nodes || []).join(", ") || dash, isNumber(f.recovered_s) ? span(f.recovered_s) : dash, isNumber(f.steps_lost) ? whole(f.steps_lost) : dash]));
  if (faults.length) {
    const heads = [...who, { name: "time, UTC", k: 1 }, { name: "attempt", n: 1 }, { name: "step", n: 1 }, { name: "class", k: 1 }, { name: "what" }, { name: "nodes" }, { name: "mended", n: 1 }, { name: "done again", n: 1 }];
    card.append(grid(heads, faults.slice(-200)));
    if (faults.length > 200) card.append(el("p", { className: "quiet", textContent: `and ${whole(faults.length - 200)} before these` }));
  } else card.append(el("p", { className: "quiet", textContent: "No fault." }));
  const events = data.runs.flatMap((r, i) => r.events.map(e => {
    const { time, kind, attempt, ...rest } = e;
    return [...(many ? [names()[i]] : []), moment(time), kind, isNumber(attempt) ? whole(attempt) : dash, Object.entries(rest).map(([k, v]) => `${k} ${typeof v === "object" ? JSON.stringify(v) : v}`).join(", ").slice(0, 400)];
  }));
  if (events.length) card.append(el("details", {}, el("summary", { textContent: `${plural(events.length, "event")}` }), grid([...who, { name: "time, UTC", k: 1 }, { name: "kind", k: 1 }, { name: "attempt", n: 1 }, { name: "what" }], events)));
  const saved = data.runs.map((r, i) => r.summary.checkpoints ? `${many ? names()[i] + ": " : ""}${plural(r.summary.checkpoints, "checkpoint")}, ${span(r.summary.checkpoint_mean_s)} each, the last at step ${whole(r.summary.last_checkpoint?.step)}` : null).filter(Boolean);
  if (saved.length) card.append(el("p", { className: "quiet", textContent: saved.join(" · ") }));
}

// ─── nodes ───
function nodes() {
  const box = $("ledger"), many = data.runs.length > 1;
  const standing = n => n.given_up ? "given up" : n.paused_until && seconds(n.paused_until) > seconds(data.written) ? `paused until ${moment(n.paused_until)}` : "in use";
  const rows = data.runs.flatMap((r, i) => r.ledger.map(n => [...(many ? [names()[i]] : []), n.node, whole(n.count), standing(n), n.failures.map(f => `${moment(f.time)} ${f.reason} (job ${f.job}, attempt ${f.attempt})`).join("; ")]));
  const slow = data.runs.map((r, i) => r.summary.slowest.length ? `${many ? names()[i] + ": " : ""}slowest most often: ${r.summary.slowest.map(s => `rank ${s.rank} in ${percent(s.part, 2)} of the steps`).join(", ")}` : null).filter(Boolean);
  const used = data.runs.map((r, i) => { const a = r.attempts[r.attempts.length - 1]; return a && a.count ? `${many ? names()[i] + ": " : ""}last attempt on ${plural(a.count, "node")}: ${a.nodes}` : null; }).filter(Boolean);
  const card = el("div", { className: "card" }, ...used.concat(slow).map(text => el("p", { className: "quiet", textContent: text })),
    rows.length ? grid([...(many ? [{ name: "run" }] : []), { name: "node", k: 1 }, { name: "failures", n: 1 }, { name: "standing", k: 1 }, { name: "last ones" }], rows)
      : el("p", { className: "quiet", textContent: "No node has failed." }));
  box.replaceChildren(card);
}

// ─── configuration ───
function flat(tree, at = "", out = {}) {
  if (tree !== null && typeof tree === "object" && !Array.isArray(tree)) Object.entries(tree).forEach(([k, v]) => flat(v, at ? `${at}.${k}` : k, out));
  else out[at] = JSON.stringify(tree);
  return out;
}
function about() {
  const card = el("div", { className: "card" }), many = data.runs.length > 1;
  const facts = data.runs.map((r, i) => {
    const p = r.plan || {};
    const parts = [p.herd_version && `herd ${p.herd_version}`, p.versions && Object.entries(p.versions).map(([k, v]) => `${k} ${v}`).join(", "), isNumber(p.parameters) && `${scaled(p.parameters)} parameters`, isNumber(p.world) && plural(p.world, "rank"), p.dtype && `compute in ${p.dtype}`, isNumber(p.tokens_per_step) && `${whole(p.tokens_per_step)} tokens a step`, isNumber(p.memory_bytes_per_rank) && `planned ${digits(p.memory_bytes_per_rank / GIB, 3)} GiB a rank`].filter(Boolean);
    return el("p", { textContent: `${many ? names()[i] + ": " : ""}${parts.join(" · ") || "no plan.json"}` });
  });
  card.append(...facts);
  if (many) {
    const flats = data.runs.map(r => flat(r.config_tree || {}));
    const keys = [...new Set(flats.flatMap(Object.keys))].filter(k => k && new Set(flats.map(f => f[k])).size > 1);
    card.append(keys.length ? grid([{ name: "key that differs", k: 1 }, ...names().map(name => ({ name }))], keys.map(k => [k, ...flats.map(f => f[k] ?? "absent")]))
      : el("p", { className: "quiet", textContent: "The configurations are the same." }));
  }
  data.runs.forEach((r, i) => {
    card.append(el("p", { className: "quiet", textContent: r.path }));
    if (r.config) card.append(el("details", {}, el("summary", { textContent: `Resolved configuration${many ? " of " + names()[i] : ""}` }), el("pre", { textContent: r.config })));
  });
  $("config").replaceChildren(card);
}

// ─── the whole ───
function theme() {
  let chosen = null;
  try { chosen = localStorage.getItem("herd-theme"); } catch { /* a page from a file may have no storage */ }
  return chosen || document.documentElement.dataset.chosen || "system";
}
function dress() {
  const chosen = theme(), dark = chosen === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : chosen === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").textContent = `Theme: ${chosen}`;
}
function render() {
  const open = [...document.querySelectorAll("details")].map(d => d.open);
  const list = names();
  document.title = list.length ? `${list.join(", ")} · herd report` : "herd report";
  $("title").textContent = list.join(" · ") || "herd report";
  $("subtitle").textContent = data.runs.length === 1 ? data.runs[0].path : plural(data.runs.length, "run") + " compared";
  overview(); notes(); legend(); draw(); timeline(); nodes(); about();
  $("made").textContent = `herd ${data.herd}, ${moment(data.written)} UTC`;
  [...document.querySelectorAll("details")].forEach((d, k, all) => { if (open.length === all.length) d.open = open[k]; });
}
function again() { legend(); draw(); }

$("theme").onclick = () => {
  const next = { system: "light", light: "dark", dark: "system" }[theme()];
  document.documentElement.dataset.chosen = next;
  try { localStorage.setItem("herd-theme", next); } catch { /* as above */ }
  dress(); render();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { dress(); render(); });
for (const id of ["log", "smooth", "band"]) $(id).onchange = again;
$("axis").onchange = () => { zoom = null; again(); };
$("reset").onclick = () => { zoom = null; draw(); };
let width = innerWidth, later = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(later);
  later = setTimeout(() => { plots.forEach(({ u, place, height }) => u.setSize({ width: Math.max(200, place.clientWidth), height })); timeline(); }, 120);
});

function follow() {
  const chip = $("live");
  chip.hidden = false;
  const say = (text, tone) => { chip.textContent = text; chip.className = `chip ${tone}`; };
  say("live", "good");
  let wait = 5000;
  const turn = async () => {
    try {
      const answer = await fetch("data.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const tag = answer.headers.get("x-herd-changed");
      const next = await answer.json();
      const scroll = scrollY;
      data = next;
      if (tag !== follow.tag) { follow.tag = tag; render(); scrollTo(0, scroll); } else { overview(); notes(); }
      say("live", "good");
      wait = 5000;
    } catch (e) {
      say("no answer", "bad");
      wait = Math.min(60000, wait * 2);
    }
    setTimeout(turn, wait);
  };
  setTimeout(turn, wait);
}

dress();
render();
if (LIVE) follow();
// for whoever measures: milliseconds until everything is drawn
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.ready = String(Math.round(performance.now())); }));
