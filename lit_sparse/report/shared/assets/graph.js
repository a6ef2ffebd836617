// The page: one or two graphs, what is chosen, pinned and grouped in each, sliders for all, the address and the keys.
(() => {
  const source = document.getElementById("graph-data");
  if (!source) return;
  const { make, count, percent } = GraphPage;
  const data = JSON.parse(source.textContent); // [{file, examples}]
  const sections = [...document.querySelectorAll(".graph")];
  const [reachSlider, floorSlider] = ["reach", "floor"].map((id) => document.getElementById(id));
  const FLOORS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
  const COMFORT = 2500; // links at first, at most
  const graphs = [];
  const settings = { reach: 1, floor: 0 };

  const start = (index) => {
    const section = sections[index], find = (selector) => section.querySelector(selector);
    const model = GraphPage.model(data[index].file, data[index].examples);
    const canvas = find("canvas"), search = find("input[type=search]"), list = find("[role=listbox]");
    const naming = find(".naming"), live = find(".live");
    const drawing = GraphPage.drawing(model, canvas);
    const state = { selected: null, hover: null, cursor: null, pinned: new Set(), groups: [], renaming: null };
    let marked = -1; // of the options

    // --- what the state says ---
    const looking = () => ({ selected: state.selected, hover: state.hover, cursor: state.cursor, pinned: [...state.pinned] });
    const keep = () => new Set([...state.pinned, ...(state.selected ? state.selected.nodes : [])].map((node) => node.id));
    const refresh = () => {
      const began = performance.now();
      const view = GraphPage.view(model, { ...settings, groups: state.groups, keep: keep() });
      drawing.redraw(view, looking());
      section.dataset.redraw = (performance.now() - began).toFixed(1);
      section.dataset.shown = `${view.units.length} ${view.links.length}`;
      find(".shown").textContent = `Drawn: ${count(view.units.length)} of ${count(model.nodes.length)} nodes, ${count(view.links.length)} of ${count(model.links.length)} links`;
    };
    let asked = false;
    const look = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        drawing.lookAt(looking());
      });
    };
    const tell = (text) => { live.textContent = text; };
    const changed = () => {
      strip();
      refresh();
      panel.show(state.selected);
      remember();
    };
    const select = (unit) => {
      state.selected = unit;
      state.hover = null;
      changed();
      if (unit) {
        tell(panel.say(unit));
        if (section.clientWidth < 700 && document.activeElement !== canvas) find(".panel").scrollIntoView({ block: "nearest" });
      }
      mark(unit ? options.findIndex((option) => option.unit === unit) : -1, false);
    };
    const pin = (unit) => {
      if (!unit || unit.kind === "group") return;
      const was = state.pinned.delete(unit);
      if (!was) state.pinned.add(unit);
      tell(`${unit.full} ${was ? "is no longer" : "is"} pinned; ${state.pinned.size} pinned.`);
      changed();
    };
    const askName = (group) => {
      if (!group && state.pinned.size < 2) return tell("Pin at least two nodes with p, then g groups them.");
      state.renaming = group;
      naming.hidden = false;
      const input = naming.querySelector("input");
      input.value = group ? group.name : "";
      input.focus();
    };
    const name = (text) => {
      const nodes = state.renaming ? state.renaming.nodes : [...state.pinned];
      state.groups = state.groups.filter((group) => group !== state.renaming);
      if (!state.renaming) state.pinned.clear();
      const group = GraphPage.group(text, nodes);
      state.groups.push(group);
      closeNaming();
      select(group);
    };
    const closeNaming = () => {
      naming.hidden = true;
      state.renaming = null;
      canvas.focus({ preventScroll: true });
    };
    const ungroup = (group) => {
      state.groups = state.groups.filter((one) => one !== group);
      for (const node of group.nodes) {
        node.group = null;
        state.pinned.add(node);
      }
      select(null);
    };
    const panel = GraphPage.panel(model, find(".panel"), { select, pin, ungroup, rename: askName, isPinned: (unit) => state.pinned.has(unit) });
    const strip = () => {
      const place = find(".pins");
      place.replaceChildren();
      for (const unit of [...state.groups, ...state.pinned]) {
        const button = make("button", { type: "button", class: "chip pin", title: unit.full }, place);
        make("i", { class: `mark ${unit.kind}`, "aria-hidden": "true" }, button);
        make("bdi", { text: unit.kind === "group" ? `${unit.name} (${unit.nodes.length})` : unit.full }, button);
        button.addEventListener("click", () => select(unit));
      }
      if (state.pinned.size > 1) make("button", { type: "button", class: "chip", text: "Group pinned", onclick: () => askName(null) }, place);
    };
    naming.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = naming.querySelector("input").value.trim();
      if (text) name(text);
    });
    naming.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      closeNaming();
    });

    // --- the list ---
    const options = [...model.nodes]
      .sort((a, b) => b.own - a.own || a.row - b.row)
      .map((unit, place) => {
        const element = make("li", { role: "option", id: `option-${index}-${place}`, "aria-selected": "false" }, list);
        make("i", { class: `mark ${unit.kind}`, "aria-hidden": "true" }, element);
        make("bdi", { text: unit.full }, element);
        if (unit.hint) make("small", { text: unit.hint }, element);
        if (unit.own) make("span", { text: percent(unit.own) }, element);
        element.addEventListener("click", () => select(unit.group || unit));
        return { unit, element, text: `${unit.full} ${unit.hint}`.toLowerCase() };
      });
    const mark = (place, move = true) => {
      if (options[marked]) options[marked].element.setAttribute("aria-selected", "false");
      marked = place;
      if (!options[place]) return list.removeAttribute("aria-activedescendant");
      const { element, unit } = options[place];
      element.setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", element.id);
      const top = element.offsetTop - list.offsetTop;
      if (top < list.scrollTop || top + element.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
      if (move) {
        state.cursor = unit.group || unit;
        look();
      }
    };
    const step = (by) => {
      let place = marked < 0 && by < 0 ? options.length : marked;
      do place += by; while (options[place] && options[place].element.hidden);
      if (options[place]) mark(place);
    };
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      for (const option of options) {
        option.element.hidden = !words.every((word) => option.text.includes(word));
        found += !option.element.hidden;
      }
      find(".found").textContent = `${count(found)} nodes`;
      mark(-1, false);
    });
    for (const element of [search, list]) {
      element.addEventListener("keydown", (event) => {
        const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (by) {
          event.preventDefault();
          step(by);
        } else if (event.key === "Enter" || (event.key === " " && element === list)) {
          event.preventDefault();
          if (marked < 0) step(1);
          if (options[marked]) select(options[marked].unit.group || options[marked].unit);
        }
      });
      element.addEventListener("blur", () => { state.cursor = null; look(); });
    }

    // --- the drawing ---
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      return drawing.hit(event.clientX - box.left, event.clientY - box.top);
    };
    canvas.addEventListener("mousemove", (event) => {
      const unit = under(event);
      canvas.style.cursor = unit ? "pointer" : "";
      if (unit === state.hover) return;
      state.hover = unit;
      look();
    });
    canvas.addEventListener("mouseleave", () => { state.hover = null; look(); });
    canvas.addEventListener("click", (event) => {
      const unit = under(event);
      state.cursor = null;
      if (unit && (event.shiftKey || event.ctrlKey || event.metaKey)) pin(unit);
      else select(unit === state.selected ? null : unit);
    });
    canvas.addEventListener("blur", () => { state.cursor = null; look(); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) {
        event.preventDefault();
        const from = state.cursor || state.selected;
        const unit = from ? drawing.next(from, event.key) : model.nodes.find((node) => node.kind === "logit") || model.nodes[0];
        if (!unit) return;
        state.cursor = unit;
        tell(panel.say(unit));
        look();
      } else if ((event.key === "Enter" || event.key === " ") && state.cursor) {
        event.preventDefault();
        select(state.cursor);
      }
    });
    section.addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement;
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") {
        if (typing && search.value) {
          search.value = "";
          search.dispatchEvent(new Event("input"));
        } else {
          state.cursor = null;
          select(null);
          tell("Nothing is selected.");
        }
      } else if (typing) return;
      else if (event.key === "p") pin(state.cursor || state.selected);
      else if (event.key === "g") {
        event.preventDefault();
        askName(null);
      }
    });

    // --- kept in the address and in the file ---
    const groupsAsLists = () => state.groups.map((group) => [group.name, ...group.nodes.map((node) => node.id)]);
    const restore = ({ pinned, supernodes, clicked }) => {
      for (const node of model.nodes) node.group = null;
      const free = (ids) => [...new Set(ids)].map((id) => model.byId.get(id)).filter((node) => node && !node.group);
      state.groups = [];
      for (const [title, ...ids] of supernodes) {
        const nodes = free(ids);
        if (nodes.length) state.groups.push(GraphPage.group(String(title), nodes));
      }
      state.pinned = new Set(free(pinned));
      const node = model.byId.get(clicked);
      state.selected = node ? node.group || node : state.groups.find((group) => group.id === clicked) || null;
      state.hover = state.cursor = null;
    };
    const download = () => {
      const pinnedIds = [...state.pinned, ...state.groups.flatMap((group) => group.nodes)].map((node) => node.id);
      const clicked = state.selected && state.selected.kind !== "group" ? state.selected.id : "";
      const file = { ...model.file, qParams: { ...model.file.qParams, pinnedIds, supernodes: groupsAsLists(), clickedId: clicked } };
      const url = URL.createObjectURL(new Blob([JSON.stringify(file)], { type: "application/json" }));
      make("a", { href: url, download: `${model.file.metadata.slug.replace(/[^\w.-]+/g, "_") || "graph"}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    };
    find(".download").addEventListener("click", download);
    const written = () => {
      const { pinnedIds, supernodes, clickedId } = model.file.qParams;
      return { pinned: pinnedIds, supernodes, clicked: clickedId };
    };
    const now = () => ({ clicked: state.selected ? state.selected.id : "", pinned: [...state.pinned].map((node) => node.id), supernodes: groupsAsLists() });
    // The answer is at the right: what does not fit is left of it.
    let width = 0;
    new ResizeObserver(() => {
      const now = canvas.parentElement.clientWidth;
      if (now === width) return;
      width = now;
      requestAnimationFrame(() => {
        refresh();
        canvas.parentElement.scrollLeft = canvas.parentElement.scrollWidth;
      });
    }).observe(canvas.parentElement);
    return {
      model, state, section, search, refresh, restore, written, now,
      settings,
      look(unit) {
        state.hover = unit;
        drawing.lookAt(looking());
      },
      same: () => JSON.stringify(now()) === JSON.stringify(written()),
      update() { strip(); refresh(); panel.show(state.selected); },
    };
  };

  // --- the address: sliders, and by graph what is clicked, pinned and grouped where it is not what the file says ---
  let ready = false;
  const remember = () => {
    if (!ready || location.href === "about:srcdoc") return; // a frame in a notebook has no address of its own
    const address = new URLSearchParams();
    address.set("reach", reachSlider.value);
    address.set("floor", floorSlider.value);
    graphs.forEach((graph, index) => { if (!graph.same()) address.set(`graph${index}`, JSON.stringify(graph.now())); });
    history.replaceState(null, "", `#${address}`);
  };
  const recall = () => {
    const address = new URLSearchParams(location.hash.slice(1));
    for (const [name, slider] of [["reach", reachSlider], ["floor", floorSlider]]) if (address.has(name)) slider.value = address.get(name);
    graphs.forEach((graph, index) => {
      let kept = graph.written();
      try {
        const said = JSON.parse(address.get(`graph${index}`));
        const texts = (list) => Array.isArray(list) && list.every((one) => typeof one === "string");
        if (said && texts(said.pinned) && Array.isArray(said.supernodes) && said.supernodes.every(texts)) kept = said;
      } catch { /* an address that somebody broke says nothing */ }
      graph.restore(kept);
    });
    slide();
    for (const graph of graphs) graph.update();
  };
  const slide = () => {
    const reach = Math.max(...graphs.map((graph) => graph.model.reach));
    settings.reach = reachSlider.value === reachSlider.max ? 1 : (Number(reachSlider.value) / Number(reachSlider.max)) * reach;
    settings.floor = FLOORS[Number(floorSlider.value)] ?? 0;
    const said = reach ? `${percent(Math.min(settings.reach, reach))} of the influence` : "the file has no influence values";
    document.getElementById("reach-says").textContent = said;
    document.getElementById("floor-says").textContent = settings.floor ? `at least ${percent(settings.floor)} of an input` : "all";
    reachSlider.setAttribute("aria-valuetext", said);
    floorSlider.setAttribute("aria-valuetext", document.getElementById("floor-says").textContent);
    reachSlider.disabled = !reach;
  };

  sections.forEach((_, index) => graphs.push(start(index)));
  floorSlider.max = FLOORS.length - 1;
  const most = (floor) => Math.max(...graphs.map((graph) => graph.model.links.filter((link) => link.share >= floor).length));
  floorSlider.value = Math.max(0, FLOORS.findIndex((floor) => most(floor) <= COMFORT));
  let sliding = false; // at most one redraw a frame, however fast the slider moves
  for (const slider of [reachSlider, floorSlider]) {
    slider.addEventListener("input", () => {
      slide();
      if (sliding) return;
      sliding = true;
      requestAnimationFrame(() => {
        sliding = false;
        for (const graph of graphs) graph.refresh();
        remember();
      });
    });
  }
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const show = (index) => {
    tabs.forEach((tab, place) => {
      tab.setAttribute("aria-selected", place === index);
      tab.tabIndex = place === index ? 0 : -1;
    });
    sections.forEach((section, place) => section.classList.toggle("behind", place !== index));
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => show(index));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = (index + by + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
  });
  if (tabs.length) show(0);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const inside = graphs.find((graph) => graph.section.contains(event.target));
    (inside || graphs.find((graph) => !graph.section.classList.contains("behind")) || graphs[0]).search.focus();
  });
  addEventListener("hashchange", recall);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => graphs.forEach((graph) => graph.refresh()));
  recall();
  ready = true;
  GraphPage.graphs = graphs;
  document.documentElement.dataset.ready = "yes";
})();
