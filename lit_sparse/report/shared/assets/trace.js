"use strict";
// The graphs of a trace. Tokens are already in the page as text; the data holds numbers only, a model each:
// {layers, size, layer: [], head: [], query: [], key: [], weight: [], contribution: [] (edges, those shown first),
//  total, probability, steps: [[edges, probability]], shown, without: [] (of the edges shown), needed: [], cut: [], paths: [[edge]]}.
// A state is a position's residual stream before a layer (0 ... layers; the answer is read at the last one).
(() => {
  const source = document.getElementById("trace-data");
  if (!source) return;
  const models = JSON.parse(source.textContent);
  const LISTED = 30;
  const SVG = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, parent, svg = false) => {
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else element.setAttribute(name, value);
    }
    if (parent) parent.append(element);
    return element;
  };
  const number = (value) => value.toLocaleString("en-US");
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 0.1 ? 3 : 2)}`;
  const answer = document.querySelector("h1 .answer bdi").textContent;

  const start = (data, section) => {
    const find = (selector) => section.querySelector(selector);
    const [svg, slider, state, reading, list] = ["svg", "input", ".state", ".reading", ".edges"].map(find);
    const items = [...section.querySelectorAll(".axis li")];
    const buttons = items.map((item) => item.querySelector("button"));
    const names = buttons.map((button) => button.textContent);
    const last = data.size - 1;
    const [WIDTH, HEIGHT, TOP, BOTTOM] = [1000, 640, 40, 12];
    let scale = { width: WIDTH, height: HEIGHT, from: 0, step: 0 };
    let kept = 0; // edges
    let arcs = []; // {layer, query, key, edges: [index], sum, element}
    let on = null; // which edges lie on a walk back
    let cursor = { layer: data.layers, position: last };
    let pinned = null; // what has the focus: a function that shows it

    // --- geometry: in pixels of the drawing, so that nothing is stretched ---
    const measure = () => {
      const box = svg.getBoundingClientRect();
      const first = buttons[0].getBoundingClientRect(), end = buttons[last].getBoundingClientRect();
      const width = box.width || WIDTH, height = box.height || HEIGHT;
      const from = first.width ? first.left + first.width / 2 - box.left : 40;
      const to = end.width ? end.left + end.width / 2 - box.left : width - 20;
      scale = { width, height, from, step: last ? (to - from) / last : 0 };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    };
    const x = (position) => scale.from + scale.step * position;
    const y = (layer) => scale.height - BOTTOM - (scale.height - TOP - BOTTOM) * (layer / data.layers);

    // --- which of the kept edges lead to the answer ---
    const byLayer = Array.from({ length: data.layers }, () => []);
    data.layer.forEach((layer, edge) => byLayer[layer].push(edge));
    const walkBack = () => {
      on = new Set();
      let seen = new Set([last]);
      for (let layer = data.layers - 1; layer >= 0; layer--) {
        const next = new Set(seen);
        for (const edge of byLayer[layer]) {
          if (edge >= kept) break;
          if (!seen.has(data.query[edge])) continue;
          on.add(edge);
          next.add(data.key[edge]);
        }
        seen = next;
      }
      return seen;
    };

    const draw = () => {
      measure();
      const seen = walkBack();
      svg.replaceChildren();
      svg.classList.remove("focused");
      for (let layer = 0; layer <= data.layers; layer += data.layers > 12 ? 5 : 1) {
        make("text", { x: Math.max(4, x(0) - 26), y: y(layer) + 4, "text-anchor": "middle", text: layer }, svg, true);
      }
      make("text", { x: 0, y: y(data.layers) - 12, text: "layer" }, svg, true);
      const sums = new Map(), read = new Array(data.size).fill(-1);
      for (const edge of on) {
        const name = (data.layer[edge] * data.size + data.query[edge]) * data.size + data.key[edge];
        if (!sums.has(name)) sums.set(name, { layer: data.layer[edge], query: data.query[edge], key: data.key[edge], edges: [], sum: 0 });
        const arc = sums.get(name);
        arc.edges.push(edge);
        arc.sum += data.contribution[edge];
        read[data.key[edge]] = Math.max(read[data.key[edge]], data.layer[edge]);
      }
      read[last] = data.layers;
      read.forEach((layer, position) => {
        if (layer >= 0) make("line", { class: "stream", x1: x(position), x2: x(position), y1: y(0), y2: y(layer) }, svg, true);
      });
      arcs = [...sums.values()].sort((a, b) => Math.abs(a.sum) - Math.abs(b.sum));
      const most = arcs.length ? Math.abs(arcs[arcs.length - 1].sum) : 1;
      for (const arc of arcs) {
        const share = Math.abs(arc.sum) / most;
        arc.element = make("path", {
          class: arc.sum < 0 ? "arc minus" : "arc",
          d: `M${x(arc.key).toFixed(1)},${y(arc.layer).toFixed(1)}L${x(arc.query).toFixed(1)},${y(arc.layer + 1).toFixed(1)}`,
          "stroke-width": (0.5 + 6 * share).toFixed(2), opacity: Math.min(0.95, 0.12 + 0.9 * Math.sqrt(share)).toFixed(2),
        }, svg, true);
      }
      make("circle", { class: "node", cx: x(last), cy: y(data.layers), r: 5 }, svg, true);
      make("text", { class: "answer", x: x(last) + 6, y: y(data.layers) - 12, "text-anchor": "end", text: answer }, svg, true);
      items.forEach((item, position) => item.classList.toggle("off", !seen.has(position)));
      const [, probability] = data.steps[Number(slider.value)];
      state.replaceChildren();
      make("b", { text: `p = ${probability.toFixed(3)}` }, state);
      state.append(` (with all edges ${data.probability.toFixed(3)}) when only the first ${number(kept)} edges between tokens are kept. ` +
        `${number(on.size)} of them lead to the answer, from ${seen.size} of ${data.size} tokens.`);
      slider.setAttribute("aria-valuetext", `${number(kept)} edges, probability ${probability.toFixed(3)}`);
      find(".chip").setAttribute("aria-pressed", kept === data.shown);
      [...list.children].forEach((item, edge) => item.classList.toggle("beyond", edge >= kept));
      rest();
    };

    // --- what is looked at ---
    const highlight = (chosen) => {
      svg.classList.add("focused");
      for (const arc of arcs) arc.element.classList.toggle("on", chosen(arc));
      for (const extra of svg.querySelectorAll(".way, .cursor")) extra.remove();
      items.forEach((item) => item.classList.remove("current"));
      reading.replaceChildren();
    };
    const rest = () => {
      if (pinned) return pinned();
      svg.classList.remove("focused");
      for (const extra of svg.querySelectorAll(".way, .cursor")) extra.remove();
      items.forEach((item) => item.classList.remove("current"));
      reading.replaceChildren();
      reading.append("A line is an edge from a token to a later one, in one layer. The wider it is, the larger its contribution: ");
      make("span", { class: "plus", text: "blue raises the answer's logit" }, reading);
      reading.append(", ");
      make("span", { class: "minus", text: "orange lowers it" }, reading);
      reading.append(". The stronger the colour of a token, the more its ablation changes the answer. Point at a line, a crossing or a token, or go to them with Tab and the arrow keys.");
    };
    const token = (position, parent) => {
      make("bdi", { text: names[position] }, parent);
      parent.append(` (${position})`);
    };
    const describe = (edge, parent) => {
      parent.append(`${data.layer[edge]}.${data.head[edge]}: `);
      token(data.query[edge], parent);
      parent.append(" ← ");
      token(data.key[edge], parent);
      parent.append(` weight ${data.weight[edge].toFixed(3)}, `);
      make("span", { class: data.contribution[edge] < 0 ? "minus" : "plus", text: `${signed(data.contribution[edge])} logits` }, parent);
      parent.append(` (${(100 * Math.abs(data.contribution[edge]) / data.total).toPrecision(2)} %)`);
      if (edge < data.without.length) parent.append(`; circuit without this edge: p = ${data.without[edge].toFixed(3)}`);
    };
    const listing = (title, edges) => {
      if (!edges.length) return;
      make("div", { text: title }, reading);
      const rows = make("ul", {}, reading);
      edges.slice(0, 6).forEach((edge) => describe(edge, make("li", {}, rows)));
      if (edges.length > 6) make("li", { text: `and ${number(edges.length - 6)} more` }, rows);
    };
    const showArc = (arc) => {
      highlight((one) => one === arc);
      listing(`Layer ${arc.layer}, ${arc.edges.length === 1 ? "one head" : arc.edges.length + " heads"}:`, [...arc.edges].sort((a, b) => a - b));
    };
    const showEdge = (edge) => {
      const here = arcs.find((arc) => arc.edges.includes(edge));
      highlight((arc) => arc === here);
      describe(edge, make("div", {}, reading));
      if (!here) {
        reading.append(edge < kept ? "It does not lead to the answer along the kept edges." : "It is not among the edges kept.");
        way([edge], false);
      }
    };
    const showState = (layer, position) => {
      cursor = { layer, position };
      const into = (arc) => arc.layer === layer - 1 && arc.query === position;
      const out = (arc) => arc.layer === layer && arc.key === position;
      highlight((arc) => into(arc) || out(arc));
      make("circle", { class: "cursor", cx: x(position), cy: y(layer), r: 7 }, svg, true);
      items[position].classList.add("current");
      const title = make("div", {}, reading);
      token(position, title);
      title.append(layer === data.layers ? " after the last layer" : ` before layer ${layer}`);
      const edges = (chosen) => arcs.filter(chosen).flatMap((arc) => arc.edges).sort((a, b) => a - b);
      const [read, readers] = [edges(into), edges(out)];
      listing(`Edges into it, in layer ${layer - 1}:`, read);
      listing(`Edges out of it, in layer ${layer}:`, readers);
      if (!read.length && !readers.length) reading.append("No kept edge goes in or out here.");
    };
    const way = (edges, whole) => {
      const points = whole ? [[data.key[edges[0]], 0]] : [];
      for (const edge of edges) points.push([data.key[edge], data.layer[edge]], [data.query[edge], data.layer[edge] + 1]);
      if (whole) points.push([last, data.layers]);
      make("path", { class: "way", d: "M" + points.map(([position, layer]) => `${x(position)},${y(layer)}`).join("L") }, svg, true);
    };
    const showToken = (position) => {
      highlight((arc) => arc.key === position || arc.query === position);
      items[position].classList.add("current");
      const title = make("div", {}, reading);
      token(position, title);
      if (position === last) title.append(": the answer is read here.");
      else if (data.needed[position] === null) title.append(": no open edges lead from it to the answer.");
      else title.append(`: reaches the answer along the first ${data.needed[position] === 1 ? "edge" : number(data.needed[position]) + " edges"}.`);
      if (position !== last) {
        make("div", { text: `Its ablation changes log p by ${signed(data.cut[position])} nats, to p = ${(data.probability * Math.exp(data.cut[position])).toFixed(3)}.` }, reading);
      }
      const path = data.paths[position];
      if (path && path.length) {
        way(path, true);
        listing("Its first path (dashed):", path);
      }
    };

    // --- mouse and keyboard ---
    const near = (event) => {
      const box = svg.getBoundingClientRect();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      const layer = Math.round((scale.height - BOTTOM - py) / (scale.height - TOP - BOTTOM) * data.layers);
      const position = scale.step ? Math.round((px - scale.from) / scale.step) : 0;
      if (layer >= 0 && layer <= data.layers && position >= 0 && position <= last && Math.hypot(px - x(position), py - y(layer)) < 6) return { layer, position };
      let best = null, closest = 7;
      for (const arc of arcs) {
        const [x1, y1, x2, y2] = [x(arc.key), y(arc.layer), x(arc.query), y(arc.layer + 1)];
        const along = Math.min(1, Math.max(0, ((px - x1) * (x2 - x1) + (py - y1) * (y2 - y1)) / ((x2 - x1) ** 2 + (y2 - y1) ** 2)));
        const distance = Math.hypot(px - x1 - along * (x2 - x1), py - y1 - along * (y2 - y1));
        if (distance <= closest) [best, closest] = [arc, distance];
      }
      return best;
    };
    svg.addEventListener("mousemove", (event) => {
      const found = near(event);
      if (!found) rest();
      else if ("edges" in found) showArc(found);
      else showState(found.layer, found.position);
    });
    svg.addEventListener("mouseleave", rest);
    const pin = (element, show) => {
      element.addEventListener("focus", () => { pinned = show; show(); });
      element.addEventListener("blur", () => { pinned = null; rest(); });
    };
    pin(svg, () => showState(cursor.layer, cursor.position));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
      if (event.key === "Escape") svg.blur();
      if (!step) return;
      event.preventDefault();
      showState(Math.min(data.layers, Math.max(0, cursor.layer + step[0])), Math.min(last, Math.max(0, cursor.position + step[1])));
    });
    buttons.forEach((button, position) => {
      button.tabIndex = position ? -1 : 0;
      pin(button, () => {
        buttons.forEach((one, index) => { one.tabIndex = index === position ? 0 : -1; });
        showToken(position);
      });
      button.addEventListener("mouseenter", () => showToken(position));
      button.addEventListener("mouseleave", rest);
      button.addEventListener("click", () => button.focus());
      button.addEventListener("keydown", (event) => {
        const next = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: last }[event.key];
        if (event.key === "Escape") button.blur();
        if (next === undefined || next < 0 || next > last) return;
        event.preventDefault();
        buttons[next].focus();
      });
    });
    for (let edge = 0; edge < Math.min(LISTED, data.layer.length); edge++) {
      const button = make("button", { type: "button" }, make("li", {}, list));
      describe(edge, button);
      pin(button, () => showEdge(edge));
      button.addEventListener("mouseenter", () => showEdge(edge));
      button.addEventListener("mouseleave", rest);
    }

    // --- colours of tokens, slider ---
    const largest = Math.max(1e-9, ...data.cut.map(Math.abs));
    data.cut.forEach((change, position) => {
      const share = Math.abs(change) < 0.005 ? 0 : Math.sqrt(Math.abs(change) / largest);
      buttons[position].style.setProperty("--share", share.toFixed(3));
      buttons[position].style.setProperty("--colour", change < 0 ? "var(--for)" : "var(--against)");
    });
    slider.max = data.steps.length - 1;
    const choose = (step) => {
      slider.value = step;
      kept = data.steps[step][0];
      draw();
    };
    slider.addEventListener("input", () => choose(Number(slider.value)));
    const chosen = () => Math.max(0, data.steps.findIndex(([edges]) => edges >= data.shown));
    find(".chip").addEventListener("click", () => choose(chosen()));
    choose(chosen());
    addEventListener("resize", draw);
  };
  const sections = document.querySelectorAll(".model");
  models.forEach((data, index) => start(data, sections[index]));
  document.documentElement.dataset.ready = "yes";
})();
