"""The look of the report: one style sheet, light and dark, narrow and wide, legible without colour."""

from __future__ import annotations

SERIES = (
    ("#0072b2", ""),
    ("#d55e00", "7 4"),
    ("#009e73", "2 3"),
    ("#cc79a7", "9 3 2 3"),
    ("#b8860b", "5 2"),
    ("#56b4e9", "1 2"),
)
"""Colour and dash of the lines of a chart, in order: Okabe and Ito's palette, told apart by colour-blind eyes and, by
the dash, on a black and white print."""

PLOTS = (
    ".plot{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.plot text{fill:#1b1f24}"
    ".plot .mute{fill:#59636e}.plot .ground{stroke:#d0d7de}.plot .other{stroke:#c3cad2}.plot .own{stroke:#0072b2}"
    ".plot .dot{fill:#0072b2}.plot .sheet{fill:#fff}"
    "@media (prefers-color-scheme:dark){.plot text{fill:#e6edf3}"
    ".plot .mute{fill:#9aa6b2}.plot .ground{stroke:#3a434d}.plot .other{stroke:#3f4852}.plot .own{stroke:#6cb6e8}"
    ".plot .dot{fill:#6cb6e8}.plot .sheet{fill:#0d1117}}"
)
"""Of the plots, in plain colours: they stand in files of their own too, which not only browsers read."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --page: #ffffff; --card: #f6f8fa;
  --mark: #0072b2; --box: #cfe3f1; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa6b2; --line: #3a434d; --page: #0d1117;
  --card: #161b22; --mark: #6cb6e8; --box: #1f4059; --bad: #ff8a80; }
  .charts polyline, .charts path { filter: brightness(1.5); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 0.6rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
p { margin: 0.4rem 0; max-width: 46rem; } .case p { max-width: none; }
a { color: var(--mark); }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.9rem; margin: 0.8rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem 0.9rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--page) 1.5rem, transparent 3rem) right / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--line), transparent) right / 0.9rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  min-width: clamp(6.5rem, 12vw, 7.5rem); overflow-wrap: anywhere; position: sticky; left: 0; background: var(--page); }
thead th { font-size: 0.85rem; color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 600; }
tr.total th, tr.total td { border-top: 2px solid var(--ink); font-weight: 700; }
.bad { color: var(--bad); font-weight: 700; }
.bar { width: 6.5rem; min-width: 5.5rem; }
.bar svg { display: block; width: 100%; height: 14px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem 2rem; }
.plots figure, .charts figure { margin: 0; }
.row { display: grid; grid-template-columns: minmax(4.5rem, 9rem) 1fr; gap: 0.6rem; align-items: center;
  font-size: 0.9rem; }
.row > span:first-child { overflow-wrap: anywhere; line-height: 1.15; }
.row svg { display: block; width: 100%; height: 26px; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 0.8rem; }
svg .ground { stroke: var(--line); } svg .box { fill: var(--box); stroke: var(--ink); }
svg .median { stroke: var(--ink); stroke-width: 3; } svg .whisker { stroke: var(--ink); }
svg .cases { stroke: var(--mark); opacity: 0.8; } svg line, svg path, svg rect { vector-effect: non-scaling-stroke; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem 2rem; }
.charts figure { max-width: 30rem; }
.charts svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; font-size: 0.85rem; list-style: none; padding: 0;
  margin: 0.3rem 0; }
.legend svg { width: 28px; height: 8px; display: inline-block; vertical-align: middle; margin-right: 0.4rem; }
.case { margin: 0 0 1.8rem; }
.planes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 0.8rem;
  align-items: end; }
.planes figure { margin: 0; }
.planes svg { display: block; width: 100%; height: auto; max-height: 26rem; background: #000; border-radius: 4px; }
.planes image { image-rendering: pixelated; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem; overflow-x: auto;
  font: 0.85rem/1.45 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; font-size: 0.9rem; margin: 0.4rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { details::details-content { content-visibility: visible; block-size: auto; }
  .scroll { overflow: visible; background: none; } nav { display: none; } pre { white-space: pre-wrap; }
  body { max-width: none; padding: 0; font-size: 12px; } table { font-size: 0.72rem; } .bar { display: none; }
  th, td { padding: 0.2rem 0.25rem; } th:first-child, td:first-child { min-width: 0; position: static; }
  .planes { grid-template-columns: repeat(3, 1fr); } .planes svg { max-height: 5.5cm; } h2, h3 { break-after: avoid; }
  .case, figure, tr, .tile { break-inside: avoid; } * { print-color-adjust: exact; } }
"""
