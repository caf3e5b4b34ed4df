// Replaces static figures by Plotly plots and runs the explorer of embeddings.
// Without this script, and in print, the page shows the static figures.
"use strict";

(() => {
  const { plots, explorer } = JSON.parse(document.getElementById("interactive-data").textContent);
  const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#1c1e21" };
  // no button with a link to another page
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]] };
  const common = {
    font,
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    dragmode: "zoom",
    modebar: { bgcolor: "rgba(255, 255, 255, 0.9)" },
    hoverlabel: { font: { ...font, size: 12.5 }, namelength: -1 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
    margin: { l: 62, r: 12, t: 36, b: 52 },
  };

  // Left and right select a point, up and down select a line, Escape clears the selection.
  const enableKeys = (element) => {
    let trace = 0;
    let point = -1;
    element.addEventListener("keydown", (event) => {
      const shown = element.data.flatMap((each, index) => (each.hoverinfo === "skip" ? [] : [index]));
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (event.key === "Escape") Plotly.Fx.unhover(element);
      if (!step || !shown.length) return;
      event.preventDefault();
      trace = (trace + step[0] + shown.length) % shown.length;
      const { length } = element.data[shown[trace]].x;
      point = (Math.max(point, step[1] < 0 ? 0 : -1) + step[1] + length) % length;
      Plotly.Fx.hover(element, [{ curveNumber: shown[trace], pointNumber: point }]);
    });
  };

  for (const [name, { data, layout }] of Object.entries(plots)) {
    const figure = document.getElementById(`figure-${name}`);
    const drawing = figure.querySelector("svg");
    const element = document.createElement("div");
    element.className = "plot";
    // the legend reduces the height of the plot
    element.style.height = `${22 + 1.2 * data.filter((trace) => trace.name).length}rem`;
    element.tabIndex = 0;
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", `${drawing.getAttribute("aria-label")}. Use the arrow keys to read the values.`);
    drawing.after(element);
    figure.classList.add("live");
    Plotly.newPlot(element, data, { ...common, ...layout }, config);
    enableKeys(element);
  }

  // folded on screen, unfolded in print
  for (const fold of document.querySelectorAll(".unfolded-in-print")) {
    fold.open = false;
    matchMedia("print").addEventListener("change", ({ matches }) => { fold.open = matches; });
  }

  // the first number of a cell, otherwise its text
  const sortKey = (cell) => {
    const text = cell.textContent.trim();
    const number = parseFloat(text.match(/-?\d[\d.]*(e-?\d+)?/)?.[0]);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (one, other) => {
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return typeof one === "number" ? one - other : one.localeCompare(other);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const isDescending = head.getAttribute("aria-sort") === "ascending";
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, other) => compare(sortKey(one.cells[column]), sortKey(other.cells[column])) * (isDescending ? -1 : 1));
        table.tBodies[0].append(...rows);
        for (const each of heads) each.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      });
    });
  }

  if (!explorer) return;
  const figure = document.getElementById("explorer");
  const plot = document.getElementById("explorer-plot");
  const thumbnail = document.getElementById("explorer-thumbnail");
  const details = document.getElementById("explorer-details");
  const choices = Object.fromEntries(
    ["features", "attack", "method", "eps"].map((key) => [key, document.getElementById(`explorer-${key}`)]),
  );
  const { classes, views, side, columns } = explorer;
  const zoom = 2;

  for (const [key, select] of Object.entries(choices)) {
    const values = [...new Set(views.map((view) => view[key]))];
    select.append(...values.map((value) => new Option(value, value)));
    select.disabled = values.length < 2;
    select.value = explorer.first[key];
    select.addEventListener("change", draw);
  }

  function selectedView() {
    const matches = (view) => Object.entries(choices).every(([key, select]) => view[key] === select.value);
    const view = views.find(matches);
    return view && { ...view, ...explorer.members[view.members] };
  }

  function draw() {
    showDetails(null);
    const view = selectedView();
    const data = [];
    if (view) {
      classes.forEach((name, label) => {
        for (const adversarial of [0, 1]) {
          const members = view.image.flatMap((image, at) =>
            explorer.labels[image] === label && view.adversarial[at] === adversarial ? [at] : [],
          );
          if (!members.length) continue;
          const symbol = explorer.symbols[label % explorer.symbols.length];
          const color = explorer.colors[label % explorer.colors.length];
          data.push({
            type: "scatter",
            mode: "markers",
            name: `${escaped(name)}, ${adversarial ? "adversarial" : "clean"}`,
            x: members.map((at) => view.x[at]),
            y: members.map((at) => view.y[at]),
            customdata: members,
            hoverinfo: "none",
            marker: {
              color,
              symbol: adversarial ? symbol : `${symbol}-open`,
              size: 8,
              opacity: 0.75,
              line: { color, width: 1 },
            },
          });
        }
      });
    }
    const axis = { showticklabels: false, zeroline: false, gridcolor: "#f0f0f0", showline: true, mirror: true, linecolor: "#999" };
    const [first, second] = view?.method === "PCA" ? ["first component", "second component"] : ["", ""];
    const layout = {
      ...common,
      hovermode: "closest",
      margin: { l: 30, r: 12, t: 60, b: 34 },
      xaxis: { ...axis, title: { text: first, font } },
      yaxis: { ...axis, title: { text: second, font } },
    };
    if (!view) layout.annotations = [{ text: "This combination was not computed.", showarrow: false }];
    return Plotly.react(plot, data, layout, config);
  }

  // Plotly reads some HTML in its texts
  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function showDetails(at) {
    const view = selectedView();
    if (thumbnail) thumbnail.hidden = at === null;
    if (at === null || !view) {
      details.textContent = "Move the mouse over a point, or use the arrow keys, to show its details.";
      return;
    }
    const image = view.image[at];
    if (thumbnail) thumbnail.style.backgroundPosition = `${-(image % columns) * side * zoom}px ${-Math.floor(image / columns) * side * zoom}px`;
    const prediction = classes[view.prediction[at]];
    const lines = [
      explorer.paths[image],
      `class: ${classes[explorer.labels[image]]}`,
      view.adversarial[at] ? `adversarial, ε = ${view.eps}/255` : "clean",
      prediction === undefined ? "prediction: unknown" : `predicted: ${prediction}`,
    ];
    details.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("span"), { textContent: line })),
    );
  }

  figure.hidden = false;
  if (thumbnail) {
    thumbnail.style.backgroundImage = `url(${explorer.sprite})`;
    thumbnail.style.backgroundSize = `${columns * side * zoom}px auto`;
    thumbnail.style.width = thumbnail.style.height = `${side * zoom}px`;
  }
  draw().then(() => {
    plot.on("plotly_hover", ({ points }) => showDetails(points[0].customdata));
    enableKeys(plot);
  });
})();
