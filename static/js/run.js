/* The run page while it is open: a WebSocket brings lines of progress, uPlot draws them, text is only
   ever set as text. Continues behind the last line it has after a dropped connection. */
"use strict";

(() => {
  const page = document.getElementById("run-live");
  if (!page) return;

  // training/views/curves.py says which metrics share a chart.
  const CHARTS = JSON.parse(document.getElementById("run-curves").textContent);
  const GONE = 4404;
  const SLOWEST_RETRY = 15000;

  const element = (tag, className, text = "") => {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  };
  const room = (_, labels) => Math.max(52, 14 + 7 * Math.max(0, ...(labels ?? []).map((text) => text.length)));
  const short = (value) =>
    value === undefined || value === null ? "–" : Number(value.toPrecision(4)).toString();

  /* One chart: made when the first of its numbers arrives. */
  class LiveChart {
    constructor(spec) {
      this.spec = spec;
      this.names = Object.keys(spec.lines);
      this.rows = new Map(); // step -> a value for each line; a resumed run writes its steps again
      this.plot = null;
      this.dirty = false;
    }

    take(step, values) {
      if (this.spec.across === "root_kl") {
        if (typeof values.kl !== "number") return;
        step = Math.sqrt(Math.max(values.kl, 0));
      }
      this.names.forEach((name, index) => {
        const metric = this.spec.lines[name].find((key) => typeof values[key] === "number");
        if (metric === undefined) return;
        if (!this.rows.has(step)) this.rows.set(step, this.names.map(() => null));
        this.rows.get(step)[index] = values[metric];
        this.dirty = true;
      });
    }

    data() {
      const steps = [...this.rows.keys()].sort((a, b) => a - b);
      return [steps, ...this.names.map((_, index) => steps.map((step) => this.rows.get(step)[index]))];
    }

    draw() {
      if (!this.dirty || this.rows.size < 2) return; // one point is no curve
      this.dirty = false;
      const data = this.data();
      if (!this.plot) this.build(data);
      else this.plot.setData(data);
      this.names.forEach((_, index) => {
        const last = data[index + 1].findLast((value) => value !== null);
        this.figures[index].textContent = short(last);
        this.keys[index].hidden = last === undefined;
      });
    }

    build(data) {
      if (!this.figure) {
        this.figure = element("figure", "chart live-chart");
        this.figure.append(element("figcaption", "chart-title", this.spec.title));
        this.canvas = element("div", "live-canvas");
        const legend = element("ul", "chart-legend");
        this.keys = this.names.map((name, index) => {
          const key = element("li", "");
          key.append(element("span", `swatch series-${index + 1}`), `${name} `);
          legend.append(key);
          return key;
        });
        this.figures = this.keys.map((key) => {
          const figure = element("strong", "mono");
          key.append(figure);
          return figure;
        });
        this.figure.append(this.canvas, legend);
        charts.append(this.figure);
        new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.canvas);
      }
      this.plot?.destroy();
      this.plot = new uPlot(this.options(), data, this.canvas);
    }

    size() {
      return { width: Math.max(this.canvas.clientWidth, 200), height: 224 };
    }

    /* Lines with values at few of the steps, as held-out rows have: a dot for each, and a name for one. */
    mark(plot, index, fill, font) {
      const [steps, values] = [plot.data[0], plot.data[index + 1]];
      const points = steps
        .map((step, at) => [step, values[at]])
        .filter(([, value]) => value !== null)
        .map(([step, value]) => [plot.valToPos(step, "x", true), plot.valToPos(value, "y", true)]);
      if (points.length > steps.length / 2) return;
      const { ctx } = plot;
      ctx.save();
      ctx.fillStyle = fill;
      points.forEach(([x, y]) => {
        ctx.beginPath();
        ctx.arc(x, y, 5 * devicePixelRatio, 0, 2 * Math.PI);
        ctx.fill();
      });
      if (points.length === 1) {
        const [x, y] = points[0];
        const place = [this.names[index], x - 10 * devicePixelRatio, y];
        Object.assign(ctx, { font, textAlign: "right", textBaseline: "middle", lineJoin: "round" });
        Object.assign(ctx, { strokeStyle: getComputedStyle(document.body).backgroundColor });
        ctx.lineWidth = 4 * devicePixelRatio;
        ctx.strokeText(...place);
        ctx.fillText(...place);
      }
      ctx.restore();
    }

    options() {
      const ink = getComputedStyle(this.figure);
      const axis = {
        stroke: ink.getPropertyValue("color"),
        grid: { stroke: colour(this.figure, "grid"), width: 1 },
        ticks: { show: false },
        font: `12px ${ink.fontFamily}`,
      };
      const colours = this.names.map((_, index) => colour(this.figure, `series-${index + 1}`));
      const dots = this.spec.across !== "";
      const bold = `600 ${12 * devicePixelRatio}px ${ink.fontFamily}`;
      return {
        ...this.size(),
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { x: { time: false }, ...(this.spec.share ? { y: { range: [0, 1] } } : {}) },
        axes: [
          { ...axis, label: dots ? "√KL" : "step", labelFont: axis.font, labelSize: 18, labelGap: 0, space: 60, size: 24, values: (_, marks) => marks.map((mark) => (dots ? short(mark) : Number.isInteger(mark) ? `${mark}` : "")) },
          { ...axis, size: room, values: (_, values) => values.map(short) },
        ],
        series: [
          {},
          ...this.names.map((_, index) => ({
            stroke: colours[index],
            width: index ? 2 : 1.75,
            spanGaps: true,
            ...(dots ? { paths: () => null } : {}),
            points: { show: dots, size: 7, fill: colours[index], width: 0 },
          })),
        ],
        padding: [8, 10, 0, 0],
        hooks: {
          draw: dots ? [] : [(plot) => colours.slice(1).forEach((fill, at) => this.mark(plot, at + 1, fill, bold))],
        },
      };
    }
  }

  /* The colour that the stylesheet gives to a class, in this theme. */
  const colour = (where, className) => {
    const probe = element("span", `swatch ${className}`);
    where.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  const charts = document.getElementById("run-charts");
  const live = CHARTS.map((spec) => new LiveChart(spec));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    live.filter((chart) => chart.plot).forEach((chart) => chart.build(chart.data()));
  });

  const setText = (id, text) => {
    const found = document.getElementById(id);
    if (found && found.textContent !== text) found.textContent = text;
  };

  /* The table of last values: what the charts say, in text. */
  const rowOf = (metric) => {
    const body = document.getElementById("run-values");
    let row = [...body.rows].find((candidate) => candidate.dataset.metric === metric);
    if (!row) {
      row = body.insertRow();
      row.dataset.metric = metric;
      const head = element("th", "mono", metric);
      head.scope = "row";
      row.append(head, element("td", "mono"), element("td", "mono"));
      document.getElementById("run-values-table").hidden = false;
    }
    return row;
  };
  const showLast = (metrics) => {
    const last = new Map();
    metrics.forEach(({ step, values }) =>
      Object.entries(values).forEach(([name, value]) => last.set(name, [short(value), `${step}`])),
    );
    last.forEach((texts, metric) => {
      const row = rowOf(metric);
      texts.forEach((text, index) => (row.cells[index + 1].textContent = text));
    });
  };

  /* Time left, from the pace of the last lines. */
  const pace = [];
  const timeLeft = ({ state, step, total_steps: total }) => {
    const first = pace[0];
    const last = pace[pace.length - 1];
    if (state !== "running" || pace.length < 2 || last.step <= first.step || step >= total) return "";
    const seconds = ((last.at - first.at) / (last.step - first.step)) * (total - step);
    if (!(seconds >= 0)) return "";
    if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s left`;
    if (seconds < 5400) return `about ${Math.round(seconds / 60)} min left`;
    return `about ${(seconds / 3600).toFixed(1)} h left`;
  };

  let seq = 0;
  const OVER = ["complete", "refused", "failed", "cancelled"];
  /* Nothing is promised where no figures come any more, or never: of sampling. */
  const showProgress = (now) => {
    page.hidden = seq === 0 && (OVER.includes(now) || page.dataset.method === "sample");
    document.getElementById("run-no-values").hidden = seq > 0;
  };
  let state = page.dataset.state;
  const take = (update) => {
    update.metrics.forEach((line) => {
      if (line.seq <= seq) return;
      seq = line.seq;
      live.forEach((chart) => chart.take(line.step, line.values));
      if (pace.length && line.step < pace[pace.length - 1].step) pace.length = 0; // taken up from a checkpoint
      pace.push({ step: line.step, at: line.at });
      if (pace.length > 30) pace.shift();
    });
    live.forEach((chart) => chart.draw());
    showLast(update.metrics);
    showProgress(update.state);
    if (update.state !== state) {
      state = update.state;
      refresh();
      return;
    }
    setText("run-message", update.message);
    setText("run-step", update.total_steps ? `Step ${update.step} of ${update.total_steps}` : "");
    setText("run-left", timeLeft(update));
    const bar = document.getElementById("run-progress");
    if (bar && update.total_steps) {
      bar.max = update.total_steps;
      bar.value = update.step;
    }
  };

  /* The server renders the new state; htmx puts it in place. */
  const refresh = () => document.getElementById("run-state")?.dispatchEvent(new Event("refresh"));

  let wait = 500;
  const connect = () => {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}${page.dataset.socket}?after=${seq}`);
    socket.addEventListener("message", (event) => {
      wait = 500;
      setText("run-connection", "");
      take(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      if (event.code === GONE) {
        setText("run-connection", "This run is no longer yours to see, or was removed.");
        return;
      }
      setText("run-connection", "Connection lost; trying again.");
      setTimeout(() => {
        refresh(); // where sockets are blocked, the state still moves
        connect();
      }, wait);
      wait = Math.min(wait * 2, SLOWEST_RETRY);
    });
  };
  connect();
})();
