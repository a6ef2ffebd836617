// Two circuits side by side. Data: [{task, base, sparse}], a model as circuits_explorer.py writes it, or null.
// Edges are drawn as one path for each (reader kind, strength), so that thousands of them move smoothly.
(() => {
  const source = document.getElementById("circuits-data");
  if (!source) return;
  const tasks = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const [taskBox, slider, shownText, inspector] = ["task", "edges", "edges-shown", "node"].map(byId);
  const SIDES = ["base", "sparse"];
  const KINDS = ["mlp", "key", "value", "query", "logits"];
  const STRENGTHS = 5, LISTED = 6, LIT = 20;
  const FIRST = 30; // edges shown at first; thousands are a tangle that no one can read
  const WIDTH = 440, LEFT = 30, EDGE = 14;
  let panels = {}; // side -> what `build` makes
  let limit = 1, current = null; // edges shown, name of the node looked at

  const signed = (score) => (score < 0 ? "−" : "+") + Math.abs(score).toPrecision(2);
  const short = (name) => name.replace(/^head /, "");
  // The share of the effect that so many of the strongest edges keep, between the sizes that were measured.
  const keptBy = (flat, edges) => {
    const [first, last] = [flat[0], flat[flat.length - 2]];
    if (!flat.length || edges < first || edges > last) return null;
    let i = 0;
    while (i < flat.length - 2 && flat[i + 2] <= edges) i += 2;
    if (i >= flat.length - 2) return flat[i + 1];
    const [from, to, at] = [flat[i], flat[i + 2], edges].map(Math.log1p);
    return flat[i + 1] + (flat[i + 3] - flat[i + 1]) * (at - from) / (to - from);
  };
  const counted = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

  const binned = (score, most) => Math.min(STRENGTHS - 1, Math.floor(Math.sqrt(Math.abs(score) / most) * STRENGTHS));

  // The same curve as in component_graph.py.
  const curve = (panel, [, , x0, y0], [, , x1, y1]) => {
    const rise = 0.45 * (y1 - y0);
    const aside = Math.abs(x1 - x0) < 0.5 && y1 - y0 > 1 ? Math.min(0.25 + 0.05 * (y1 - y0), 0.9) : 0;
    const at = (x, y) => `${panel.x(x).toFixed(1)},${panel.y(y).toFixed(1)}`;
    return `M${at(x0, y0)}C${at(x0 + aside, y0 + rise)} ${at(x1 + aside, y1 - rise)} ${at(x1, y1)}`;
  };

  // Everything of a panel that the slider does not change.
  const build = (side, model) => {
    const svg = byId("drawing-" + side);
    svg.replaceChildren();
    if (!model) return null;
    const column = (WIDTH - LEFT - EDGE) / (model.mlp + 1.2), row = Math.min(Math.max(700 / model.top, 13), 60);
    const height = row * model.top + 46;
    const panel = { side, model, svg, row, x: (x) => LEFT + (x + 0.5) * column, y: (y) => height - 30 - y * row };
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height.toFixed(0)}`);
    let dots = "";
    for (let layer = 0; layer < model.layers; layer++) {
      if (layer % Math.ceil(model.layers / 30) === 0) make("text", { class: "axis", x: LEFT - 8, y: panel.y(layer + 1) }, svg, layer);
      for (let head = 0; head < model.heads; head++) dots += `M${panel.x(head).toFixed(1)},${panel.y(layer + 1).toFixed(1)}h0`;
      dots += `M${panel.x(model.mlp).toFixed(1)},${panel.y(layer + 1.5).toFixed(1)}h0`;
    }
    for (let head = 0; head < model.heads; head += Math.ceil(model.heads / 12)) make("text", { x: panel.x(head), y: height - 8 }, svg, head);
    make("text", { x: panel.x(model.mlp), y: height - 8 }, svg, "MLP");
    make("text", { class: "axis name", x: 0, y: height - 8 }, svg, "head");
    make("text", { class: "axis name", x: 0, y: panel.y(model.layers) - 14 }, svg, "layer");
    make("path", { class: "grid", d: dots }, svg);
    panel.lines = make("g", { class: "lines" }, svg);
    panel.lit = make("g", { class: "lines" }, svg);
    panel.bars = make("path", { class: "bar" }, svg);
    panel.edges = [];
    const scores = model.nodes.map(() => 0), logits = model.nodes.findIndex(([, kind]) => kind === "logits");
    const most = Math.abs(model.edges[2]) || 1;
    for (let i = 0; i < model.edges.length; i += 3) {
      const [writer, reader, score] = model.edges.slice(i, i + 3);
      const [name, kind, , , nodes] = model.readers[reader];
      panel.edges.push({
        writer, nodes, score, kind, name, bin: binned(score, most),
        d: curve(panel, model.nodes[writer], model.readers[reader]), bar: kind === "key" || kind === "value" ? reader : -1,
      });
      scores[writer] += score;
      if (kind === "logits") scores[logits] += score;
    }
    const group = make("g", { class: "dots" }, svg);
    panel.nodes = model.nodes.map(([name, kind, x, y], index) => {
      const wide = kind === "head" || kind === "mlp" ? Math.min(column * 0.78, 30) : 84, high = Math.min(row * 0.64, 18, wide * 1.1);
      const element = make("g", { class: kind, role: "img", tabindex: -1, "aria-describedby": "node", "data-node": name }, group);
      const box = (w, h) => ({ x: panel.x(x) - w / 2, y: panel.y(y) - h / 2, width: w, height: h });
      make("rect", { class: "hit", ...box(Math.max(wide, column * 0.95), row * 0.8) }, element);
      make("rect", { class: "body", rx: 3, ...box(wide, high) }, element);
      const label = kind === "head" ? name.split(".")[1] : kind === "mlp" ? name.split(" ")[1] : name;
      if (wide > 11) make("text", { x: panel.x(x), y: panel.y(y) }, element, label);
      element.addEventListener("mouseenter", () => look(name));
      element.addEventListener("mouseleave", () => look(focused()));
      element.addEventListener("focus", () => { rove(panel, panel.nodes[index]); look(name); });
      element.addEventListener("blur", () => look(null));
      element.addEventListener("keydown", (event) => step(event, panel, index));
      return { name, kind, x, y, element, score: scores[index], reads: [], writes: [], on: false };
    });
    return panel;
  };
  const focused = () => (document.activeElement && document.activeElement.dataset.node) || null;

  // Paths of some edges, the strong ones on top.
  const draw = (edges, into) => {
    const paths = new Map();
    for (const edge of edges) {
      const key = edge.bin * KINDS.length + KINDS.indexOf(edge.kind);
      if (!paths.has(key)) paths.set(key, []);
      paths.get(key).push(edge.d);
    }
    into.replaceChildren();
    for (const key of [...paths.keys()].sort((a, b) => a - b)) {
      const strength = (Math.floor(key / KINDS.length) + 0.5) / STRENGTHS;
      make("path", {
        class: KINDS[key % KINDS.length], d: paths.get(key).join(""),
        "stroke-width": (0.4 + 3 * strength).toFixed(2), "stroke-opacity": (0.12 + 0.83 * strength).toFixed(2),
      }, into);
    }
  };

  const drawPanel = (panel) => {
    const shown = panel.edges.slice(0, limit), { model, nodes, side } = panel;
    for (const node of nodes) Object.assign(node, { reads: [], writes: [], on: node.kind === "embedding" || node.kind === "logits" });
    const bars = new Set();
    for (const edge of shown) {
      nodes[edge.writer].writes.push(edge);
      for (const index of edge.nodes) nodes[index].reads.push(edge);
      if (edge.bar >= 0) bars.add(edge.bar);
    }
    draw(shown, panel.lines);
    panel.bars.setAttribute("d", [...bars].map((reader) => {
      const [, , , y, ids] = model.readers[reader], xs = ids.map((id) => nodes[id].x);
      return `M${panel.x(Math.min(...xs) - 0.3).toFixed(1)},${panel.y(y).toFixed(1)}H${panel.x(Math.max(...xs) + 0.3).toFixed(1)}`;
    }).join(""));
    for (const node of nodes) {
      const own = node.writes.length || node.reads.some((edge) => edge.kind !== "key" && edge.kind !== "value");
      node.on = node.on || Boolean(own || node.reads.length);
      node.element.toggleAttribute("hidden", !node.on);
      node.element.classList.toggle("off", !own && node.kind === "head");
      node.element.setAttribute("aria-label", `${side}: ${node.name}, score ${signed(node.score)}, `
        + `reads ${counted(node.reads.length, "edge")}, writes ${counted(node.writes.length, "edge")}`);
    }
    const few = shown.length < model.count, alone = keptBy(model.kept, shown.length);
    const rest = few && alone !== null ? ` These ${shown.length.toLocaleString("en")} alone keep about ${Math.round(100 * alone)} %.` : "";
    const end = few && shown.length === panel.edges.length ? " The page has no more of them." : "";
    byId("shown-" + side).textContent = (few ? `${shown.length.toLocaleString("en")} of ${counted(model.count, "edge")}` : `all ${counted(model.count, "edge")}`)
      + ` that keep ${model.share} of the effect.${rest}${end}`;
    rove(panel, panel.nodes.find((node) => node.on && node.name === current) || panel.nodes.find((node) => node.kind === "logits"));
  };

  // One node of each drawing is in the tab order; arrows go on from it.
  const rove = (panel, chosen) => panel.nodes.forEach((node) => node.element.setAttribute("tabindex", node === chosen ? 0 : -1));
  const step = (event, panel, index) => {
    if (event.key === "Escape") return document.activeElement.blur();
    const away = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (!away) return;
    event.preventDefault();
    const here = panel.nodes[index];
    const cost = (node) => {
      const dx = node.x - here.x, dy = node.y - here.y;
      if (away[1]) return dy * away[1] > 0 ? 100 * Math.abs(dy) + Math.abs(dx) : Infinity;
      return dx * away[0] > 0 && Math.abs(dy) < 0.6 ? Math.abs(dx) : Infinity;
    };
    const best = panel.nodes.filter((node) => node.on).reduce((a, b) => (cost(b) < cost(a) ? b : a), here);
    if (best === here) return;
    best.element.focus();
  };

  const look = (name) => {
    current = name;
    for (const panel of Object.values(panels)) {
      const node = panel.nodes.find((one) => one.name === name && one.on);
      for (const one of panel.nodes) one.element.classList.toggle("at", one === node);
      panel.lines.classList.toggle("faded", Boolean(node));
      const lit = node ? [...node.reads.slice(0, LIT), ...node.writes.slice(0, LIT)] : [];
      const most = Math.max(...lit.map((edge) => Math.abs(edge.score)));
      draw(lit.map((edge) => ({ ...edge, bin: binned(edge.score, most) })), panel.lit);
    }
    inspect(name);
  };

  const list = (caption, edges, word, parent) => {
    if (!edges.length) return;
    const table = make("table", {}, parent);
    make("caption", {}, table, edges.length > LISTED ? `${caption}, ${LISTED} of ${edges.length}` : caption);
    for (const edge of edges.slice(0, LISTED)) {
      const row = make("tr", {}, make("tbody", {}, table));
      make("td", {}, row, word(edge));
      make("td", {}, row, signed(edge.score));
    }
  };

  const inspect = (name) => {
    inspector.replaceChildren();
    const some = Object.values(panels).map((panel) => panel.nodes.find((one) => one.name === name)).find(Boolean);
    if (name) make("h3", {}, inspector, some && some.kind === "head" ? `Head ${name.slice(5)}` : title(name).replace("Mlp", "MLP"));
    else make("p", { class: "soft" }, inspector, "The strongest edges and their scores (log-odds). Point at a box to see its own edges.");
    const pair = make("div", { class: "pair" }, inspector);
    for (const side of SIDES) {
      const box = make("div", {}, pair), panel = panels[side];
      make("span", { class: "dot " + side }, box);
      make("b", {}, box, `${title(side)} model`);
      if (!panel) { make("p", { class: "soft" }, box, "no circuit of this model keeps this much of the effect"); continue; }
      const from = (edge) => short(panel.model.nodes[edge.writer][0]);
      if (!name) { list("", panel.edges.slice(0, LISTED), (edge) => `${from(edge)} → ${edge.name}`, box); continue; }
      const node = panel.nodes.find((one) => one.name === name && one.on);
      if (!node) { make("p", { class: "soft" }, box, "not among the edges that are shown"); continue; }
      make("p", {}, box, `score ${signed(node.score)}`);
      list("reads", node.reads, (edge) => (some.kind === "head" ? edge.kind + " ← " : "") + from(edge), box);
      list("writes to", node.writes, (edge) => edge.name, box);
    }
    if (some && some.kind === "head") drawReads(inspector, name.slice(5), SIDES.filter((side) => panels[side]).map((side) => [side, panels[side].model]));
  };

  // The slider goes by equal factors from 1 to all.
  const most = () => Math.max(1, ...Object.values(panels).map((panel) => panel.edges.length));
  const set = (edges) => {
    const all = most();
    slider.value = all > 1 ? Math.round((slider.max * Math.log(Math.min(all, Math.max(1, edges)))) / Math.log(all)) : slider.max;
    drawAll();
  };
  const drawAll = () => {
    const all = most();
    limit = Math.round(Math.pow(all, slider.value / slider.max));
    byId("fewer").disabled = limit <= 1;
    byId("more").disabled = limit >= all;
    shownText.textContent = `up to ${limit.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", `up to ${counted(limit, "edge")} in each drawing`);
    Object.values(panels).forEach(drawPanel);
    look(current);
  };
  const choose = () => {
    const task = tasks[taskBox.value];
    panels = {};
    for (const side of SIDES) {
      const panel = build(side, task[side]);
      if (panel) panels[side] = panel;
      else byId("shown-" + side).textContent = "no circuit of this model keeps this much of the effect";
    }
    current = null;
    set(FIRST);
  };
  let waiting = false; // one redraw a frame, however fast the slider moves
  slider.addEventListener("input", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawAll(); });
  });
  byId("fewer").addEventListener("click", () => set(Math.floor(limit / 2)));
  byId("more").addEventListener("click", () => set(limit * 2));
  taskBox.addEventListener("change", choose);
  choose();
  document.documentElement.dataset.ready = "yes";
})();
