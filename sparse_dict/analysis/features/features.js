// Draws the features that page.py describes. Every text reaches the page through
// textContent or title, so that no token or name can become markup.
(() => {
  "use strict";
  const PAGE = 30; // cards shown at a time

  function el(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }

  const short = (value) => value.toPrecision(3);
  const percent = (share) => short(100 * share) + " %";
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

  // A token, or of own arrays a row: its text or its picture.
  function shown(data, token) {
    const text = data.vocabulary[token];
    if (data.what !== "row" || !text.startsWith("data:image/")) return text;
    const image = el("img", "sf-image");
    image.src = text;
    return image;
  }

  function context(data, feature, [tokens, values, peak]) {
    const text = el("div");
    tokens.forEach((token, i) => {
      const span = el("span", i === peak && data.what === "token" ? "sf-peak" : "", shown(data, token));
      const share = values[i] / data.scale;
      if (share > 0) span.style.background = `rgba(222, 143, 5, ${0.08 + 0.82 * share})`;
      if (data.what === "token") {
        span.title = `“${data.vocabulary[token]}” ${short(share * feature.largest)}`;
      }
      text.append(span);
    });
    return el("div", "sf-context", el("b", "", short((values[peak] / data.scale) * feature.largest)), text);
  }

  function contexts(data, feature, title, list, limit) {
    const shown = list.slice(0, limit);
    return shown.length ? [el("h4", "", title), ...shown.map((c) => context(data, feature, c))] : [];
  }

  function histogram(data, feature) {
    const bars = el("div", "sf-bars");
    const height = (count) => Math.log1p(count) / Math.log1p(Math.max(...feature.histogram));
    feature.histogram.forEach((count, i) => {
      const bar = el("div");
      bar.style.height = 100 * height(count) + "%";
      const step = feature.largest / feature.histogram.length;
      bar.title = `${count} ${data.what}s from ${short(i * step)} to ${short((i + 1) * step)}`;
      bars.append(bar);
    });
    const ends = el("div", "sf-ends", el("span", "", "0"), el("span", "", short(feature.largest)));
    return [el("h4", "", `Activations (${data.what}s, log scale)`), bars, ends];
  }

  // A token by itself, with a sign for each space.
  const visible = (token) =>
    token.split(/( )/).map((part) => (part === " " ? el("span", "", "␣") : part));

  function effects(data, title, list) {
    const lines = list.map(([token, value]) => {
      const name = el("code", "", ...visible(data.vocabulary[token]));
      name.title = data.vocabulary[token];
      return el("div", "sf-effect", name, el("span", "", signed(value)));
    });
    return el("div", "", el("h4", "", title), ...lines);
  }

  function facts(data, feature) {
    const parts = [];
    if (feature.mcs !== null) parts.push("MCS " + feature.mcs.toFixed(3));
    if (feature.neuron) parts.push(`${short(feature.effective)} effective ${data.unit}s`);
    if (feature.neuron && data.sites.length > 1) {
      parts.push(data.sites.map(([site], i) => `${percent(feature.shares[i])} in ${site}`).join(", "));
    }
    if (feature.neuron && feature.dead) parts.push("dead on the evaluation rows");
    parts.push(feature.largest > 0
      ? `active on ${percent(feature.density)} of ${data.what}s, at most ${short(feature.largest)}`
      : `not active on any ${data.what} read here`);
    return parts.join(" · ");
  }

  // A column of the activations; of several sites also which of one's columns it is.
  function column(data, index) {
    const [site, start] = data.sites.find(([, , stop]) => index < stop);
    return `${data.unit} ${index}` + (data.sites.length > 1 ? ` (${site}, ${index - start})` : "");
  }

  function title(data, feature) {
    const dictionary = data.dictionaries[feature.dictionary];
    if (dictionary.size) return `${dictionary.label}: feature ${feature.index}`;
    const name = column(data, feature.index);
    return name[0].toUpperCase() + name.slice(1);
  }

  // What a feature is called, in `contexts.features` too: 256/40 or neuron/5.
  function address(data, feature) {
    const dictionary = data.dictionaries[feature.dictionary];
    return `${dictionary.size || dictionary.name}/${feature.index}`;
  }

  function link(data, text, to) {
    const node = el("a", "", text);
    node.href = `${data.page || ""}#${to}`;
    return node;
  }

  // `limits`: how many contexts of each kind, and how many logit effects.
  function card(data, feature, limits) {
    const heading = el("h3", "", link(data, title(data, feature), address(data, feature)));
    heading.title = data.dictionaries[feature.dictionary].name;
    const left = el("div");
    if (feature.largest > 0) left.append(...histogram(data, feature));
    if (feature.promoted.length) {
      left.append(el("div", "sf-effects",
        effects(data, "Logits raised", feature.promoted.slice(0, limits.effects)),
        effects(data, "Logits lowered", feature.demoted.slice(0, limits.effects))));
    }
    const right = el("div", "",
      ...contexts(data, feature, "Highest", feature.top, limits.top),
      ...contexts(data, feature, "Spread evenly over its activations", feature.spread, limits.spread));
    return el("article", "sf-card", heading,
      ...feature.groups.map((group) => el("span", "sf-group", group)),
      el("div", "sf-facts", facts(data, feature), ...partner(data, feature)),
      el("div", "sf-body", left, right));
  }

  function partner(data, feature) {
    if (!feature.partner) return [];
    const [to, cosine] = feature.partner;
    const there = data.page || data.features.some((other) => address(data, other) === to);
    return [" · partner ", there ? link(data, to, to) : to, `, cosine ${cosine.toFixed(3)}`];
  }

  const ALL = { top: Infinity, spread: Infinity, effects: Infinity };

  function neuronOf(data, feature) {
    return feature.neuron && data.features[feature.neuron[0]];
  }

  function nearest(feature) {
    return `cosine ${signed(feature.neuron[1])}`;
  }

  // Features side by side with the neurons nearest to them, for the report.
  function sample(root, data) {
    const limits = { top: 4, spread: 2, effects: 6 };
    data.page = root.dataset.page;
    root.classList.add("sf");
    data.features.filter((feature) => feature.shown).forEach((feature) => {
      const pair = el("div", "sf-pair", card(data, feature, limits));
      const neuron = neuronOf(data, feature);
      if (neuron) {
        const beside = card(data, neuron, limits);
        beside.querySelector(".sf-facts").prepend(`${nearest(feature)} · `);
        pair.append(beside);
      }
      root.append(pair);
    });
  }

  // All features, with search, filters and order.
  function browse(root, data) {
    root.classList.add("sf");
    const controls = el("div", "sf-controls");
    const count = el("div", "sf-count");
    const list = el("div");
    const more = el("button", "", "Show more");
    root.append(controls, count, list, more);

    function labelled(text, ...nodes) {
      controls.append(el("label", "", text, nodes.length > 1 ? el("span", "sf-range", ...nodes) : nodes[0]));
      nodes.forEach((node) => node.addEventListener("input", () => {
        if (location.hash) location.hash = ""; // which updates
        else update();
      }));
    }
    function choice(text, options) {
      const node = el("select");
      options.forEach(([value, name]) => node.append(new Option(name, value)));
      labelled(text, node);
      return node;
    }
    function range(text) {
      return ((nodes) => (labelled(text, ...nodes), nodes))(["from", "to"].map((name) => {
        const node = el("input");
        Object.assign(node, { type: "number", step: "any", placeholder: name, ariaLabel: `${text} ${name}` });
        return node;
      }));
    }

    const search = el("input");
    Object.assign(search, { type: "search", placeholder: "text in contexts or logits, or 256/40" });
    labelled("Search", search);
    const dictionary = choice("Dictionary", [["", "all"],
      ...data.dictionaries.map((d, i) => [String(i), d.label])]);
    const groups = [...new Set(data.features.flatMap((f) => f.groups))];
    const group = choice("Chosen as", [["", "anything"], ...groups.map((g) => [g, g])]);
    const mcs = range("MCS");
    const density = range(`Active on % of ${data.what}s`);
    const state = choice("State", [["", "alive or dead"], ["alive", "alive"], ["dead", "dead"]]);
    const keys = {
      order: ["as chosen", null],
      mcs: ["MCS", (f) => f.mcs],
      density: ["density", (f) => f.density],
      effective: [`effective ${data.unit}s`, (f) => f.effective],
      largest: ["largest activation", (f) => f.largest],
      neuron: [`cosine with nearest ${data.unit}`, (f) => f.neuron && Math.abs(f.neuron[1])],
    };
    const order = choice("Sort by", Object.entries(keys).map(([key, [name]]) => [key, name]));
    const direction = choice("Order", [["-1", "highest first"], ["1", "lowest first"]]);

    // What a search looks through: the shown text of each context, and the tokens of the effects.
    const haystacks = data.features.map((feature) => [
      title(data, feature), address(data, feature), data.dictionaries[feature.dictionary].name,
      ...[...feature.top, ...feature.spread].map(([tokens]) =>
        tokens.map((token) => data.vocabulary[token]).join("")),
      ...[...feature.promoted, ...feature.demoted].map(([token]) => data.vocabulary[token]),
    ].join("\n").toLowerCase());

    function within(value, [low, high], factor) {
      if (low.value === "" && high.value === "") return true;
      if (value === null) return false;
      return (low.value === "" || factor * value >= Number(low.value)) &&
        (high.value === "" || factor * value <= Number(high.value));
    }

    let found = [];
    let shown = 0;
    function update() {
      const needle = search.value.toLowerCase();
      const wanted = decodeURIComponent(location.hash.slice(1));
      const named = data.features.filter((feature) => address(data, feature) === wanted);
      found = named.length ? named : data.features.filter((feature, i) =>
        (!needle || haystacks[i].includes(needle)) &&
        (!dictionary.value || feature.dictionary === Number(dictionary.value)) &&
        (!group.value || feature.groups.includes(group.value)) &&
        within(feature.mcs, mcs, 1) && within(feature.density, density, 100) &&
        (!state.value || feature.dead === (state.value === "dead")));
      const key = keys[order.value][1];
      const sign = Number(direction.value);
      if (key) {
        found = found.map((feature) => [key(feature), feature])
          .sort(([a], [b]) => (a === null) - (b === null) || sign * (a - b))
          .map(([, feature]) => feature);
      }
      list.replaceChildren();
      shown = 0;
      extend();
    }

    function extend() {
      found.slice(shown, shown + PAGE).forEach((feature) => {
        const node = card(data, feature, ALL);
        const neuron = neuronOf(data, feature);
        if (neuron) {
          const beside = el("details", "",
            el("summary", "", `Nearest ${column(data, neuron.index)}, ${nearest(feature)}`));
          beside.addEventListener("toggle", () => beside.append(card(data, neuron, ALL)), { once: true });
          node.append(beside);
        }
        list.append(node);
      });
      shown = Math.min(shown + PAGE, found.length);
      count.textContent = `${found.length} of ${data.features.length} features and ${data.unit}s` +
        (shown < found.length ? `, the first ${shown} shown` : "");
      more.hidden = shown === found.length;
    }

    more.addEventListener("click", extend);
    window.addEventListener("hashchange", update);
    update();
  }

  const root = document.getElementById("sparse-features");
  const data = JSON.parse(document.getElementById("sparse-features-data").textContent);
  ({ browse, sample })[root.dataset.view](root, data);
})();
