"use strict";
// The drawings of a sentence's circuits. All text is already in the page: tokens as buttons, edges as rows of a table.
// The data holds numbers only, a model each: {layers: [of each row of the drawing], streams: [how far up a position is
// in use], labelled, row: [], bend: [], layer: [], head: [], query: [], key: [], effect: [] (the strongest edge first)}.
(() => {
  const source = document.getElementById("circuit-data");
  if (!source) return;
  const SVG = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, parent, svg = true) => {
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else element.setAttribute(name, value);
    }
    parent.append(element);
    return element;
  };
  const [TOP, BOTTOM, BEND] = [34, 8, 0.34];
  const ALONG = [0.5, 0.36, 0.64, 0.24, 0.76]; // where on a line its name may stand, the best place first
  const answer = document.querySelector("h1 .answer bdi").textContent;

  const start = (data, section) => {
    const find = (selector) => section.querySelector(selector);
    find(".drawing").hidden = false;
    const [svg, reading, body] = ["svg", ".reading", ".kept tbody"].map(find);
    const items = [...section.querySelectorAll(".axis li")];
    const tokens = items.map((item) => item.querySelector("button"));
    const rows = [...body.rows]; // of the table, in the order of the data
    const names = rows.map((row) => row.querySelector("button"));
    const [size, count, last, height] = [tokens.length, rows.length, tokens.length - 1, data.layers.length];
    const strongest = Math.max(1e-12, ...data.effect.map(Math.abs));
    const compare = (...columns) => (a, b) => columns.reduce((sign, column) => sign || column[a] - column[b], 0);
    const ORDERS = {
      layer: compare(data.layer, data.head, data.query, data.key),
      query: compare(data.query, data.layer, data.head, data.key),
      key: compare(data.key, data.layer, data.head, data.query),
      effect: (a, b) => b - a,
    };
    const inLayers = [...rows.keys()].sort(ORDERS.layer);
    let [lines, labels] = [[], []]; // elements, an edge each
    let cursor = 0; // where in inLayers the drawing's keyboard stands
    let pinned = null; // what has the focus: a function that shows it

    // --- the drawing, in pixels, so that nothing is stretched ---
    const draw = () => {
      const box = svg.getBoundingClientRect();
      const middle = (button) => button.getBoundingClientRect().left + button.getBoundingClientRect().width / 2 - box.left;
      const from = size ? middle(tokens[0]) : 0, step = size > 1 ? (middle(tokens[last]) - from) / last : 0;
      const tall = Math.min(58, Math.max(34, 640 / Math.max(1, height)));
      const bottom = TOP + Math.max(1, height) * tall;
      const x = (position) => from + step * position, y = (level) => bottom - level * tall;
      svg.setAttribute("viewBox", `0 0 ${box.width} ${bottom + BOTTOM}`);
      svg.style.height = `${bottom + BOTTOM}px`;
      svg.replaceChildren();
      data.layers.forEach((layer, row) => {
        if (row % 2 === 0) make("rect", { class: "band", x: 0, y: y(row + 1), width: box.width, height: tall }, svg);
        make("text", { x: 4, y: y(row + 0.5) + 4, text: `L${layer}` }, svg);
      });
      data.streams.forEach((level, position) => {
        if (level !== null) make("line", { class: "stream", x1: x(position), x2: x(position), y1: y(0), y2: y(level) }, svg);
        items[position].classList.toggle("off", level === null);
      });
      const points = data.row.map((row, edge) => {
        const [a, b] = [[x(data.key[edge]), y(row)], [x(data.query[edge]), y(row + 1)]];
        const length = Math.hypot(b[0] - a[0], b[1] - a[1]), far = 2 * BEND * tall * data.bend[edge];
        return [a, [(a[0] + b[0]) / 2 + (far * (b[1] - a[1])) / length, (a[1] + b[1]) / 2 - (far * (b[0] - a[0])) / length], b];
      });
      const path = (edge) => `M${points[edge][0]}Q${points[edge][1]} ${points[edge][2]}`;
      lines = points.map(() => null);
      for (let edge = count - 1; edge >= 0; edge--) {
        const share = Math.abs(data.effect[edge]) / strongest;
        lines[edge] = make("path", {
          class: data.effect[edge] < 0 ? "arc minus" : "arc", d: path(edge),
          "stroke-width": (1 + 5 * share).toFixed(2), opacity: (0.35 + 0.6 * Math.sqrt(share)).toFixed(2),
        }, svg);
        const hit = make("path", { class: "hit", d: path(edge) }, svg);
        hit.addEventListener("mouseenter", () => showEdge(edge));
        hit.addEventListener("mouseleave", rest);
      }
      labels = data.labelled ? place(points, box.width) : [];
      make("circle", { class: "node", cx: x(last), cy: y(height), r: 5 }, svg);
      make("text", { class: "answer", x: x(last) + 6, y: y(height) - 12, "text-anchor": "end", text: answer.length > 24 ? `${answer.slice(0, 23)}…` : answer }, svg);
      rest();
    };
    // Names of edges, the strongest first, each where it covers the least of those before it.
    const place = (points, width) => {
      const taken = [];
      return points.map(([a, control, b], edge) => {
        const text = `${data.layer[edge]}.${data.head[edge]}`, half = 3.1 * text.length + 3;
        const on = (t, i) => (1 - t) ** 2 * a[i] + 2 * t * (1 - t) * control[i] + t ** 2 * b[i];
        const inside = (x) => Math.max(half + 1, Math.min(width - half - 1, x)); // at the drawing's sides no name is cut off
        const at = (t, i) => (i ? on(t, 1) : inside(on(t, 0)));
        const covers = (t) => taken.reduce((sum, one) => sum + Math.max(0, half + one.half - Math.abs(at(t, 0) - one.x)) * Math.max(0, 16 - Math.abs(at(t, 1) - one.y)), 0);
        const t = ALONG.find((one) => covers(one) === 0) ?? ALONG.reduce((best, one) => (covers(one) < covers(best) ? one : best));
        taken.push({ x: at(t, 0), y: at(t, 1), half });
        const name = make("g", { class: data.effect[edge] < 0 ? "name minus" : "name" }, svg);
        make("rect", { x: at(t, 0) - half, y: at(t, 1) - 7.5, width: 2 * half, height: 15, rx: 3 }, name);
        make("text", { x: at(t, 0), y: at(t, 1) + 3.8, "text-anchor": "middle", text }, name);
        return name;
      });
    };

    // --- what is looked at ---
    const highlight = (chosen) => {
      svg.classList.toggle("focused", chosen !== null);
      rows.forEach((row, edge) => {
        const on = chosen !== null && chosen(edge);
        for (const one of [lines[edge], labels[edge]]) if (one) one.classList.toggle("on", on);
        row.classList.toggle("current", on);
      });
      items.forEach((item) => item.classList.remove("current"));
      reading.replaceChildren();
    };
    const describe = (edge, parent) => {
      const [name, query, key, weight, loss] = [...rows[edge].cells].map((cell) => cell.textContent);
      parent.append(`${name}: `);
      make("bdi", { text: query }, parent, false);
      parent.append(" reads ");
      make("bdi", { text: key }, parent, false);
      parent.append(` with attention weight ${weight}; without this edge `);
      make("span", { class: data.effect[edge] < 0 ? "minus" : "plus", text: loss }, parent, false);
    };
    const listing = (title, edges) => {
      if (!edges.length) return;
      make("div", { text: title }, reading, false);
      const list = make("ul", {}, reading, false);
      for (const edge of edges.slice(0, 6)) describe(edge, make("li", {}, list, false));
      if (edges.length > 6) make("li", { text: `and ${edges.length - 6} more` }, list, false);
    };
    const showEdge = (edge) => {
      highlight((one) => one === edge);
      for (const position of [data.query[edge], data.key[edge]]) items[position].classList.add("current");
      describe(edge, make("div", {}, reading, false));
    };
    const showToken = (position) => {
      highlight((edge) => data.query[edge] === position || data.key[edge] === position);
      items[position].classList.add("current");
      const title = make("div", {}, reading, false);
      make("bdi", { text: tokens[position].textContent }, title, false);
      title.append(position === last ? ", where the answer is read" : data.streams[position] === null ? ": no edge of the circuit" : "");
      listing("Edges into it:", inLayers.filter((edge) => data.query[edge] === position));
      listing("Edges out of it:", inLayers.filter((edge) => data.key[edge] === position && data.query[edge] !== position));
    };
    const rest = () => {
      if (pinned) return pinned();
      highlight(null);
      reading.append("A line is an edge, named layer.head. It starts below at the key, the token that is read, and ends above at the query. Only layers with edges are drawn. The wider a line, ");
      make("span", { class: "plus", text: "the larger the loss without it" }, reading, false);
      if (data.effect.some((effect) => effect < 0)) {
        reading.append("; the circuit does better without an ");
        make("span", { class: "minus", text: "orange one" }, reading, false);
      }
      reading.append(". Point at a line or a token, or go to them with Tab and the arrow keys.");
    };

    // --- mouse and keyboard ---
    const pin = (element, show) => {
      element.addEventListener("focus", () => { pinned = show; show(); });
      element.addEventListener("blur", () => { pinned = null; rest(); });
    };
    // One of several elements can be reached with Tab; keys lead to the others. order() gives them as they stand.
    const rove = (elements, order, back, forth, show) => elements.forEach((element, index) => {
      element.tabIndex = element === order()[0] ? 0 : -1;
      pin(element, () => {
        for (const one of elements) one.tabIndex = one === element ? 0 : -1;
        show(index);
      });
      element.addEventListener("click", () => element.focus());
      element.addEventListener("keydown", (event) => {
        const now = order(), at = now.indexOf(element);
        const next = { [back]: at - 1, [forth]: at + 1, Home: 0, End: now.length - 1 }[event.key];
        if (event.key === "Escape") element.blur();
        if (next === undefined) return;
        event.preventDefault();
        if (now[next]) now[next].focus();
      });
    });
    const inTable = () => [...body.rows].map((row) => row.querySelector("button"));
    rove(tokens, () => tokens, "ArrowLeft", "ArrowRight", showToken);
    rove(names, inTable, "ArrowUp", "ArrowDown", showEdge);
    items.forEach((item, position) => {
      item.addEventListener("mouseenter", () => showToken(position));
      item.addEventListener("mouseleave", rest);
    });
    rows.forEach((row, edge) => {
      row.addEventListener("mouseenter", () => showEdge(edge));
      row.addEventListener("mouseleave", rest);
    });
    if (count) pin(svg, () => showEdge(inLayers[cursor]));
    else svg.removeAttribute("tabindex");
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") svg.blur();
      if (!step) return;
      event.preventDefault();
      cursor = Math.min(count - 1, Math.max(0, cursor + step));
      rest();
    });

    // --- the order of the table: a second click turns it round ---
    for (const button of section.querySelectorAll("[data-sort]")) {
      const head = button.parentElement, falls = button.dataset.sort === "effect";
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort"), first = falls ? "descending" : "ascending";
        const way = now === first ? (falls ? "ascending" : "descending") : first;
        for (const one of section.querySelectorAll("[aria-sort]")) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", way);
        const order = [...rows.keys()].sort(ORDERS[button.dataset.sort]);
        body.append(...(way === "ascending" ? order : order.reverse()).map((edge) => rows[edge]));
        names.forEach((name) => { name.tabIndex = name === inTable()[0] ? 0 : -1; });
      });
    }
    draw();
    find(".scroll").scrollLeft = find(".scroll").scrollWidth; // where it does not fit, the answer's end first
    addEventListener("resize", draw);
  };
  const sections = document.querySelectorAll(".model");
  JSON.parse(source.textContent).forEach((data, index) => start(data, sections[index]));

  for (const button of document.querySelectorAll(".copy")) {
    const code = button.closest("details").querySelector("code"), says = button.nextElementSibling;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        says.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        says.textContent = "selected: copy it with your keyboard";
      }
    });
  }
  document.documentElement.dataset.ready = "yes";
})();
