// Curves of one job, or of several over each other. The server has thinned them; a change of the page fetches what is new.
"use strict";

(() => {
  const COLOURS = ["#6d66f2", "#14b8a6", "#f59e0b", "#ec4899", "#0ea5e9", "#84a31c"];
  const SMOOTHING = 0.9;
  const HEIGHT = 200;
  const drawn = new Map();

  const smooth = (values) => {
    let mean = 0;
    let weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = SMOOTHING * mean + (1 - SMOOTHING) * value;
      weight = SMOOTHING * weight + (1 - SMOOTHING);
      return mean / weight;
    });
  };

  const last = (values) => values.findLast((value) => value !== null);

  const told = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
    return size >= 1000 ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : String(Number(value.toPrecision(4)));
  };

  const size = (bytes) => {
    if (bytes === null || bytes === undefined) return "–";
    const power = bytes >= 1 ? Math.min(4, Math.floor(Math.log10(bytes) / 3)) : 0;
    return `${Number((bytes / 1000 ** power).toPrecision(4))} ${["B", "kB", "MB", "GB", "TB"][power]}`;
  };

  // Wide enough for the longest label; before there are any, for most.
  const room = (_, labels) => 16 + 6.5 * Math.max(5, ...(labels ?? []).map((label) => label.length));

  const axis = (figure, more) => ({
    stroke: getComputedStyle(figure.querySelector("figcaption, .plot")).color,
    grid: { stroke: getComputedStyle(figure).borderTopColor, width: 1 },
    ticks: { show: false },
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
    ...more,
  });

  const draw = (figure, step, series, say = told) => {
    const place = figure.querySelector(".plot");
    drawn.get(figure)?.plot?.destroy();
    place.replaceChildren();
    drawn.set(figure, { step, series, say, plot: null });
    if (!step.length || !series.some(({ values }) => values.some((value) => value !== null))) {
      const silent = document.createElement("p");
      silent.className = "silent";
      silent.textContent = "Nothing measured yet";
      place.append(silent);
      return;
    }
    const mirrored = series.some(({ bars }) => bars);
    const options = {
      width: place.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      legend: { live: true },
      cursor: { y: false, points: { size: 6 } },
      series: [{ label: "Step", value: (_, value) => told(value ?? step.at(-1)) }, ...series.map(({ label, stroke, width, bars, shown, points, values }) => ({
        label,
        stroke,
        fill: bars ? stroke : undefined,
        width: bars ? 0 : width ?? 1.75,
        spanGaps: true,
        points: { show: Boolean(points), size: 6, fill: stroke },
        paths: bars ? uPlot.paths.bars({ size: [0.7, 22], radius: 0.15 }) : undefined,
        value: (_, __, ___, at) => say(at === null ? last(shown ?? values) : (shown ?? values)[at]),
      }))],
      axes: [axis(figure, { size: 28, values: (_, ticks) => ticks.map((tick) => (tick < 0 ? "" : told(tick))) }), axis(figure, { size: room, values: (_, ticks) => ticks.map((tick) => say(mirrored ? Math.abs(tick) : tick)) })],
    };
    // Bars need room at both ends. Around a single one the chart would make up a range of its own.
    if (mirrored) options.scales.x.range = (_, low, high) => {
      if (step.length === 1) return [0, 2 * step[0]];
      const gap = (high - low) / step.length / 1.5;
      return [low - gap, high + gap];
    };
    drawn.get(figure).plot = new uPlot(options, [step, ...series.map(({ values }) => values)], place);
    figure.querySelector(".plot").setAttribute("aria-label", series.map(({ label, values, shown }) => `${label}: last ${say(last(shown ?? values))}`).join(", "));
    figure.querySelector(".plot").setAttribute("role", "img");
  };

  const chart = (root, name) => root.querySelector(`[data-chart="${name}"]`);

  const fetchSeries = async (url) => {
    const answer = await fetch(url, { headers: { Accept: "application/json" } });
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
    return answer.json();
  };

  // One job

  const drawJob = (root, { step, values }) => {
    const loss = values.loss ?? [];
    const heldOut = values.held_out_loss ?? [];
    draw(chart(root, "loss"), step, [
      { label: "Raw", stroke: `${COLOURS[0]}55`, width: 1, values: loss },
      { label: "Smoothed", stroke: COLOURS[0], width: 2, values: smooth(loss) },
      ...(heldOut.length ? [{ label: "Held out", stroke: COLOURS[1], points: true, values: heldOut }] : []),
    ]);
    draw(chart(root, "learning_rate"), step, [{ label: "Rate", stroke: COLOURS[1], values: values.learning_rate ?? [] }]);
    draw(chart(root, "tokens_per_second"), step, [{ label: "Tokens/s", stroke: COLOURS[4], values: values.tokens_per_second ?? [] }]);
    draw(chart(root, "memory"), step, [{ label: "Memory", stroke: COLOURS[3], values: values.memory_bytes ?? [] }], size);
  };

  // What is known already, up to the end of its last full span, and what the server has added to it.
  const joined = (known, added) => {
    const kept = known.step.filter((step) => step <= added.after).length;
    const column = ({ step, values }, name) => values[name] ?? step.map(() => null);
    const names = Object.keys({ ...known.values, ...added.values });
    const values = names.map((name) => [name, [...column(known, name).slice(0, kept), ...column(added, name)]]);
    return { length: added.length, began: added.began, step: [...known.step.slice(0, kept), ...added.step], values: Object.fromEntries(values) };
  };

  let curves = { length: 1, began: 0, step: [], values: {} };
  let drawing = false;
  const refresh = async () => {
    const root = document.querySelector("[data-charts]");
    if (!root || drawing) return;
    drawing = true;
    try {
      const last = curves.step.at(-1) ?? -1;
      const after = last - (last % curves.length);
      const known = `after=${after}&length=${curves.length}&began=${curves.began}`;
      curves = joined(curves, await fetchSeries(`${root.dataset.charts}?${known}`));
      drawJob(root, curves);
    } catch {
      // The page's own poll says that the connection is lost, and brings the next try.
    } finally {
      drawing = false;
    }
  };

  // Several jobs

  const compare = async (root) => {
    const jobs = JSON.parse(root.dataset.compareCharts);
    const found = await Promise.all(jobs.map(({ series }) => fetchSeries(series)));
    const step = [...new Set(found.flatMap((each) => each.step))].sort((one, other) => one - other);
    const over = (name, change) => jobs.map((job, number) => {
      const { step: own, values } = found[number];
      const known = new Map(own.map((at, place) => [at, change(values[name] ?? [])[place] ?? null]));
      return { label: job.name.length > 24 ? `${job.name.slice(0, 23)}…` : job.name, stroke: COLOURS[number], values: step.map((at) => known.get(at) ?? null) };
    });
    draw(chart(root, "loss"), step, over("loss", smooth));
    draw(chart(root, "learning_rate"), step, over("learning_rate", (values) => values));
  };

  const again = () => { for (const [figure, { step, series, say }] of drawn) draw(figure, step, series, say); };

  globalThis.charts = { COLOURS, draw, fetchSeries, told };

  document.addEventListener("theme", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  document.addEventListener("htmx:afterSwap", (event) => { if (event.detail.elt.id === "job" || event.target.id === "job") refresh(); });
  document.addEventListener("DOMContentLoaded", () => {
    refresh();
    const several = document.querySelector("[data-compare-charts]");
    if (several) compare(several);
    new ResizeObserver(() => { for (const [figure, { plot }] of drawn) plot?.setSize({ width: figure.querySelector(".plot").clientWidth, height: HEIGHT }); }).observe(document.querySelector("main"));
  });
})();
