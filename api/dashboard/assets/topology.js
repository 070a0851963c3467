// History of a job's topology: how many positions changed at each event, in which layers, and the sparsity after it.
"use strict";

(() => {
  const COLOUR = { dropped: "#6d66f2", grown: "#14b8a6", reactivated: "#14b8a6", pruned: "#f59e0b" };
  const SHADES = 5;
  const MAP_HEIGHT = 210;
  const [MIN_ROW, MAX_ROW] = [3, 16];
  const { draw, fetchSeries, formatCount, makeRetry } = globalThis.charts;
  const section = () => document.querySelector("[data-topology]");
  const selectedChange = () => section().querySelector("[name=of]:checked").value;
  let topology = null;
  let maps = [];
  let shown = null;
  let requests = 0;

  const formatPercent = (value) => (value === null || value === undefined ? "–" : `${Number((100 * value).toFixed(2))} %`);
  const createElement = (name, text = "", properties = {}) => Object.assign(document.createElement(name), { textContent: text, ...properties });

  // Bars above zero: positions that joined the active set. Bars below zero: positions that left it or became zero.
  const drawBars = ({ step, sums: { dropped, grown, reactivated, pruned } }) => {
    const bar = (label, stroke, values, shown) => ({ label, stroke, bars: true, values, shown });
    draw(section().querySelector("[data-chart=topology]"), step, [
      bar("Grown", `${COLOUR.grown}66`, grown, grown),
      bar("Grown from zero", COLOUR.reactivated, reactivated, reactivated),
      bar("Pruned", COLOUR.pruned, pruned.map((count, at) => -count - dropped[at]), pruned),
      bar("Dropped", COLOUR.dropped, dropped.map((count) => -count), dropped),
    ]);
  };

  // Only pages of jobs whose sparsity rises during the training have this chart.
  const drawSparsity = ({ step, sparsity }) => {
    const figure = section().querySelector("[data-chart=sparsity]");
    if (figure) draw(figure, step, [{ label: "Sparsity", stroke: COLOUR.pruned, points: true, values: sparsity }], formatPercent);
  };

  // One map per part: a row per block, a column per event. The shade follows the square root of the count relative to
  // the part's maximum, because the first event is much larger than the others.
  const paint = ({ canvas, cells, maximum }) => {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const scale = devicePixelRatio || 1;
    Object.assign(canvas, { width: width * scale, height: height * scale });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = COLOUR[topology.of];
    const [column, row] = [width / cells[0].length, height / cells.length];
    const gap = Math.min(1, column / 4);
    cells.forEach((counts, block) => counts.forEach((count, event) => {
      if (!count) return;
      context.globalAlpha = Math.ceil(SHADES * Math.sqrt(count / maximum)) / SHADES;
      context.fillRect(event * column, block * row, column - gap, row - Math.min(1, row / 4));
    }));
  };

  const showCount = (canvas, event, { name, cells }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const block = Math.floor((event.clientY - top) / height * cells.length);
    const at = Math.floor((event.clientX - left) / width * cells[0].length);
    const count = cells[block]?.[at];
    if (count === undefined) return;
    section().querySelector("[data-hover-info]").textContent = `block ${topology.blocks[block]}, ${name}, step ${formatCount(topology.step[at])}: ${formatCount(count)} ${topology.of}`;
  };

  const drawMaps = () => {
    const height = topology.blocks.length * Math.min(MAX_ROW, Math.max(MIN_ROW, MAP_HEIGHT / topology.blocks.length));
    maps = topology.parts.map((part) => {
      const maximum = Math.max(1, ...part.cells.flat());
      const [figure, caption, canvas] = [createElement("figure", "", { className: "map" }), createElement("figcaption"), createElement("canvas")];
      caption.append(createElement("b", part.name.replace(/^.*\./, "")), createElement("span", `≤ ${formatCount(maximum)}`, { className: "num" }));
      canvas.style.height = `${height}px`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${part.name}: at most ${maximum} ${topology.of} per layer and event`);
      canvas.addEventListener("pointermove", (event) => showCount(canvas, event, part));
      figure.append(caption, canvas);
      return { figure, canvas, cells: part.cells, maximum };
    });
    section().querySelector("[data-maps]").replaceChildren(...maps.map(({ figure }) => figure));
    maps.forEach(paint);
  };

  const table = (name, heads, rows) => {
    const element = createElement("table");
    element.append(createElement("caption", name));
    element.createTHead().insertRow().append(...heads.map((head, at) => createElement("th", head, { scope: "col", className: at ? "end" : "" })));
    const body = element.createTBody();
    for (const [head, ...cells] of rows) body.insertRow().append(createElement("th", head, { scope: "row" }), ...cells.map((cell) => createElement("td", formatCount(cell), { className: "end num" })));
    const scroll = createElement("div", "", { className: "scroll", tabIndex: 0 });
    scroll.append(element);
    return scroll;
  };

  const drawTables = () => {
    const details = section().querySelector("[data-tables]");
    details.replaceChildren(details.firstElementChild);
    if (!details.open || !topology) return;
    const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
    const events = topology.step.map((step, at) => [formatCount(step), ...Object.values(topology.sums).map((counts) => counts[at])]);
    const blocks = topology.blocks.map((block, at) => [block, ...topology.parts.map(({ cells }) => total(cells[at]))]);
    details.append(
      table("Changes per event", ["Step", ...Object.keys(topology.sums)], events),
      table(`Positions ${topology.of} per layer, all events`, ["Block", ...topology.parts.map(({ name }) => name)], blocks),
    );
  };

  const refresh = async () => {
    const of = selectedChange();
    const requested = `${document.querySelector("#job").dataset.lastEvolution} ${of}`;
    if (shown === requested) return;
    shown = requested;
    const number = ++requests;
    const answer = await fetchSeries(`${section().dataset.topology}?of=${of}`).catch(() => null);
    if (number !== requests) return; // A newer request replaces this one, even if it is answered first.
    if (!answer) {
      shown = null;
      retry.afterFailure();
      return;
    }
    retry.reset();
    topology = { of, ...answer };
    drawBars(topology);
    drawSparsity(topology);
    drawMaps();
    drawTables();
  };
  const retry = makeRetry(refresh);

  document.addEventListener("DOMContentLoaded", () => {
    if (!section()) return;
    refresh();
    section().addEventListener("change", refresh);
    section().querySelector("[data-tables]").addEventListener("toggle", drawTables);
    document.addEventListener("htmx:afterSwap", refresh);
    new ResizeObserver(() => maps.forEach(paint)).observe(section());
  });
})();
