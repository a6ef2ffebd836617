"use strict";
// The attention explorer. Tokens are already in the page as text; the data holds numbers only:
// {layers, heads, size, floor, top: [[layer, head]], sides: {before, after: {name, whole}}, before: [flat], after: [flat]}
// where flat is [query * size + key, weight in thousandths, ...] of head layer * heads + head. A side that is whole has
// every open edge, any other its weights from the floor on; "before" may be missing.
(() => {
  const source = document.getElementById("attention-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const [layerBox, headBox, map, arcs, reading] = ["layer", "head", "map", "arcs", "reading"].map(byId);
  const rows = [...document.querySelectorAll(".tokens li")];
  const buttons = rows.map((row) => row.querySelector("button"));
  const names = buttons.map((button) => button.textContent);
  const allowed = (data.size * (data.size + 1)) / 2;
  const SIDES = ["before", "after"].filter((side) => side in data.sides);
  const number = (value) => value.toLocaleString("en-US");
  const counted = (side, edges) => data.sides[side].whole
    ? `${number(edges)} of ${number(allowed)} edges open`
    : `${number(edges)} of ${number(allowed)} edges drawn: those of weight ≥ ${data.floor}`;
  let [layer, head] = data.top[0] || [0, 0];
  let current = null; // the query token that is shown alone

  const make = (tag, attributes, parent) => {
    const svg = tag === "path";
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else element.setAttribute(name, value);
    }
    if (parent) parent.append(element);
    return element;
  };

  const edges = (side) => {
    const flat = data[side][layer * data.heads + head];
    const list = [];
    for (let i = 0; i < flat.length; i += 2) {
      list.push({ query: Math.floor(flat[i] / data.size), key: flat[i] % data.size, weight: flat[i + 1] / 1000 });
    }
    return list;
  };
  const written = (weight) => (weight < 0.001 ? "<.001" : weight >= 0.9995 ? "1" : weight.toFixed(3).slice(1));

  // One arc in a box 100 wide and `size` high; tokens are at the box's inner side.
  const arcPath = (edge, side) => {
    const at = (x) => (side === "before" ? 100 - x : x).toFixed(1);
    const [from, to] = [edge.query + 0.5, edge.key + 0.5];
    if (edge.query === edge.key) return `M${at(0)},${from - 0.15}C${at(9)},${from - 0.3} ${at(9)},${from + 0.3} ${at(0)},${from + 0.15}`;
    const bulge = 12 + 116 * Math.pow((edge.query - edge.key) / Math.max(1, data.size - 1), 0.7);
    return `M${at(0)},${from}C${at(bulge)},${from} ${at(bulge)},${to} ${at(0)},${to}`;
  };

  const drawHead = () => {
    layerBox.value = layer;
    headBox.value = head;
    for (const cell of map.querySelectorAll(".cell")) {
      const checked = Number(cell.dataset.layer) === layer && Number(cell.dataset.head) === head;
      cell.setAttribute("aria-checked", checked);
      cell.tabIndex = checked ? 0 : -1;
    }
    const chosen = map.querySelector('.cell[aria-checked="true"]');
    const view = map.parentElement;
    if (view.scrollWidth > view.clientWidth) view.scrollLeft = chosen.offsetLeft - view.clientWidth / 2;
    for (const chip of document.querySelectorAll(".chip")) {
      chip.setAttribute("aria-pressed", Number(chip.dataset.layer) === layer && Number(chip.dataset.head) === head);
    }
    for (const side of SIDES) {
      const list = edges(side);
      const svg = arcs.querySelector("svg." + side);
      svg.replaceChildren();
      for (const edge of list) {
        make("path", {
          d: arcPath(edge, side), "data-query": edge.query, "data-key": edge.key,
          "stroke-width": (0.6 + 4.4 * edge.weight).toFixed(2), opacity: (0.25 + 0.7 * edge.weight).toFixed(2),
        }, svg);
      }
      byId("count-" + side).textContent = counted(side, list.length);
    }
    drawToken();
  };

  const sentence = (side, list) => {
    const paragraph = make("div", {}, reading);
    make("span", { class: "dot " + side }, paragraph);
    const { name, whole } = data.sides[side];
    paragraph.append(`${name}: `);
    if (!list.length) paragraph.append(whole ? "no token, because every edge is closed" : `all weights are below ${data.floor}`);
    list.slice(0, 8).forEach((edge, index) => {
      if (index) paragraph.append(", ");
      make("bdi", { text: names[edge.key] }, paragraph);
      paragraph.append(` ${edge.weight < 0.001 ? "<0.001" : edge.weight.toFixed(3)}`);
    });
    if (list.length > 8) paragraph.append(` and ${list.length - 8} more`);
  };

  const drawToken = () => {
    arcs.classList.toggle("focused", current !== null);
    reading.replaceChildren();
    const shown = {};
    for (const side of SIDES) {
      shown[side] = edges(side).filter((edge) => edge.query === current).sort((a, b) => b.weight - a.weight);
      for (const path of arcs.querySelectorAll(`svg.${side} path`)) {
        path.classList.toggle("on", Number(path.dataset.query) === current);
      }
    }
    rows.forEach((row, index) => {
      row.classList.toggle("current", index === current);
      row.classList.toggle("later", current !== null && index > current);
      for (const side of SIDES) {
        const edge = shown[side].find((one) => one.key === index);
        row.querySelector("output." + side).textContent = edge ? written(edge.weight) : "";
        buttons[index].style.setProperty(side === "before" ? "--b" : "--a", edge ? Math.sqrt(edge.weight).toFixed(3) : 0);
      }
    });
    if (current === null) {
      reading.append("Point at a token, tap it or go to it with Tab. Then this box lists the tokens that the head reads there, with their attention weights.");
      return;
    }
    const line = make("div", {}, reading);
    make("bdi", { text: names[current] }, line);
    line.append(` (token ${current}): tokens that layer ${layer}, head ${head} reads here, with attention weights`);
    for (const side of SIDES) sentence(side, shown[side]);
  };

  const chooseHead = (newLayer, newHead, focus) => {
    layer = Math.min(Math.max(newLayer, 0), data.layers - 1);
    head = Math.min(Math.max(newHead, 0), data.heads - 1);
    drawHead();
    if (focus) map.querySelector('.cell[aria-checked="true"]').focus();
  };
  const chooseToken = (index, focus) => {
    current = index;
    if (index !== null) buttons.forEach((button, i) => { button.tabIndex = i === index ? 0 : -1; });
    drawToken();
    if (focus) buttons[index].focus();
  };

  // Controls: two lists, the map of heads, the heads that move most attention.
  for (let l = 0; l < data.layers; l++) make("option", { value: l, text: l }, layerBox);
  for (let h = 0; h < data.heads; h++) make("option", { value: h, text: h }, headBox);
  for (const box of [layerBox, headBox]) {
    box.addEventListener("change", () => chooseHead(Number(layerBox.value), Number(headBox.value)));
  }
  for (const [l, h] of data.top) {
    const chip = make("button", { type: "button", class: "chip", "data-layer": l, "data-head": h, text: `L${l} H${h}` }, byId("chips"));
    chip.setAttribute("aria-label", `layer ${l}, head ${h}`);
    chip.addEventListener("click", () => chooseHead(l, h));
  }

  const most = Math.max(1, ...data.after.map((flat) => flat.length / 2));
  map.style.gridTemplateColumns = `auto repeat(${data.layers}, auto)`;
  for (let h = 0; h < data.heads; h++) {
    make("span", { text: h, "aria-hidden": "true" }, map);
    for (let l = 0; l < data.layers; l++) {
      const count = data.after[l * data.heads + h].length / 2;
      const name = `layer ${l}, head ${h}: ${counted("after", count)}`;
      const cell = make("button", {
        type: "button", role: "radio", class: "cell", "data-layer": l, "data-head": h, "aria-label": name, title: name,
      }, map);
      cell.style.setProperty("--share", (Math.log1p(count) / Math.log1p(most)).toFixed(3));
      cell.addEventListener("click", () => chooseHead(l, h));
    }
  }
  make("span", { text: "", "aria-hidden": "true" }, map);
  for (let l = 0; l < data.layers; l++) make("span", { text: l % 5 && data.layers > 12 ? "" : l, "aria-hidden": "true" }, map);
  map.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    chooseHead(layer + step[0], head + step[1], true);
  });

  // Tokens: hover shows one, leaving goes back to the one that has the focus.
  rows.forEach((row, index) => row.addEventListener("mouseenter", () => chooseToken(index)));
  buttons.forEach((button, index) => {
    button.tabIndex = index ? -1 : 0;
    button.addEventListener("focus", () => chooseToken(index));
    button.addEventListener("click", () => chooseToken(index));
    button.addEventListener("blur", () => chooseToken(null));
  });
  const list = document.querySelector(".tokens");
  list.addEventListener("mouseleave", () => {
    const focused = buttons.indexOf(document.activeElement);
    chooseToken(focused < 0 ? null : focused);
  });
  list.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const next = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: data.size - 1 }[event.key];
    if (event.key === "Escape" && at >= 0) buttons[at].blur();
    if (next === undefined || at < 0) return;
    event.preventDefault();
    if (next >= 0 && next < data.size) chooseToken(next, true);
  });
  drawHead();
  document.documentElement.dataset.ready = "yes";
})();
