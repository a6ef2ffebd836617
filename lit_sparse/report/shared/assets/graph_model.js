"use strict";
// An attribution graph as the page works with it, from a graph.json (lit_sparse/report/graph_record.py).
// A unit is what is drawn as one thing: a node, or a group of nodes (a supernode).
const GraphPage = {
  KINDS: { "cross layer transcoder": "feature", "mlp reconstruction error": "error", embedding: "token", logit: "logit", lorsa: "head" },
  WORDS: { feature: "feature", error: "error", token: "token", logit: "logit", head: "head", group: "group" },

  // Text from a tokenizer on one line, never empty.
  show(token) {
    const text = token.replace(/^ /, "").replace(/\r\n|[\n\r]/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f]/g, "\ufffd");
    return text.trim() ? text : "␣".repeat(Math.max(1, text.length));
  },
  cut: (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text),
  percent: (share) => (share > 0 && share < 0.0001 ? "< 0.01 %" : `${share >= 0.0995 || !share ? (100 * share).toFixed(0) : (100 * share).toPrecision(2)} %`),
  count: (value) => value.toLocaleString("en-US"),
  signed: (value) => {
    const size = Math.abs(value);
    const text = size !== 0 && (size < 0.001 || size >= 10000) ? size.toExponential(1) : size.toFixed(size < 1 ? 3 : 2);
    return `${value < 0 ? "−" : "+"}${text}`;
  },

  model(file, examples) {
    const { KINDS, show, cut } = GraphPage;
    const tokens = file.metadata.prompt_tokens.map(show);
    const at = (position) => `“${cut(tokens[position], 18)}” (${position})`;
    // What an id says about a node, also about one that pruning took out of the graph.
    const parse = (id) => {
      let found;
      if ((found = /^E_\d+_(\d+)$/.exec(id))) return { kind: "token", position: Number(found[1]) };
      if ((found = /^(\d+)_h(\d+)_(\d+)$/.exec(id))) return { kind: "head", layer: Number(found[1]), index: Number(found[2]), position: Number(found[3]) };
      if ((found = /^(\d+)_error_(\d+)$/.exec(id))) return { kind: "error", layer: Number(found[1]), position: Number(found[2]) };
      if ((found = /^(\d+)_(\d+)_(\d+)$/.exec(id))) return { kind: "feature", layer: Number(found[1]), index: Number(found[2]), position: Number(found[3]) };
      return null;
    };
    const contexts = (layer, index) => (examples.features || {})[`${layer}_${index}`] || [];
    const peaks = (layer, index) => {
      const seen = new Set(contexts(layer, index).map((one) => show(one.tokens[one.peak] ?? "")));
      return [...seen].slice(0, 3).map((token) => cut(token, 12)).join(", ");
    };
    const nameOf = (kind, layer, index, position, clerp) => {
      if (kind === "token") return at(position);
      if (kind === "head") return `head ${layer}.${index}`;
      if (kind === "error") return `error ${layer}`;
      return clerp || `feature ${layer}/${index}`;
    };

    const nodes = file.nodes.map((raw, order) => {
      const kind = KINDS[raw.feature_type] || (raw.feature_type.includes("error") ? "error" : "feature");
      const parsed = parse(raw.node_id) || {};
      const node = {
        id: raw.node_id, kind, raw, order, position: raw.ctx_idx, layer: Number(raw.layer), index: parsed.index ?? raw.feature,
        activation: raw.activation, inputs: [], outputs: [], sum: 0, group: null,
      };
      if (kind === "logit") {
        const said = /^Output "([^]*)" \(p=/.exec(raw.clerp);
        node.text = show(said ? said[1] : raw.clerp);
        node.name = `“${cut(node.text, 18)}” ${GraphPage.percent(raw.token_prob)}`;
      } else {
        if (kind === "token") node.text = tokens[node.position];
        node.name = nameOf(kind, node.layer, node.index, node.position, raw.clerp && cut(show(raw.clerp), 60));
      }
      node.full = kind === "token" ? `token ${node.name}` : kind === "logit" ? `logit ${node.name}` : `${node.name} at ${at(node.position)}`;
      node.hint = kind === "feature" && !raw.clerp ? peaks(node.layer, node.index) : "";
      node.nodes = [node];
      return node;
    });
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const links = file.links.map((raw) => ({ source: byId.get(raw.source), target: byId.get(raw.target), weight: raw.weight, share: 0 }));
    for (const link of links) link.target.sum += Math.abs(link.weight);
    for (const link of links) {
      link.share = link.target.sum ? Math.abs(link.weight) / link.target.sum : 0;
      link.target.inputs.push(link);
      link.source.outputs.push(link);
    }
    links.sort((a, b) => a.share - b.share);

    // A node's own influence is the step of the cumulative one, in files that say only that.
    const ranked = nodes.filter((node) => typeof node.raw.influence === "number").sort((a, b) => a.raw.influence - b.raw.influence);
    let before = 0;
    for (const node of ranked) {
      node.own = node.raw.own_influence ?? node.raw.influence - before;
      before = node.raw.influence;
    }
    for (const node of nodes) node.own ??= node.raw.own_influence ?? 0;
    const body = nodes.filter((node) => node.kind !== "logit" && node.kind !== "token");
    const top = nodes.filter((node) => node.kind === "logit").map((node) => node.layer - 1);
    const layers = Math.max(1, ...body.map((node) => node.layer + 1), ...top);
    for (const node of nodes) node.row = node.kind === "token" ? 0 : node.kind === "logit" ? layers + 1 : node.layer + 1;

    const heads = new Map();
    for (const node of nodes) if (node.kind === "head" && typeof node.raw.head_share === "number") heads.set(node.name, { share: node.raw.head_share, node });
    return {
      file, tokens, nodes, links, byId, layers, at, contexts,
      most: Math.max(1e-12, ...body.map((node) => node.own)),
      reach: ranked.length ? Math.max(...body.map((node) => node.raw.influence ?? 0), 0) : 0, // of the cumulative influence
      heads: [...heads.entries()].map(([name, { share, node }]) => ({ name, share, node })).sort((a, b) => b.share - a.share),
      // A node's name by its id, whether it is in the graph or not.
      describe(id) {
        const node = byId.get(id), parsed = parse(id);
        if (node) return { node, name: node.full };
        if (!parsed || !(parsed.position < tokens.length)) return { node: null, name: id };
        const name = nameOf(parsed.kind, parsed.layer, parsed.index, parsed.position, "");
        return { node: null, name: parsed.kind === "token" ? `token ${name}` : `${name} at ${at(parsed.position)}` };
      },
    };
  },

  // A supernode as a unit; it stands where its nodes are on average.
  group(name, nodes) {
    const mean = (value) => nodes.reduce((sum, node) => sum + value(node), 0) / nodes.length;
    const unit = { id: `group ${nodes[0].id}`, kind: "group", name, nodes, own: nodes.reduce((sum, node) => sum + node.own, 0), row: mean((node) => node.row) };
    unit.full = `group “${name}” of ${nodes.length} nodes`;
    for (const node of nodes) node.group = unit;
    return unit;
  },

  // What is drawn: tokens and logits always, of the others those within the share of influence, and whatever is kept.
  view(model, { reach, floor, groups, keep }) {
    const shown = (node) => node.kind === "token" || node.kind === "logit" || keep.has(node.id) || (node.raw.influence ?? 0) <= reach + 1e-9;
    const units = [...model.nodes.filter((node) => !node.group && shown(node)), ...groups];
    const visible = new Set(units);
    const links = [], merged = new Map();
    for (const link of model.links) {
      if (link.share < floor) continue;
      const a = link.source.group || link.source, b = link.target.group || link.target;
      if (a === b || !visible.has(a) || !visible.has(b)) continue;
      if (a === link.source && b === link.target) links.push({ a, b, weight: link.weight, share: link.share });
      else {
        if (!merged.has(a)) merged.set(a, new Map());
        const into = merged.get(a), one = into.get(b) || { a, b, weight: 0, share: 0 };
        one.weight += link.weight;
        one.share = Math.max(one.share, link.share);
        into.set(b, one);
      }
    }
    for (const into of merged.values()) links.push(...into.values());
    return { units, links };
  },

  // A unit's inputs or outputs over all of the graph, the strongest first: [{unit, weight, share}]. The share is that of
  // all |weight| into whichever of the two is the target, as far as the graph holds it.
  ends(unit, side) {
    const other = side === "inputs" ? "source" : "target";
    const found = new Map();
    for (const node of unit.nodes) {
      for (const link of node[side]) {
        const end = link[other].group || link[other];
        if (end === unit) continue;
        const one = found.get(end) || { unit: end, weight: 0, share: 0 };
        one.weight += link.weight;
        found.set(end, one);
      }
    }
    const list = [...found.values()];
    for (const one of list) {
      const target = side === "inputs" ? unit : one.unit;
      const total = target.nodes.reduce((sum, node) => sum + node.sum, 0);
      one.share = total ? Math.abs(one.weight) / total : 0;
    }
    return list.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  },
};
