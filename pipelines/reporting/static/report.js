"use strict";
(() => {
  const config = { responsive: true, displayModeBar: false, displaylogo: false, scrollZoom: false };
  document.querySelectorAll("script[data-plot]").forEach((script) => {
    const spec = JSON.parse(script.textContent);
    Plotly.newPlot(script.dataset.plot, spec.data, spec.layout, config);
  });
  const figures = () => document.querySelectorAll(".js-plotly-plot");
  const apply = () => figures().forEach((figure) => {
    const visible = figure.data.map(({ meta }) => !off.has("method:" + meta.method) && !off.has("kind:" + meta.kind));
    Plotly.restyle(figure, { visible });
  });
  const fold = () => document.querySelectorAll("figure[data-method]").forEach((figure) => {
    figure.hidden = off.has("method:" + figure.dataset.method);
  });
  const toggles = document.querySelectorAll("button[data-toggle]");
  const off = new Set([...toggles].filter((b) => b.ariaPressed === "false").map((b) => b.dataset.toggle));
  toggles.forEach((button) => button.addEventListener("click", () => {
    const key = button.dataset.toggle;
    if (!off.delete(key)) off.add(key);
    toggles.forEach((b) => b.setAttribute("aria-pressed", String(!off.has(b.dataset.toggle))));
    apply();
    fold();
  }));
  document.querySelectorAll("table.sortable th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const numbers = head.dataset.type === "number", before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numbers;
    [...head.parentNode.children].forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.children[column]?.dataset.sort ?? "";
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return (down ? -1 : 1) * (numbers ? Number(x) - Number(y) : x.localeCompare(y));
    };
    [...body.rows].sort(order).forEach((row) => body.append(row));
  }));
})();
