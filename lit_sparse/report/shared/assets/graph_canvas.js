// The drawing: layers from bottom to top, positions from left to right; in a layer heads below, features and errors above.
// Everything at rest is drawn once into a picture; what is looked at is drawn over a faded copy of it.
GraphPage.drawing = (model, canvas) => {
  const [LEFT, TOP, CELL, LEVELS] = [34, 40, 16, 6];
  const context = canvas.getContext("2d", { alpha: false });
  const rest = document.createElement("canvas"), under = rest.getContext("2d", { alpha: false });
  let view = { units: [], links: [] };
  let room = 0, width = 0, height = 0, scale = 1, colours = {}, grid = new Map(), columns = [], rowHeight = 0, tokenHeight = 0, upright = false;
  const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";

  const readColours = () => {
    const style = getComputedStyle(canvas);
    for (const name of ["paper", "raised", "ink", "soft", "line", "for", "against", "feature", "head", "error"]) {
      colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
  };

  // --- places ---
  const rowTop = (row) => height - tokenHeight - 10 - row * rowHeight;
  const layout = () => {
    room = canvas.parentElement.clientWidth;
    if (!room) return false;
    for (const unit of view.units) unit.hidden = false;
    const count = model.tokens.length;
    const cells = new Map(); // [column, row, heads or the rest] -> units
    for (const unit of view.units) {
      if (unit.kind === "token" || unit.kind === "logit" || unit.kind === "group") continue;
      const key = `${unit.position},${unit.row},${unit.kind === "head"}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(unit);
    }
    const most = new Array(count).fill(1);
    for (const units of cells.values()) most[units[0].position] = Math.max(most[units[0].position], units.length);
    context.font = FONT;
    const free = room - LEFT - 8;
    const columnsFor = (each) => most.map((number) => Math.min(140, Math.max(18, number * each + 8)));
    const sum = (list) => list.reduce((all, one) => all + one, 0);
    // Crowded columns come closer together before the drawing gets wider than its place.
    const each = [8, 7, 6, 5].find((one) => sum(columnsFor(one)) <= free) || 5;
    const least = columnsFor(each), needed = sum(least);
    width = Math.max(room, LEFT + needed + 8);
    const extra = Math.max(0, free - needed) / count;
    let from = LEFT;
    columns = least.map((one) => {
      const column = { from, width: one + extra };
      from += column.width;
      return column;
    });
    const texts = model.tokens.map((token) => context.measureText(GraphPage.cut(token, 16)).width);
    upright = texts.some((text, position) => text + 8 > columns[position].width);
    tokenHeight = upright ? Math.min(104, Math.max(...texts) + 12) : 22;
    rowHeight = Math.min(92, Math.max(19, 560 / (model.layers + 1)));
    height = TOP + (model.layers + 0.4) * rowHeight + tokenHeight + 10;
    scale = Math.min(2, window.devicePixelRatio || 1);
    for (const one of [canvas, rest]) {
      one.width = Math.round(width * scale);
      one.height = Math.round(height * scale);
    }
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;

    for (const units of cells.values()) {
      const column = columns[units[0].position];
      units.sort((a, b) => b.own - a.own);
      const step = Math.min(13, (column.width - 6) / units.length);
      units.forEach((unit, place) => {
        // The most influential in the middle, the others alternating to both sides.
        const side = place % 2 ? (place + 1) / 2 : -place / 2;
        unit.x = column.from + column.width / 2 + step * (side + (units.length % 2 ? 0 : -0.5));
        unit.y = rowTop(unit.row - 0.5) + (unit.kind === "head" ? 0.22 : -0.22) * rowHeight;
        unit.size = 2.4 + 3.4 * Math.sqrt(Math.max(0, unit.own) / model.most);
        unit.box = null;
      });
    }
    const logits = view.units.filter((unit) => unit.kind === "logit").sort((a, b) => b.raw.token_prob - a.raw.token_prob);
    let right = width - 6;
    context.font = `600 ${FONT}`;
    for (const unit of logits) {
      const wide = Math.min(150, context.measureText(unit.label = GraphPage.cut(unit.text, 14) + "  " + GraphPage.percent(unit.raw.token_prob)).width + 14);
      const beyond = right - wide < 2;
      unit.box = { x: right - wide, y: 6, w: wide, h: 20 };
      unit.hidden = beyond;
      [unit.x, unit.y] = [right - wide / 2, 26];
      right -= wide + 5;
    }
    for (const unit of view.units) {
      if (unit.kind === "token") {
        const column = columns[unit.position];
        const wide = Math.min(column.width - 3, upright ? 22 : 160);
        unit.box = { x: column.from + (column.width - wide) / 2, y: height - tokenHeight - 3, w: wide, h: tokenHeight };
        [unit.x, unit.y] = [unit.box.x + wide / 2, unit.box.y];
      } else if (unit.kind === "group") {
        const mean = (value) => unit.nodes.reduce((sum, node) => sum + value(node), 0) / unit.nodes.length;
        const wide = Math.min(170, context.measureText(unit.label = GraphPage.cut(unit.name, 22)).width + 16);
        const middle = mean((node) => columns[node.position].from + columns[node.position].width / 2);
        unit.x = Math.min(width - wide / 2 - 4, Math.max(LEFT + wide / 2, middle));
        unit.y = Math.max(48, Math.min(rowTop(0) - 14, rowTop(unit.row - 0.5)));
        unit.box = { x: unit.x - wide / 2, y: unit.y - 11, w: wide, h: 22 };
      }
    }
    apart(view.units.filter((unit) => unit.kind === "group"));
    // Hit testing by grid: every unit in the cells that its box or its surroundings touch.
    grid = new Map();
    for (const unit of view.units) {
      if (unit.hidden) continue;
      const { x, y, w, h } = unit.box || { x: unit.x - 8, y: unit.y - 8, w: 16, h: 16 };
      for (let i = Math.floor(x / CELL); i <= Math.floor((x + w) / CELL); i++) {
        for (let j = Math.floor(y / CELL); j <= Math.floor((y + h) / CELL); j++) {
          const key = i * 4096 + j;
          if (grid.has(key)) grid.get(key).push(unit);
          else grid.set(key, [unit]);
        }
      }
    }
    return true;
  };
  // Boxes of groups that overlap move up.
  const apart = (groups) => {
    groups.sort((a, b) => b.y - a.y);
    groups.forEach((group, place) => {
      for (const other of groups.slice(0, place)) {
        if (Math.abs(group.x - other.x) < (group.box.w + other.box.w) / 2 + 4 && Math.abs(group.y - other.y) < 26) group.y = other.y - 26;
      }
      group.box.y = group.y - 11;
    });
  };
  const hit = (x, y) => {
    let best = null, closest = 9;
    for (const unit of grid.get(Math.floor(x / CELL) * 4096 + Math.floor(y / CELL)) || []) {
      const box = unit.box;
      if (box && x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h) return unit;
      const distance = box ? Infinity : Math.hypot(x - unit.x, y - unit.y);
      if (distance < closest) [best, closest] = [unit, distance];
    }
    return best;
  };
  // The next unit in an arrow's direction: up and down by rows, left and right in the same row first.
  const next = (unit, key) => {
    const [dx, dy] = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
    let best = null, least = Infinity;
    for (const other of view.units) {
      const [x, y] = [other.x - unit.x, other.y - unit.y];
      if (other === unit || other.hidden || (dx ? x * dx <= 0.5 : y * dy <= 1.5)) continue;
      const cost = dx ? Math.abs(x) + 8 * Math.abs(y) : 3 * Math.abs(y) + Math.abs(x);
      if (cost < least) [best, least] = [other, cost];
    }
    return best;
  };

  // --- pictures ---
  const lines = (target, links, strength) => {
    const buckets = Array.from({ length: 2 * LEVELS }, () => []);
    for (const link of links) {
      const level = Math.min(LEVELS - 1, Math.floor(Math.sqrt(link.share) * LEVELS));
      buckets[2 * level + (link.weight < 0 ? 1 : 0)].push(link);
    }
    buckets.forEach((bucket, place) => {
      if (!bucket.length) return;
      const level = (Math.floor(place / 2) + 0.5) / LEVELS;
      target.strokeStyle = place % 2 ? colours.against : colours.for;
      target.globalAlpha = Math.min(1, strength * (0.1 + 0.9 * level));
      // Lines of at most a pixel are fast, many in a path; a path of thicker ones that cross each other is slow to fill.
      target.lineWidth = level < 0.3 ? 0.7 + level : 0.8 + 2.4 * level * level;
      const together = level < 0.3 ? 24 : 1;
      for (let start = 0; start < bucket.length; start += together) {
        target.beginPath();
        for (const { a, b } of bucket.slice(start, start + together)) {
          target.moveTo(a.x, a.y);
          target.lineTo(b.x, b.kind === "logit" || b.kind === "token" ? b.box.y + b.box.h : b.y);
        }
        target.stroke();
      }
    });
    target.globalAlpha = 1;
  };
  const outline = (target, unit, grow = 0) => {
    const size = unit.size + grow;
    if (unit.box) target.roundRect(unit.box.x - grow, unit.box.y - grow, unit.box.w + 2 * grow, unit.box.h + 2 * grow, 4);
    else if (unit.kind === "head") {
      target.moveTo(unit.x, unit.y - 1.25 * size);
      target.lineTo(unit.x + 1.25 * size, unit.y);
      target.lineTo(unit.x, unit.y + 1.25 * size);
      target.lineTo(unit.x - 1.25 * size, unit.y);
      target.closePath();
    } else if (unit.kind === "error") {
      const small = 0.8 * size;
      target.moveTo(unit.x, unit.y - small);
      target.lineTo(unit.x + small, unit.y + small);
      target.lineTo(unit.x - small, unit.y + small);
      target.closePath();
    } else {
      target.moveTo(unit.x + size, unit.y);
      target.arc(unit.x, unit.y, size, 0, 7);
    }
  };
  const shape = (target, unit, grow) => {
    target.beginPath();
    outline(target, unit, grow);
  };
  // Many nodes of one kind without text.
  const dots = (target, units, kind) => {
    target.lineWidth = 1;
    target.fillStyle = kind === "error" ? colours.paper : colours[kind];
    target.strokeStyle = kind === "error" ? colours.error : colours.paper;
    for (let start = 0; start < units.length; start += 40) {
      target.beginPath();
      for (const unit of units.slice(start, start + 40)) outline(target, unit);
      if (kind === "error") target.fill();
      target.stroke();
      if (kind !== "error") target.fill();
    }
  };
  const draw = (target, unit) => {
    if (unit.hidden) return;
    if (!unit.box) return dots(target, [unit], unit.kind);
    shape(target, unit);
    target.fillStyle = colours.raised;
    target.fill();
    target.lineWidth = unit.kind === "group" ? 2 : 1;
    const strong = unit.kind === "group" || (unit.kind === "logit" && unit.raw.is_target_logit);
    target.strokeStyle = strong ? colours.ink : colours.line;
    target.stroke();
    const { x, y, w, h } = unit.box;
    target.fillStyle = colours.ink;
    target.font = strong ? `600 ${FONT}` : FONT;
    target.textBaseline = "middle";
    target.save();
    target.beginPath();
    target.rect(x + 1, y, w - 2, h);
    target.clip();
    if (unit.kind === "token" && upright) {
      target.translate(x + w / 2, y + 6);
      target.rotate(Math.PI / 2);
      target.textAlign = "left";
      target.fillText(GraphPage.cut(unit.text, 16), 0, 0.5);
    } else {
      target.textAlign = "center";
      target.fillText(unit.kind === "token" ? GraphPage.cut(unit.text, 16) : unit.label, x + w / 2, y + h / 2 + 0.5);
    }
    target.restore();
  };
  const ring = (unit, colour, grow) => {
    shape(context, unit, grow);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.stroke();
  };
  const label = (unit, busy) => {
    const text = GraphPage.cut(unit.name + (unit.hint ? ` · ${unit.hint}` : ""), 44);
    context.font = FONT;
    const wide = context.measureText(text).width + 12;
    const x = Math.min(Math.max(2, unit.x - wide / 2), width - wide - 2);
    let y = unit.y - unit.size - 24;
    while (y > 2 && busy.some((one) => Math.abs(one.y - y) < 19 && x < one.x + one.w && one.x < x + wide)) y -= 19;
    busy.push({ x, y, w: wide });
    context.beginPath();
    context.roundRect(x, Math.max(2, y), wide, 18, 3);
    context.fillStyle = colours.ink;
    context.fill();
    context.fillStyle = colours.paper;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, x + 6, Math.max(2, y) + 9.5);
  };
  const paint = () => {
    under.setTransform(scale, 0, 0, scale, 0, 0);
    under.fillStyle = colours.paper;
    under.fillRect(0, 0, width, height);
    under.font = FONT;
    columns.forEach((column, position) => {
      if (position % 2) return;
      under.fillStyle = colours.raised;
      under.globalAlpha = 0.6;
      under.fillRect(column.from, TOP - 6, column.width, height - TOP - tokenHeight - 1);
      under.globalAlpha = 1;
    });
    under.textAlign = "right";
    under.textBaseline = "middle";
    under.strokeStyle = colours.line;
    under.lineWidth = 0.5;
    const every = rowHeight < 24 ? 5 : 1;
    for (let layer = 0; layer < model.layers; layer++) {
      const y = Math.round(rowTop(layer)) + 0.5;
      under.beginPath();
      under.moveTo(LEFT, y);
      under.lineTo(width - 8, y);
      under.stroke();
      under.fillStyle = colours.soft;
      if (layer % every === 0) under.fillText(layer, LEFT - 8, rowTop(layer + 0.5));
    }
    lines(under, view.links, Math.min(0.75, Math.max(0.3, 12 / Math.sqrt(view.links.length + 1))));
    for (const kind of ["error", "feature", "head"]) dots(under, view.units.filter((unit) => unit.kind === kind), kind);
    for (const kind of ["token", "logit", "group"]) for (const unit of view.units) if (unit.kind === kind) draw(under, unit);
  };

  const lookAt = ({ selected, hover, cursor, pinned }) => {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.fillStyle = colours.paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const focus = hover || cursor || selected;
    context.globalAlpha = focus ? 0.22 : 1;
    context.drawImage(rest, 0, 0);
    context.globalAlpha = 1;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const drawn = new Set(view.units);
    if (focus && drawn.has(focus)) {
      const ends = [];
      for (const [side, make] of [["inputs", (unit) => [unit, focus]], ["outputs", (unit) => [focus, unit]]]) {
        for (const { unit, weight, share } of GraphPage.ends(focus, side)) {
          const [a, b] = make(unit);
          if (drawn.has(unit) && !unit.hidden) ends.push({ a, b, weight, share, unit });
        }
      }
      lines(context, ends.reverse(), 1.6);
      for (const { unit } of ends) draw(context, unit);
      draw(context, focus);
    }
    const busy = [];
    const marked = (unit, colour, grow) => {
      if (!drawn.has(unit)) return;
      draw(context, unit);
      ring(unit, colour, grow);
    };
    for (const unit of pinned) marked(unit, colours.ink, 2.5);
    if (selected) marked(selected, colours.for, 3.5);
    const named = [...new Set([hover, cursor, selected, ...pinned])].filter((unit) => unit && drawn.has(unit) && !unit.box);
    for (const unit of named) label(unit, busy);
    if (cursor && drawn.has(cursor)) ring(cursor, colours.ink, 5);
  };

  return {
    hit, next, lookAt,
    // A new view or another size: everything is laid out and drawn again.
    redraw(newView, looking) {
      const same = room === canvas.parentElement.clientWidth && newView.units.length === view.units.length && newView.units.every((unit, place) => unit === view.units[place]);
      view = newView;
      readColours();
      if (!same && !layout()) return;
      paint();
      lookAt(looking);
    },
  };
};
