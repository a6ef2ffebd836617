"use strict";
const make = (tag, attributes, parent, text) => {
  const svg = ["svg", "g", "path", "rect", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};
const title = (name) => name[0].toUpperCase() + name.slice(1);

// What a head reads on the example prompt: arcs of the base model to the left of the tokens, of the sparse one to the right.
// models: [[side, model], ...]. Two models with different tokens get a drawing each.
const drawReads = (into, head, models) => {
  make("h4", {}, into, "Attention of this head on an example prompt");
  const text = ([, model]) => model.tokens.join("\0");
  const same = models.every((one) => text(one) === text(models[0]));
  for (const block of same ? [models] : models.map((one) => [one])) {
    const grid = make("div", { class: "reads", "aria-hidden": "true" }, into);
    const { tokens } = block[0][1];
    const box = (side) => make("svg", { class: side, viewBox: `0 0 100 ${tokens.length}`, preserveAspectRatio: "none" }, grid);
    const left = box("base"), list = make("ol", {}, grid), right = box("sparse");
    for (const token of tokens) make("li", { title: token }, list, token);
    for (const [side, model] of block) drawArcs(into, side, model, head, side === "base" ? left : right);
  }
};

const drawArcs = (into, side, model, head, svg) => {
  const line = make("p", { class: "strongest" }, into);
  make("span", { class: "dot " + side }, line);
  const [open, ...flat] = model.attention[head] || [null];
  if (open === null) return line.append(`${title(side)} model: no edge of the circuit starts at this head`);
  if (!open) return line.append(`${title(side)} model: all edges are closed`);
  const size = model.tokens.length, edges = [];
  for (let i = 0; i < flat.length; i += 2) edges.push({ query: Math.floor(flat[i] / size), key: flat[i] % size, weight: flat[i + 1] / 1000 });
  for (const { query, key, weight } of edges) {
    const at = (x) => (side === "base" ? 100 - x : x).toFixed(1), from = query + 0.5, to = key + 0.5;
    const bulge = 14 + 114 * Math.pow((query - key) / Math.max(1, size - 1), 0.7);
    make("path", {
      d: query === key ? `M${at(0)},${from - 0.15}C${at(9)},${from - 0.3} ${at(9)},${from + 0.3} ${at(0)},${from + 0.15}`
        : `M${at(0)},${from}C${at(bulge)},${from} ${at(bulge)},${to} ${at(0)},${to}`,
      "stroke-width": (0.5 + 3 * weight).toFixed(2), "stroke-opacity": (0.08 + 0.9 * weight).toFixed(2),
    }, svg);
  }
  line.append(`${title(side)} model: ${open} of ${(size * (size + 1)) / 2} edges open`
    + (model.floor ? `; those of weight ≥ ${model.floor} are drawn. ` : ". "));
  edges.sort((a, b) => b.weight - a.weight).slice(0, 3).forEach(({ query, key, weight }, index) => {
    line.append(index ? ", " : "Strongest: ");
    make("bdi", {}, line, model.tokens[query]);
    line.append(" reads ");
    make("bdi", {}, line, model.tokens[key]);
    line.append(` ${weight.toFixed(2)}`);
  });
};
