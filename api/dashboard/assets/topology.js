// The life of one job's topology: how much changed at each event, and in which layers.
"use strict";

(() => {
  const COLOUR = { dropped: "#6d66f2", grown: "#14b8a6", reactivated: "#14b8a6", pruned: "#f59e0b" };
  const LEVELS = 5;
  const HEIGHT = 210;
  const ROW = [3, 16];
  const { draw, fetchSeries, told } = globalThis.charts;
  const place = () => document.querySelector("[data-topology]");
  const chosen = () => place().querySelector("[name=of]:checked").value;
  let life = null;
  let maps = [];
  let seen = null;

  const make = (name, text = "", more = {}) => Object.assign(document.createElement(name), { textContent: text, ...more });

  // What joined the active set goes up, what left it or became zero goes down.
  const drawBars = ({ step, sums: { dropped, grown, reactivated, pruned } }) => {
    const bar = (label, stroke, values, shown) => ({ label, stroke, bars: true, values, shown });
    draw(place().querySelector("[data-chart=topology]"), step, [
      bar("Grown", `${COLOUR.grown}66`, grown, grown),
      bar("of these from zero", COLOUR.reactivated, reactivated, reactivated),
      bar("Pruned", COLOUR.pruned, pruned.map((count, at) => -count - dropped[at]), pruned),
      bar("Dropped", COLOUR.dropped, dropped.map((count) => -count), dropped),
    ]);
  };

  // One map for each part: a row for a block, a column for an event; the shade grows with the root
  // of the share of the most in that part: the first event is far larger than all that follow.
  const paint = ({ canvas, cells, most }) => {
    const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
    const scale = devicePixelRatio || 1;
    Object.assign(canvas, { width: wide * scale, height: high * scale });
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = COLOUR[chosen()];
    const [column, row] = [wide / cells[0].length, high / cells.length];
    const gap = Math.min(1, column / 4);
    cells.forEach((counts, block) => counts.forEach((count, event) => {
      if (!count) return;
      pen.globalAlpha = Math.ceil(LEVELS * Math.sqrt(count / most)) / LEVELS;
      pen.fillRect(event * column, block * row, column - gap, row - Math.min(1, row / 4));
    }));
  };

  const point = (canvas, event, { name, cells }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const block = Math.floor((event.clientY - top) / height * cells.length);
    const at = Math.floor((event.clientX - left) / width * cells[0].length);
    const count = cells[block]?.[at];
    if (count === undefined) return;
    place().querySelector("[data-pointed]").textContent = `block ${life.blocks[block]}, ${name}, step ${told(life.step[at])}: ${told(count)} ${chosen()}`;
  };

  const drawMaps = () => {
    const height = life.blocks.length * Math.min(ROW[1], Math.max(ROW[0], HEIGHT / life.blocks.length));
    maps = life.parts.map((part) => {
      const most = Math.max(1, ...part.cells.flat());
      const [figure, caption, canvas] = [make("figure", "", { className: "map" }), make("figcaption"), make("canvas")];
      caption.append(make("b", part.name.replace(/^.*\./, "")), make("span", `≤ ${told(most)}`, { className: "num" }));
      canvas.style.height = `${height}px`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${part.name}: at most ${most} ${chosen()} in a layer at an event`);
      canvas.addEventListener("pointermove", (event) => point(canvas, event, part));
      figure.append(caption, canvas);
      return { figure, canvas, cells: part.cells, most };
    });
    place().querySelector("[data-maps]").replaceChildren(...maps.map(({ figure }) => figure));
    maps.forEach(paint);
  };

  const table = (name, heads, rows) => {
    const made = make("table");
    made.append(make("caption", name));
    made.createTHead().insertRow().append(...heads.map((head, at) => make("th", head, { scope: "col", className: at ? "end" : "" })));
    const body = made.createTBody();
    for (const [head, ...cells] of rows) body.insertRow().append(make("th", head, { scope: "row" }), ...cells.map((cell) => make("td", told(cell), { className: "end num" })));
    const scroll = make("div", "", { className: "scroll", tabIndex: 0 });
    scroll.append(made);
    return scroll;
  };

  const drawTables = () => {
    const fold = place().querySelector("[data-tables]");
    fold.replaceChildren(fold.firstElementChild);
    if (!fold.open || !life) return;
    const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
    const events = life.step.map((step, at) => [told(step), ...Object.values(life.sums).map((counts) => counts[at])]);
    const blocks = life.blocks.map((block, at) => [block, ...life.parts.map(({ cells }) => total(cells[at]))]);
    fold.append(
      table("At each event", ["After step", ...Object.keys(life.sums)], events),
      table(`Positions ${chosen()} in each layer, all events together`, ["Block", ...life.parts.map(({ name }) => name)], blocks),
    );
  };

  const refresh = async () => {
    const now = `${document.querySelector("#job").dataset.evolved} ${chosen()}`;
    if (seen === now) return;
    seen = now;
    try {
      life = await fetchSeries(`${place().dataset.topology}?of=${chosen()}`);
    } catch {
      seen = null; // The page's own poll says that the connection is lost, and brings the next try.
      return;
    }
    drawBars(life);
    drawMaps();
    drawTables();
  };

  document.addEventListener("DOMContentLoaded", () => {
    if (!place()) return;
    refresh();
    place().addEventListener("change", refresh);
    place().querySelector("[data-tables]").addEventListener("toggle", drawTables);
    document.addEventListener("htmx:afterSwap", refresh);
    new ResizeObserver(() => maps.forEach(paint)).observe(place());
  });
})();
