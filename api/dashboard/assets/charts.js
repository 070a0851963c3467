// Curves of one job, or of several jobs in one chart. The server reduces their number of points. When the page of a job
// changes, only new points are fetched.
"use strict";

(() => {
  const COLOURS = ["#6d66f2", "#14b8a6", "#f59e0b", "#ec4899", "#0ea5e9", "#84a31c"];
  const SMOOTHING = 0.9;
  const HEIGHT = 200;
  const [RETRY_MS, MAX_RETRY_MS, TIMEOUT_MS] = [5000, 60000, 20000];
  const charts = new Map();

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

  const formatWhole = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");

  // Short enough for an axis.
  const formatNumber = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
    return size >= 1000 ? formatWhole(Math.round(value)) : String(Number(value.toPrecision(4)));
  };

  // A whole number with all its digits, because texts with the same number have them too.
  const formatCount = (value) => (Number.isInteger(value) ? formatWhole(value) : formatNumber(value));

  const formatBytes = (bytes) => {
    if (bytes === null || bytes === undefined) return "–";
    const power = bytes >= 1 ? Math.min(4, Math.floor(Math.log10(bytes) / 3)) : 0;
    return `${Number((bytes / 1000 ** power).toPrecision(4))} ${["B", "kB", "MB", "GB", "TB"][power]}`;
  };

  // Width of the axis: enough for the longest label, or for five characters before there are labels.
  const axisWidth = (_, labels) => 16 + 6.5 * Math.max(5, ...(labels ?? []).map((label) => label.length));

  const axis = (figure, more) => ({
    stroke: getComputedStyle(figure.querySelector("figcaption, .plot")).color,
    grid: { stroke: getComputedStyle(figure).borderTopColor, width: 1 },
    ticks: { show: false },
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
    ...more,
  });

  const formatOf = ({ bars }, format) => (bars ? formatCount : format);
  const shownValues = ({ values, shown }) => shown ?? values;
  const plotted = ({ step, series }) => [step, ...series.map(({ values }) => values)];

  const makePlot = (figure, container) => {
    const { step, series, format } = charts.get(figure);
    const hasBars = series.some(({ bars }) => bars);
    const options = {
      width: container.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      legend: { live: true },
      cursor: { y: false, points: { size: 6 } },
      series: [{ label: "Step", value: (_, value) => formatCount(value ?? charts.get(figure).step.at(-1)) }, ...series.map(({ label, stroke, width, bars, points }) => ({
        label,
        stroke,
        fill: bars ? stroke : undefined,
        width: bars ? 0 : width ?? 1.75,
        spanGaps: true,
        points: { show: Boolean(points), size: 6, fill: stroke },
        paths: bars ? uPlot.paths.bars({ size: [0.7, 22], radius: 0.15 }) : undefined,
        value: (_, __, number, at) => {
          const values = shownValues(charts.get(figure).series[number - 1]);
          return formatOf({ bars }, format)(at === null ? last(values) : values[at]);
        },
      }))],
      axes: [axis(figure, { size: 28, values: (_, ticks) => ticks.map((tick) => (tick < 0 ? "" : formatNumber(tick))) }), axis(figure, { size: axisWidth, values: (_, ticks) => ticks.map((tick) => format(hasBars ? Math.abs(tick) : tick)) })],
    };
    // Bars need space at both ends. For a single bar uPlot would choose an unsuitable range.
    if (hasBars) options.scales.x.range = (_, low, high) => {
      const { step: steps } = charts.get(figure);
      if (steps.length === 1) return [0, 2 * steps[0]];
      const gap = (high - low) / steps.length / 1.5;
      return [low - gap, high + gap];
    };
    return new uPlot(options, plotted({ step, series }), container);
  };

  // Curves that the user has hidden stay hidden, and the range that the user has zoomed to stays.
  const updatePlot = (plot, content) => {
    const [known] = plot.data;
    const { min, max } = plot.scales.x;
    const isZoomed = min > known[0] || max < known.at(-1);
    plot.setData(plotted(content), !isZoomed);
    if (isZoomed) plot.setScale("x", { min, max });
    plot.setLegend({ idx: plot.cursor.idx ?? null }, false);
    return plot;
  };

  const noData = () => {
    const message = document.createElement("p");
    message.className = "no-data";
    message.textContent = "No data yet";
    return message;
  };

  const draw = (figure, step, series, format = formatNumber) => {
    const container = figure.querySelector(".plot");
    const before = charts.get(figure);
    const content = { step, series, format, labels: series.map(({ label }) => label).join("\n"), plot: null };
    charts.set(figure, content);
    const isEmpty = !step.length || !series.some(({ values }) => values.some((value) => value !== null));
    if (before?.plot && before.labels === content.labels && !isEmpty) content.plot = updatePlot(before.plot, content);
    else {
      before?.plot?.destroy();
      container.replaceChildren(...(isEmpty ? [noData()] : []));
      if (!isEmpty) content.plot = makePlot(figure, container);
    }
    if (isEmpty) return;
    container.setAttribute("aria-label", series.map((each) => `${each.label}: last ${formatOf(each, format)(last(shownValues(each)))}`).join(", "));
    container.setAttribute("role", "img");
  };

  const chart = (root, name) => root.querySelector(`[data-chart="${name}"]`);

  const fetchSeries = async (url) => {
    const response = await fetch(url, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(TIMEOUT_MS) });
    // Nobody is signed in, or the job was deleted. The page itself says so.
    if ([401, 404].includes(response.status)) location.reload();
    if (!response.ok) throw new Error(`${url}: ${response.status}`);
    return response.json();
  };

  // Repeats a task that fails. At most one timer runs, and each pause is twice as long as the one before.
  const makeRetry = (task) => {
    let [timer, pause] = [0, RETRY_MS];
    return {
      afterFailure: () => {
        clearTimeout(timer);
        timer = setTimeout(task, pause);
        pause = Math.min(2 * pause, MAX_RETRY_MS);
      },
      reset: () => {
        clearTimeout(timer);
        pause = RETRY_MS;
      },
    };
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
    draw(chart(root, "memory"), step, [{ label: "Memory", stroke: COLOURS[3], values: values.memory_bytes ?? [] }], formatBytes);
  };

  // Known curves up to the end of their last full span, followed by the curves that the server added.
  const merge = (known, added) => {
    const keptLength = known.step.filter((step) => step <= added.after).length;
    const column = ({ step, values }, name) => values[name] ?? step.map(() => null);
    const names = Object.keys({ ...known.values, ...added.values });
    const values = names.map((name) => [name, [...column(known, name).slice(0, keptLength), ...column(added, name)]]);
    return { length: added.length, attempt: added.attempt, step: [...known.step.slice(0, keptLength), ...added.step], values: Object.fromEntries(values) };
  };

  let curves = { length: 1, attempt: 0, step: [], values: {} };
  let drawing = false;
  let outdated = false;
  const refresh = async () => {
    const root = document.querySelector("[data-charts]");
    outdated = drawing; // The page changed while the curves were fetched, so they are fetched again.
    if (!root || drawing) return;
    drawing = true;
    try {
      const last = curves.step.at(-1) ?? -1;
      const after = last - (last % curves.length);
      const query = `after=${after}&length=${curves.length}&attempt=${curves.attempt}`;
      curves = merge(curves, await fetchSeries(`${root.dataset.charts}?${query}`));
      drawJob(root, curves);
      retry.reset();
    } catch {
      retry.afterFailure(); // The page of an ended job does not poll, so nothing else would try again.
    } finally {
      drawing = false;
    }
    if (outdated) refresh();
  };
  const retry = makeRetry(refresh);

  // Several jobs

  const compare = async () => {
    const root = document.querySelector("[data-compare-charts]");
    if (!root) return;
    const jobs = JSON.parse(root.dataset.compareCharts);
    const results = await Promise.all(jobs.map(({ series }) => fetchSeries(series))).catch(() => null);
    if (!results) {
      compareRetry.afterFailure();
      return;
    }
    const step = [...new Set(results.flatMap((each) => each.step))].sort((one, other) => one - other);
    const seriesOf = (name, transform) => jobs.map((job, number) => {
      const values = transform(results[number].values[name] ?? []);
      const known = new Map(results[number].step.map((at, index) => [at, values[index] ?? null]));
      return { label: job.name.length > 24 ? `${job.name.slice(0, 23)}…` : job.name, stroke: COLOURS[number], values: step.map((at) => known.get(at) ?? null) };
    });
    draw(chart(root, "loss"), step, seriesOf("loss", smooth));
    draw(chart(root, "learning_rate"), step, seriesOf("learning_rate", (values) => values));
  };

  const compareRetry = makeRetry(compare);

  // In another theme, a plot has other colours.
  const redraw = () => {
    for (const [figure, content] of charts) {
      content.plot?.destroy();
      content.plot = null;
      draw(figure, content.step, content.series, content.format);
    }
  };

  globalThis.charts = { draw, fetchSeries, formatCount, makeRetry };

  document.addEventListener("theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("htmx:afterSwap", (event) => { if (event.detail.elt.id === "job" || event.target.id === "job") refresh(); });
  document.addEventListener("DOMContentLoaded", () => {
    refresh();
    compare();
    new ResizeObserver(() => { for (const [figure, { plot }] of charts) plot?.setSize({ width: figure.querySelector(".plot").clientWidth, height: HEIGHT }); }).observe(document.querySelector("main"));
  });
})();
