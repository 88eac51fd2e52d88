"""The frame of a report: its style, its few lines of script, and one self-contained HTML page around sections."""

from __future__ import annotations

from html import escape

from plotly.offline import get_plotlyjs

CSS = """
:root {
  --bg: #f6f7f9; --card: #fff; --ink: #1b222d; --ink-2: #566070; --ink-3: #7b8594; --line: #e3e6eb;
  --accent: #2c66b8; --good: #1d7a55; --bad: #b3303f; --warn-bg: #fff6e0; --warn-ink: #6b4a00; --warn-line: #ecd9a4;
  --chip: #eef1f5; --bad-bg: #fdeced;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #12161c; --card: #1a1f27; --ink: #e8ebf0; --ink-2: #a9b2bf; --ink-3: #87919f; --line: #2c333e;
    --accent: #7fb0f0; --good: #5cc79b; --bad: #f0808c; --bad-bg: #3a1d22; --warn-bg: #2d2717; --warn-ink: #efd9a0;
    --warn-line: #50451f; --chip: #262d38;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 15.5px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1100px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 4px 0 12px; text-wrap: balance; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 76ch; }
a { color: var(--accent); text-underline-offset: 2px; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
section { margin-top: 44px; scroll-margin-top: 12px; }
.kicker { color: var(--ink-3); font-size: .82rem; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
.lead { font-size: 1.16rem; line-height: 1.5; max-width: 68ch; }
.muted { color: var(--ink-2); } .small { font-size: .86rem; } .nowrap { white-space: nowrap; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: .9rem; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
.note {
  background: var(--warn-bg); color: var(--warn-ink); border: 1px solid var(--warn-line); border-radius: 10px;
  padding: 10px 14px; max-width: none;
}
.alert {
  background: var(--bad-bg); color: var(--ink); border: 2px solid var(--bad); border-radius: 10px;
  padding: 12px 16px; margin: 0 0 16px;
}
.alert b, .bad { color: var(--bad); } .alert ul { margin: 6px 0 0; padding-left: 1.3em; }
.strip {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px 24px; margin: 20px 0 0;
  padding: 16px 18px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; font-size: .88rem;
}
.strip div { min-width: 0; } .strip .full { grid-column: 1 / -1; }
.strip dt { color: var(--ink-3); font-size: .78rem; } .strip dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(235px, 1fr)); gap: 14px; margin: 16px 0 20px; }
.tile {
  background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--c); border-radius: 12px;
  padding: 14px 18px 16px;
}
.tile h3 { margin: 0; font-size: 1rem; }
.tile .big { font-size: 2.25rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; margin-top: 4px; }
.tile .big + p { margin: 0 0 10px; }
.tile dl { margin: 0; display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; }
.tile dt { color: var(--ink-2); font-size: .88rem; } .tile dd { margin: 0; text-align: right; font-size: .88rem; }
.swatch {
  display: inline-block; width: .72em; height: .72em; border-radius: 3px; background: var(--c); margin-right: .45em;
}
.swatch.circle { border-radius: 50%; } .swatch.square { border-radius: 1px; }
.swatch.diamond { border-radius: 0; clip-path: polygon(50% -8%, 108% 50%, 50% 108%, -8% 50%); }
.swatch.triangle-up { border-radius: 0; clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.under { margin-top: 10px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.grid.four { grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)); }
figure { margin: 0; min-width: 0; } figure.wide { margin-bottom: 14px; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 4px; }
figcaption span { font-weight: 400; color: var(--ink-2); }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 8px; margin: 12px 0; font-size: .88rem; }
.bar .gap { flex-basis: 10px; }
.key {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 999px;
  padding: 3px 12px; display: inline-flex; align-items: center; gap: 7px;
}
button.key { cursor: pointer; } button.key:hover { border-color: var(--ink-3); }
button.key[aria-pressed="false"] { opacity: .45; text-decoration: line-through; }
.key .swatch { margin: 0; } .key svg { display: block; color: var(--ink-2); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--ink-2); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; } td.r, th.r { text-align: right; }
tr.group th {
  font-size: .78rem; color: var(--ink-3); letter-spacing: .02em; padding-top: 14px; padding-bottom: 4px;
  font-weight: 600;
}
tr.group + tr > * { border-top: 0; } tr.group td { padding: 0; }
.compare td { min-width: 132px; padding-top: 6px; padding-bottom: 9px; } .compare tbody th { min-width: 190px; }
.compare thead th:first-child { width: 32%; } thead th { white-space: nowrap; }
.compare th small, td small, th small { display: block; color: var(--ink-3); font-weight: 400; font-size: .8rem; }
.compare.down thead th:first-child { width: auto; } .compare.down tbody th, .compare.down td { min-width: 0; }
.compare.down thead th { white-space: normal; }
.compare.down .whisker { margin-left: auto; max-width: 130px; } .compare.down td { padding: 5px 14px; }
.num { font-size: 1rem; } .num.best { font-weight: 700; }
.ci { color: var(--ink-3); font-size: .78rem; white-space: nowrap; margin-left: 6px; font-weight: 400; }
.compare tbody tr:not(.group) th, .compare thead th:first-child { position: sticky; left: 0; background: var(--card); }
.compare tbody tr:not(.group) th { z-index: 1; }
.whisker {
  position: relative; height: 7px; margin-top: 4px; max-width: 280px; border-radius: 4px; background: var(--chip);
}
.whisker i, .whisker b { position: absolute; top: 0; bottom: 0; border-radius: 4px; background: var(--c); }
.whisker i { left: 0; width: calc(var(--v) * 1%); opacity: .3; }
.whisker b { left: calc(var(--l) * 1%); width: max(3px, calc((var(--h) - var(--l)) * 1%)); }
.badge { white-space: nowrap; } .badge::before { content: "● "; color: var(--ink-3); }
.badge.finished::before { color: var(--good); } .badge.failed { color: var(--bad); }
.badge.failed::before { content: "▲ "; color: var(--bad); }
.badge.running::before { content: "◌ "; color: var(--accent); }
.badge.stopped::before { content: "■ "; }
.tag {
  background: var(--chip); border-radius: 999px; padding: 0 8px; font-size: .76rem; color: var(--ink-2);
  margin-left: 4px; white-space: nowrap;
}
.error { color: var(--bad); font-size: .84rem; max-width: 46ch; overflow-wrap: anywhere; margin-top: 2px; }
th button {
  font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit;
  white-space: inherit;
}
th button::after { content: " ↕"; color: var(--ink-3); font-weight: 400; opacity: .6; }
th[aria-sort="ascending"] button::after { content: " ↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " ↓"; opacity: 1; }
table.sortable th, table.sortable td { padding: 8px 10px; } table.sortable { font-size: .85rem; }
.sortable .tag { margin-left: 0; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--ink-2); font-size: .9rem; }
dl.words { display: grid; grid-template-columns: minmax(140px, auto) 1fr; gap: 8px 22px; max-width: 90ch; }
dl.words dt { font-weight: 600; } dl.words dd { margin: 0; color: var(--ink-2); }
footer { margin-top: 48px; color: var(--ink-3); font-size: .84rem; }
.js-plotly-plot .xtick text, .js-plotly-plot .ytick text, .js-plotly-plot .infolayer text {
  fill: var(--ink-2) !important;
}
@media (max-width: 560px) {
  main { padding: 22px 14px 48px; } h1 { font-size: 1.55rem; } .lead { font-size: 1.05rem; }
  .card { padding: 12px 8px 6px; } .card figcaption { padding: 0 6px; } section { margin-top: 34px; }
  th, td { padding: 7px 10px; } .compare tbody th { min-width: 128px; } .compare td { min-width: 108px; }
  .compare .ci { display: block; margin-left: 0; }
  dl.words { grid-template-columns: 1fr; gap: 2px; } dl.words dd { margin-bottom: 8px; }
}
@media print { body { background: #fff; } .card, .tile, .strip, .scroll { break-inside: avoid; } }
"""

SCRIPT = """
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
"""

# an empty icon: a browser would otherwise ask for one
ICON = "data:,"


def page(title: str, body: str, with_figures: bool) -> str:
    """A whole page that needs nothing from outside; `body` is HTML, already escaped."""
    plotly = f"<script>{get_plotlyjs()}</script>" if with_figures else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="{ICON}">
<style>{CSS}</style>
{plotly}
</head>
<body>
<noscript><p class="note">The figures and the sorting of tables need JavaScript; all tables are complete without it.</p>
</noscript>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
