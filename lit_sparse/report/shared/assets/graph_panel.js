// What is said about a chosen unit: inputs and outputs, a feature's contexts, a head's keys and why its edge is open.
// All text reaches the page through textContent.
GraphPage.make = (tag, attributes, parent) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  if (parent) parent.append(element);
  return element;
};

GraphPage.panel = (model, root, { select, pin, ungroup, rename, isPinned }) => {
  const { make, percent, signed, count, show } = GraphPage;
  const LISTED = 12;
  const chip = (unit, parent) => {
    const button = make("button", { type: "button", class: "node" }, parent);
    make("i", { class: `mark ${unit.kind}`, "aria-hidden": "true" }, button);
    make("bdi", { text: unit.kind === "token" || unit.kind === "logit" ? `${unit.kind} ${unit.name}` : unit.name }, button);
    if (unit.position !== undefined && unit.kind !== "token" && unit.kind !== "logit") make("small", { text: ` ${model.at(unit.position)}` }, button);
    button.title = unit.hint ? `${unit.full}; peaks on ${unit.hint}` : unit.full;
    button.addEventListener("click", () => select(unit));
    return button;
  };
  const bar = (value, most, parent) => {
    const track = make("span", { class: value < 0 ? "bar minus" : "bar", "aria-hidden": "true" }, parent);
    track.style.setProperty("--share", Math.min(1, Math.abs(value) / (most || 1)).toFixed(3));
  };
  const row = ({ unit, weight, share }, most, parent) => {
    const item = make("li", {}, parent);
    chip(unit, item);
    bar(weight, most, item);
    make("span", { class: weight < 0 ? "minus" : "plus", text: signed(weight) }, item);
    make("small", { text: percent(share) }, item);
    return item;
  };
  // The strongest first; the rest on demand.
  const listing = (list, add, parent, look = "") => {
    const element = make("ul", { class: look }, parent);
    list.slice(0, LISTED).forEach((one) => add(one, element));
    if (list.length <= LISTED) return;
    const more = make("button", { type: "button", class: "more", text: `${count(list.length - LISTED)} more` }, parent);
    more.addEventListener("click", () => {
      list.slice(LISTED).forEach((one) => add(one, element));
      more.remove();
    });
  };

  const inputs = (unit, parent) => {
    const list = GraphPage.ends(unit, "inputs");
    const section = make("section", { class: "inputs" }, parent);
    make("h4", { text: `Inputs: ${count(list.length)}` }, section);
    if (!list.length) make("p", { class: "soft", text: "No node of the graph has a link into it." }, section);
    const most = list.length ? Math.abs(list[0].weight) : 1;
    const heads = list.filter((one) => one.unit.kind === "head"), direct = list.filter((one) => one.unit.kind !== "head");
    const share = (part) => percent(part.reduce((sum, one) => sum + one.share, 0));
    if (heads.length) {
      make("h5", { text: `Through heads, ${share(heads)}` }, section);
      listing(heads, (one, element) => {
        const item = row(one, most, element);
        const reads = GraphPage.ends(one.unit, "inputs").slice(0, 6);
        if (!reads.length) return;
        const details = make("details", {}, item);
        make("summary", { text: "what this head reads" }, details);
        const inner = make("ul", {}, details);
        for (const read of reads) row(read, Math.abs(reads[0].weight), inner);
      }, section);
    }
    if (direct.length) {
      make("h5", { text: `${{ head: "Read at the keys", group: "Directly" }[unit.kind] || "At its own position"}, ${share(direct)}` }, section);
      listing(direct, (one, element) => row(one, most, element), section);
    }
  };
  const outputs = (unit, parent) => {
    const list = GraphPage.ends(unit, "outputs");
    const section = make("section", { class: "outputs" }, parent);
    make("h4", { text: `Outputs: ${count(list.length)}` }, section);
    if (!list.length) make("p", { class: "soft", text: unit.kind === "logit" ? "A logit is where the graph ends." : "It has no link to another node of the graph." }, section);
    const most = list.length ? Math.abs(list[0].weight) : 1;
    for (const [title, part] of [
      ["To logits", list.filter((one) => one.unit.kind === "logit")],
      ["To heads", list.filter((one) => one.unit.kind === "head")],
      ["To features", list.filter((one) => one.unit.kind !== "logit" && one.unit.kind !== "head")],
    ]) {
      if (!part.length) continue;
      make("h5", { text: title }, section);
      listing(part, (one, element) => row(one, most, element), section);
    }
  };

  const contexts = (node, parent) => {
    const list = model.contexts(node.layer, node.index);
    make("h4", { text: "Texts with the highest activation" }, parent);
    if (!list.length) make("p", { class: "soft", text: "This page has no example texts of this feature." }, parent);
    const most = Math.max(1e-9, ...list.flatMap((one) => one.values));
    const element = make("ul", { class: "contexts" }, parent);
    for (const one of list) {
      const item = make("li", {}, element);
      const text = make("bdi", {}, item);
      one.tokens.forEach((token, place) => {
        const value = one.values[place] || 0;
        const visible = token.replace(/[\n\r]/g, "↵").replace(/\t/g, "⇥");
        const word = make(place === one.peak ? "mark" : "span", { text: visible, title: `${show(token)}: ${value.toPrecision(3)}` }, text);
        word.style.setProperty("--share", (Math.max(0, value) / most).toFixed(2));
      });
      make("small", { text: ` ${(one.values[one.peak] ?? 0).toPrecision(3)}` }, item);
    }
  };

  const keys = (node, parent) => {
    const sums = new Map((node.raw.attention || []).map(([position, weight]) => [position, { position, attention: weight, sum: 0 }]));
    for (const link of node.inputs) {
      const position = link.source.position;
      if (!sums.has(position)) sums.set(position, { position, attention: null, sum: 0 });
      sums.get(position).sum += link.weight;
    }
    const list = [...sums.values()].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum) || b.attention - a.attention);
    make("h4", { text: `Keys it reads: ${list.length}` }, parent);
    const most = Math.max(1e-12, ...list.map((one) => Math.abs(one.sum)));
    listing(list, (one, element) => {
      const item = make("li", {}, element);
      make("bdi", { text: model.at(one.position) }, item);
      bar(one.sum, most, item);
      make("span", { class: one.sum < 0 ? "minus" : "plus", text: signed(one.sum) }, item);
      if (one.attention !== null) make("small", { text: `weight ${one.attention.toPrecision(2)}` }, item);
    }, parent, "wide");
  };
  const named = (id, parent) => {
    const { node, name } = model.describe(id);
    if (node) return chip(node.group || node, parent);
    return make("bdi", { class: "soft", text: name, title: "not in the graph after pruning" }, parent);
  };
  const why = (node, parent) => {
    const found = node.raw.qk_tracing_results;
    make("h4", { text: "Why this edge is open" }, parent);
    if (!found) {
      make("p", { class: "soft", text: node.raw.qk_note || "It was not traced for this head." }, parent);
      return;
    }
    const facts = [];
    if (typeof found.key === "number") facts.push(`The edge to ${model.at(found.key)}.`);
    if (typeof found.attention_logit === "number") {
      facts.push(`Its attention logit is ${signed(found.attention_logit)}` + (typeof found.remainder === "number" ? `, ${signed(found.remainder)} of it from biases and pairs that are not listed.` : "."));
    }
    if (typeof found.gate_logit === "number") {
      facts.push(`The gate is ${found.gate_logit > 0 ? "open" : "closed"}: its logit is ${signed(found.gate_logit)}` +
        (typeof found.gate_cutoff === "number" ? `, with a cutoff of ${signed(found.gate_cutoff)}` : "") +
        (typeof found.gate_sharpness === "number" ? ` and a sharpness of ${found.gate_sharpness.toPrecision(2)}.` : "."));
    }
    if (facts.length) make("p", { text: facts.join(" ") }, parent);
    const most = (list) => Math.max(1e-12, ...list.map((one) => Math.abs(one[one.length - 1])));
    const pairs = found.pair_wise_contributors || [];
    if (pairs.length) {
      make("h5", { text: "Pairs of writers: at the query × at the key" }, parent);
      listing(pairs, ([query, key, value], element) => {
        const item = make("li", { class: "pair" }, element);
        const both = make("span", {}, item);
        named(query, both);
        both.append(" × ");
        named(key, both);
        bar(value, most(pairs), item);
        make("span", { class: value < 0 ? "minus" : "plus", text: signed(value) }, item);
      }, parent);
    }
    for (const [title, list] of [["Writers at the query, summed over those at the key", found.top_q_marginal_contributors], ["Writers at the key, summed over those at the query", found.top_k_marginal_contributors]]) {
      if (!list || !list.length) continue;
      make("h5", { text: title }, parent);
      listing(list, ([id, value], element) => {
        const item = make("li", {}, element);
        named(id, item);
        bar(value, most(list), item);
        make("span", { class: value < 0 ? "minus" : "plus", text: signed(value) }, item);
      }, parent);
    }
  };

  const facts = (unit) => {
    const words = [];
    if (unit.kind === "logit") words.push(`probability ${unit.raw.token_prob.toFixed(3)}`);
    if (typeof unit.activation === "number") words.push(`${unit.kind === "head" ? "attribution to the answer" : "activation"} ${unit.kind === "head" ? signed(unit.activation) : unit.activation.toPrecision(3)}`);
    if (unit.own) words.push(`influence ${percent(unit.own)}`);
    if (unit.kind === "head" && typeof unit.raw.head_share === "number") words.push(`${percent(unit.raw.head_share)} of all heads' attribution`);
    return words.join(" · ");
  };
  const nothing = () => {
    make("p", { class: "soft", text: "Choose a node in the drawing or the list: a click, or the arrow keys and Enter." }, root);
    const keysHelp = make("p", { class: "keys soft" }, root);
    for (const [key, what] of [["/", "search"], ["p", "pin"], ["g", "group pinned nodes"], ["Esc", "clear"]]) {
      make("kbd", { text: key }, keysHelp);
      keysHelp.append(` ${what} `);
    }
    if (!model.heads.length) return;
    make("h4", { text: "Heads by attribution to the answer" }, root);
    listing(model.heads.slice(0, LISTED), ({ name, share, node }, element) => {
      const item = make("li", {}, element);
      const button = make("button", { type: "button", class: "node" }, item);
      make("i", { class: "mark head", "aria-hidden": "true" }, button);
      button.append(name);
      button.addEventListener("click", () => select(node.group || node));
      bar(share, model.heads[0].share, item);
      make("span", { text: percent(share) }, item);
    }, root);
  };

  return {
    show(unit) {
      root.replaceChildren();
      root.scrollTop = 0;
      if (!unit) return nothing();
      const head = make("div", { class: "chosen" }, root);
      const title = make("h3", {}, head);
      make("i", { class: `mark ${unit.kind}`, "aria-hidden": "true" }, title);
      make("bdi", { text: unit.full }, title);
      const actions = make("div", { class: "actions" }, head);
      if (unit.kind === "group") {
        make("button", { type: "button", class: "chip", text: "Rename", onclick: () => rename(unit) }, actions);
        make("button", { type: "button", class: "chip", text: "Ungroup", onclick: () => ungroup(unit) }, actions);
      } else make("button", { type: "button", class: "chip", "aria-pressed": isPinned(unit), text: isPinned(unit) ? "Unpin" : "Pin", onclick: () => pin(unit) }, actions);
      make("button", { type: "button", class: "chip", text: "Clear", onclick: () => select(null) }, actions);
      const said = facts(unit);
      if (said) make("p", { class: "soft", text: said }, root);
      if (unit.kind === "group") {
        make("h4", { text: "Its nodes" }, root);
        listing(unit.nodes, (node, element) => {
          const item = make("li", {}, element);
          make("i", { class: `mark ${node.kind}`, "aria-hidden": "true" }, item);
          make("bdi", { text: node.full }, item);
        }, root, "members");
      }
      if (unit.kind === "feature") {
        if (unit.hint) make("p", { text: `Peaks on ${unit.hint}.` }, root);
        contexts(unit, root);
      }
      if (unit.kind === "head") {
        keys(unit, root);
        why(unit, root);
      }
      const columns = make("div", { class: "ends" }, root);
      inputs(unit, columns);
      outputs(unit, columns);
    },
    // One sentence for those who listen.
    say(unit) {
      const part = (side, word) => {
        const list = GraphPage.ends(unit, side);
        if (!list.length) return `no ${word}s`;
        const first = list.slice(0, 3).map((one) => `${one.unit.full}, ${signed(one.weight)}`).join("; ");
        return `${list.length} ${word}${list.length > 1 ? "s" : ""}, strongest ${first}`;
      };
      return `${unit.full}. ${part("inputs", "input")}. ${part("outputs", "output")}.`;
    },
  };
};
