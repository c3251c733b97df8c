"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const pictures = document.getElementById("pictures").textContent.split("\n");
  const $ = (id) => document.getElementById(id);
  const { scans, columns, values, z } = page;
  const onPage = new Set(scans.map((scan) => scan.id));
  const root = document.documentElement, viewport = $("viewport"), list = $("rows");
  const collator = new Intl.Collator(undefined, { numeric: true });
  const GAP = 12, OVERSCAN = 3, ODD = 3;
  const PADDING = 16, LEAST = 76;
  const state = { key: "odd", down: true, order: [], current: 0, rowHeight: 108 };
  const nodes = new Map();

  // Ticks: scan id → reason. A table given when the page was made wins over what the browser keeps of an older one.
  const KEY = "neuroage-qc:" + page.id;
  const ticks = new Map(page.given);
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) || "null");
    if (kept && kept.given === page.givenDigest) { ticks.clear(); kept.ticks.forEach(([id, why]) => ticks.set(id, why)); }
  } catch { trouble(); }
  function trouble() {
    $("trouble").hidden = false;
    $("trouble").textContent = "This browser does not keep ticks for this page: save the exclusions before you close it.";
  }
  function keep() {
    try { localStorage.setItem(KEY, JSON.stringify({ given: page.givenDigest, ticks: [...ticks] })); } catch { trouble(); }
    count();
  }
  function tick(place, on, reason) {
    const id = scans[place].id;
    if (on) ticks.set(id, reason ?? ticks.get(id) ?? ""); else ticks.delete(id);
    keep();
    redraw(place);
    if ($("large").open) enlarge(state.current, true);
  }

  // Words and numbers
  function element(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }
  function shown(value) {
    if (value == null) return "–";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 3;
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  const lengths = (column) => [...new Set(values[columns.indexOf(column)])].slice(0, 500).map((value) => (value || "").length);
  const full = (column) => column.label + (column.step && column.step !== "registration" ? ` (${column.step})` : "");
  const withUnit = (column) => full(column) + (column.unit ? `, ${column.unit}` : "");
  const below = (column) => [column.step, column.unit].filter(Boolean).join(", ");
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);
  const isOdd = (column, place) => columns[column].judged &&
    (columns[column].lowIsOdd ? -(z[column][place] ?? 0) : Math.abs(z[column][place] ?? 0)) >= ODD;
  function about(place) {
    const scan = scans[place];
    if (scan.problem) return scan.problem;
    if (!scan.prepared) return "not prepared";
    return columns.map((column, at) => [at, z[at][place]]).filter(([at]) => isOdd(at, place))
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3)
      .map(([at, far]) => `${full(columns[at])} ${far < 0 ? "low" : "high"} (${signed(far)})`).join(", ");
  }
  const words = scans.map((scan, place) => `${scan.id} ${about(place)}`.toLowerCase());
  const rank = (scan) => (scan.problem ? 0 : scan.prepared ? 1 : 2);

  // Which scans, in which order
  function arrange(keepCurrent) {
    const before = state.order[state.current];
    const wanted = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const problems = $("problems").checked, excluded = $("ticked").checked;
    const found = [];
    for (let place = 0; place < scans.length; place++) {
      const id = scans[place].id;
      if (problems && !scans[place].problem) continue;
      if (excluded && !ticks.has(id)) continue;
      if (wanted.length) {
        const text = words[place] + " " + (ticks.get(id) || "").toLowerCase();
        if (!wanted.every((word) => text.includes(word))) continue;
      }
      found.push(place);
    }
    const sign = state.down ? -1 : 1;
    const of = state.key === "odd" ? null : values[columns.findIndex((column) => column.key === state.key)];
    if (state.key === "id") found.sort((a, b) => sign * collator.compare(scans[a].id, scans[b].id));
    else if (!of) found.sort((a, b) => (sign < 0 ? 1 : -1) * (rank(scans[a]) - rank(scans[b])) || missingLast(scans[a].odd, scans[b].odd, sign) || a - b);
    else found.sort((a, b) => missingLast(of[a], of[b], sign) || a - b);
    state.order = found;
    state.current = Math.max(0, keepCurrent ? found.indexOf(before) : 0);
    list.style.height = found.length * state.rowHeight + "px";
    viewport.setAttribute("aria-rowcount", found.length + 1);
    $("nothing").hidden = found.length > 0;
    if (!keepCurrent) viewport.scrollTop = 0;
    clear();
    count();
  }
  function missingLast(a, b, sign) {
    if (a == null || b == null) return (a == null) - (b == null);
    return sign * (typeof a === "string" ? collator.compare(a, b) : a - b);
  }
  function count() {
    const here = scans.filter((scan) => ticks.has(scan.id)).length, bad = scans.filter((scan) => scan.problem).length;
    const missing = scans.filter((scan) => !scan.prepared).length;
    const elsewhere = ticks.size - here, n = (value) => value.toLocaleString("en");
    const parts = [`<b>${n(state.order.length)}</b> of ${n(scans.length)} shown`,
      bad ? `<b class="bad">${n(bad)}</b> with a problem` : "no problems known"];
    if (missing) parts.push(`<b>${n(missing)}</b> not prepared`);
    parts.push(`<b id="n-ticked">${n(here)}</b> excluded` + (elsewhere ? ` (and ${n(elsewhere)} not on this page)` : ""));
    const said = parts.join(" · ");
    if ($("counts").innerHTML !== said) $("counts").innerHTML = said;
    $("save").disabled = ticks.size === 0 && page.given.length === 0;
  }

  // Rows on the screen, and only those
  function clear() { nodes.forEach((node) => node.remove()); nodes.clear(); draw(); }
  function draw() {
    const first = Math.max(0, Math.floor(viewport.scrollTop / state.rowHeight) - OVERSCAN);
    const last = Math.min(state.order.length, Math.ceil((viewport.scrollTop + viewport.clientHeight) / state.rowHeight) + OVERSCAN);
    for (const [at, node] of nodes) {
      if (at >= first && at < last) continue;
      if (node.contains(document.activeElement)) viewport.focus({ preventScroll: true });
      node.remove();
      nodes.delete(at);
    }
    for (let at = first; at < last; at++) if (!nodes.has(at)) { const node = makeRow(at); nodes.set(at, node); list.append(node); }
  }
  function redraw(place) {
    const at = state.order.indexOf(place), old = nodes.get(at);
    if (!old) return;
    const active = old.contains(document.activeElement) ? document.activeElement.className : null;
    const node = makeRow(at);
    old.replaceWith(node);
    nodes.set(at, node);
    if (active != null) (node.querySelector(`.${active || "tick"}`) || node.querySelector(".tick")).focus({ preventScroll: true });
  }
  function picture(place, attributes) {
    const scan = scans[place];
    const node = element("button", { type: "button", class: "picture", "aria-label": `Enlarge ${scan.id}`, ...attributes },
      element("img", { src: "data:image/webp;base64," + pictures[place], alt: `Three planes of ${scan.id}`, draggable: "false" }));
    if (scan.overlay >= 0) node.append(element("i", { style: `background-image:var(--overlay-${scan.overlay})` }));
    return node;
  }
  function reasons(place) {
    const chosen = ticks.get(scans[place].id) || "";
    const all = ["", ...page.reasons, ...(chosen && !page.reasons.includes(chosen) ? [chosen] : [])];
    return element("select", { class: "reason", "aria-label": `Reason to exclude ${scans[place].id}`,
      onchange: (event) => tick(place, true, event.target.value) },
      ...all.map((word) => element("option", { value: word, selected: word === chosen }, word || "reason …")));
  }
  function tickBox(place, text) {
    const box = element("input", { type: "checkbox", class: "tick", "aria-label": `Exclude ${scans[place].id}`,
      onchange: (event) => tick(place, event.target.checked) });
    box.checked = ticks.has(scans[place].id);
    return element("label", { title: `Exclude ${scans[place].id}` }, box, element("span", {}, text));
  }
  function makeRow(at) {
    const place = state.order[at], scan = scans[place], out = ticks.has(scan.id);
    const say = about(place);
    const who = element("div", { class: "who", role: "rowheader" }, tickBox(place, scan.id));
    if (out) who.append(reasons(place));
    if (say) who.append(element("div", { class: scan.problem ? "say bad" : "say", title: say }, say));
    const node = element("div", { class: "row" + (at === state.current ? " current" : "") + (out ? " out" : ""), role: "row",
      "aria-rowindex": at + 2, "data-scan": scan.id, style: `top:${at * state.rowHeight}px`,
      onmousedown: () => setCurrent(at, false) }, who);
    const cell = element("div", { role: "cell", style: "display:grid;place-items:center" });
    cell.append(pictures[place] ? picture(place, { onclick: () => enlarge(at) }) : element("span", { class: "blank" }, "no picture"));
    node.append(cell, element("div", { class: "cell score", role: "cell", title: page.oddness }, shown(scan.odd)));
    for (const [index, column] of columns.entries()) {
      if (!column.shown) continue;
      const far = z[index][place];
      const depth = isOdd(index, place) ? Math.min(0.1 + 0.04 * Math.abs(far), 0.45) : 0;
      node.append(element("div", { class: `cell${depth ? " odd" : ""}${column.text ? " text" : ""}`, role: "cell",
        style: depth ? `--depth:${depth.toFixed(2)}` : null, title: far == null ? null : `z ${signed(far)}; median ${shown(column.usual[0])}` },
        shown(values[index][place])));
    }
    return node;
  }
  function setCurrent(at, scroll) {
    if (!state.order.length) return;
    const old = state.current;
    state.current = Math.min(Math.max(at, 0), state.order.length - 1);
    nodes.get(old)?.classList.remove("current");
    if (scroll) {
      const top = state.current * state.rowHeight, room = viewport.clientHeight - $("head").offsetHeight;
      if (top < viewport.scrollTop) viewport.scrollTop = top;
      else if (top + state.rowHeight > viewport.scrollTop + room) viewport.scrollTop = top + state.rowHeight - room;
      draw();
    }
    nodes.get(state.current)?.classList.add("current");
  }

  // Headings
  function heading(key, label, unit, meaning, lowFirst, text) {
    const sorted = state.key === key;
    const button = element("button", { type: "button", class: text ? "text" : null, title: meaning || label, onclick: () => {
      state.down = state.key === key ? !state.down : !lowFirst;
      state.key = key;
      headings();
      arrange(false);
    } }, element("span", { class: "name" }, label), element("small", {}, unit || ""));
    return element("div", { role: "columnheader", "data-key": key,
      "aria-sort": sorted ? (state.down ? "descending" : "ascending") : "none" }, button);
  }
  function headings() {
    const had = document.activeElement?.closest("#head [data-key]")?.dataset.key;
    const shownColumns = columns.filter((column) => column.shown);
    root.style.setProperty("--figures", shownColumns.map((column) => {
      const longest = Math.max(column.label.length, below(column).length);
      if (column.text) return Math.min(22, Math.max(longest, ...lengths(column))) * 7.2 + 2 * PADDING + "px";
      return Math.max(LEAST, Math.min(longest, 20) * 6.4 + 2 * PADDING) + "px";
    }).join(" ") + " 1fr");
    $("head").replaceChildren(heading("id", "Scan", "exclude", "by name", true, true),
      element("div", { role: "columnheader" }, element("button", { type: "button", class: "text", disabled: true }, "Picture")),
      heading("odd", "Oddness", "", page.oddness),
      ...shownColumns.map((column) => heading(column.key, column.label, below(column), column.meaning || column.key, column.lowIsOdd || column.text, column.text)));
    if (had) $("head").querySelector(`[data-key="${CSS.escape(had)}"] button`)?.focus();
  }

  // One scan, large
  function enlarge(at, inPlace) {
    setCurrent(at, !inPlace);
    const place = state.order[state.current], scan = scans[place];
    const focused = document.activeElement?.className, inTick = $("large-tick").contains(document.activeElement);
    $("large-name").textContent = scan.id;
    $("large-place").textContent = `${(state.current + 1).toLocaleString("en")} of ${state.order.length.toLocaleString("en")}`;
    $("large-note").textContent = about(place);
    $("large-note").className = scan.problem ? "say bad" : "say soft";
    if (!inPlace || $("large-picture").dataset.scan !== scan.id) {
      $("large-picture").dataset.scan = scan.id;
      $("large-picture").replaceChildren(...(pictures[place] ? [picture(place, { disabled: true })] : []));
    }
    $("large-tick").replaceChildren(tickBox(place, "Exclude"), ...(ticks.has(scan.id) ? [reasons(place)] : []));
    $("large-usual").textContent = "Beside each figure: where the middle 90 % of the cohort lie, and z where the scan lies far out.";
    $("large-figures").replaceChildren(...columns.map((column, index) => {
      const far = z[index][place], usual = column.usual;
      return element("div", { class: isOdd(index, place) ? "cell-odd" : null, title: column.meaning || column.key },
        element("span", {}, withUnit(column)),
        element("b", {}, shown(values[index][place])),
        element("small", {}, usual ? `${shown(usual[1])} – ${shown(usual[2])}` + (isOdd(index, place) ? ` · z ${signed(far)}` : "") : ""));
    }));
    if (!$("large").open) $("large").showModal();
    else if (inTick) ($("large-tick").querySelector("." + (focused || "tick")) || $("large-tick").querySelector(".tick"))?.focus();
  }

  function save() {
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...ticks].sort((a, b) => collator.compare(a[0], b[0])).map((row) => row.map(quoted).join(","));
    const blob = new Blob([["scan_id,reason", ...lines, ""].join("\n")], { type: "text/csv" });
    const link = element("a", { href: URL.createObjectURL(blob), download: "exclude.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function resize() {
    const mm = Number($("size").value), top = state.order.length ? viewport.scrollTop / state.rowHeight : 0;
    state.rowHeight = Math.max(62, Math.round(page.height * mm) + GAP);
    const set = (name, value) => root.style.setProperty(name, value);
    set("--mm", mm); set("--row", state.rowHeight + "px"); set("--picture", Math.ceil(page.width * mm) + GAP + "px");
    set("--lines", Math.max(1, Math.floor((state.rowHeight - 34) / 16)));
    list.style.height = state.order.length * state.rowHeight + "px";
    viewport.scrollTop = top * state.rowHeight;
    clear();
  }
  function toggleEdges() { $("edges").checked = !$("edges").checked; $("edges").dispatchEvent(new Event("change")); }

  document.addEventListener("keydown", (event) => {
    const target = event.target, typing = target.matches("input[type=search], select");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { document.querySelectorAll(".menu[open]").forEach((menu) => { menu.open = false; }); if (target.id === "filter") viewport.focus(); return; }
    if (typing) { if (target.id === "filter" && (event.key === "Enter" || event.key === "ArrowDown")) { viewport.focus(); event.preventDefault(); } return; }
    const large = $("large").open, move = (step) => (large ? enlarge(Math.min(Math.max(state.current + step, 0), state.order.length - 1)) : setCurrent(state.current + step, true));
    const place = state.order[state.current];
    const inTable = large || target === viewport || list.contains(target) || target === document.body;
    if (event.key === "e") toggleEdges();
    else if (event.key === "/" && !large) $("filter").focus();
    else if (place == null || !inTable) return;
    else if (event.key === "ArrowDown" || event.key === "j" || (large && event.key === "ArrowRight")) move(1);
    else if (event.key === "ArrowUp" || event.key === "k" || (large && event.key === "ArrowLeft")) move(-1);
    else if (event.key === "PageDown" && !large) move(Math.max(1, Math.floor(viewport.clientHeight / state.rowHeight) - 1));
    else if (event.key === "PageUp" && !large) move(-Math.max(1, Math.floor(viewport.clientHeight / state.rowHeight) - 1));
    else if (event.key === "Home" && !large) move(-scans.length);
    else if (event.key === "End" && !large) move(scans.length);
    else if (event.key === "x") tick(place, !ticks.has(scans[place].id));
    else if (/^[1-9]$/.test(event.key) && page.reasons[event.key - 1]) tick(place, true, page.reasons[event.key - 1]);
    else if (event.key === "Enter" && !large && (target === viewport || target === document.body)) enlarge(state.current);
    else return;
    event.preventDefault();
  });
  document.addEventListener("click", (event) => document.querySelectorAll(".menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; }));
  viewport.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  window.addEventListener("resize", draw);
  let waiting = 0;
  $("filter").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => arrange(false), 60); });
  for (const id of ["problems", "ticked"]) $(id).addEventListener("change", () => arrange(false));
  $("edges").addEventListener("change", () => document.body.classList.toggle("no-edges", !$("edges").checked));
  $("size").addEventListener("change", resize);
  $("save").addEventListener("click", save);
  $("before").addEventListener("click", () => enlarge(Math.max(state.current - 1, 0)));
  $("after").addEventListener("click", () => enlarge(Math.min(state.current + 1, state.order.length - 1)));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
  $("large").addEventListener("close", () => viewport.focus({ preventScroll: true }));
  $("column-list").append(...columns.map((column) => {
    const box = element("input", { type: "checkbox", onchange: (event) => { column.shown = event.target.checked; headings(); clear(); } });
    box.checked = column.shown;
    return element("label", { title: column.meaning || column.key }, box, withUnit(column));
  }));
  const drawn = [...new Set(page.overlays)];
  $("overlay-words").textContent = drawn.length
    ? `Amber and blue lines are the ${drawn.join(", and of other scans the ")}: amber the edge of the brain or head, blue of white matter and the ventricles.`
    : "There are none: the scans lie on no template.";
  $("edges-label").hidden = !drawn.length;
  root.style.setProperty("--w", page.width);
  root.style.setProperty("--h", page.height);
  headings();
  resize();
  arrange(false);
  root.dataset.ready = "yes";
})();
