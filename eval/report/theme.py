"""The report's stylesheet. Okabe-Ito colours (distinguishable for colour-blind readers), lighter in dark mode; shapes differ as well."""

STYLESHEET = """
:root {
  color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --soft: #5b6472; --line: #dfe3e9; --stripe: #f1f3f6;
  --c1: #0072b2; --c2: #b35900; --c3: #00785a; --policy: #0072b2; --random: #b35900; --expert: #00785a;
  --good: #00785a; --bad: #b35900; --note: #fff6e0; --note-line: #e5c46b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #171b21; --ink: #e8ebf0; --soft: #9aa5b4; --line: #2b323c; --stripe: #1d222a;
    --c1: #56b4e9; --c2: #e69f00; --c3: #2fc79a; --policy: #56b4e9; --random: #e69f00; --expert: #2fc79a;
    --good: #2fc79a; --bad: #e69f00; --note: #2b2415; --note-line: #7a6227;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main, header, nav, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 44px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; font-weight: 680; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 0 0 4px; font-weight: 650; }
h3 { font-size: 16px; margin: 0 0 10px; font-weight: 620; }
p { margin: 0 0 12px; max-width: 74ch; }
a { color: var(--policy); }
.lead, .soft, figcaption, .hint { color: var(--soft); }
.hint, figcaption { font-size: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px 28px; margin: 20px 0 0; padding: 0; }
.facts dt { font-size: 12.5px; color: var(--soft); }
.facts dd { margin: 0; font-size: 14.5px; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); padding-top: 10px; padding-bottom: 10px; margin-top: 22px;
  border-bottom: 1px solid var(--line); overflow-x: auto; white-space: nowrap; font-size: 14.5px; }
nav a { color: var(--soft); text-decoration: none; margin-right: 20px; }
nav a:hover { color: var(--ink); }
section { margin: 40px 0 0; scroll-margin-top: 56px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px; margin-top: 14px; min-width: 0; }
.grid { display: grid; gap: 14px; margin-top: 14px; }
.grid .card { margin-top: 0; }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.videos { grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
.tile .big { font-size: 38px; font-weight: 680; letter-spacing: -0.03em; line-height: 1.15; font-variant-numeric: tabular-nums; }
.tile .label { font-size: 14px; color: var(--soft); }
.tile p { margin: 6px 0 0; font-size: 14.5px; }
.note { background: var(--note); border: 1px solid var(--note-line); border-radius: 10px; padding: 12px 16px; margin: 14px 0 0;
  font-size: 15px; max-width: none; }
.absent { border-style: dashed; color: var(--soft); background: transparent; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 550; font-size: 13px; }
td.num, th.num { text-align: right; padding-right: 18px; }
tr.sum td { font-weight: 650; background: var(--stripe); }
td:first-child, th:first-child { padding-left: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; font-size: 14px; margin: 10px 0 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: 8px; }
.row { display: grid; grid-template-columns: 150px 1fr; align-items: center; gap: 0 12px; padding: 6px 0;
  border-top: 1px solid var(--line); }
.row.sum { font-weight: 650; }
.row .name { font-size: 14px; line-height: 1.25; overflow-wrap: anywhere; }
.lanes { position: relative; margin: 0 8px;
  background-image: repeating-linear-gradient(to right, var(--line) 0 1px, transparent 1px 25%); border-right: 1px solid var(--line); }
.lane { position: relative; height: 15px; }
.span { position: absolute; top: 6px; height: 3px; border-radius: 2px; opacity: 0.55; background: currentColor; }
.dot { position: absolute; top: 2px; width: 11px; height: 11px; margin-left: -5.5px; background: currentColor; }
.policy { color: var(--policy); } .random { color: var(--random); } .expert { color: var(--expert); }
.dot.policy, .key.policy { border-radius: 50%; }
.dot.random, .key.random { border-radius: 1px; transform: scale(0.85); }
.dot.expert, .key.expert { transform: rotate(45deg) scale(0.78); border-radius: 1px; }
.key { display: inline-block; width: 11px; height: 11px; background: currentColor; }
.axis { position: relative; height: 18px; margin: 2px 8px 0; font-size: 12px; color: var(--soft); }
.axis span { position: absolute; transform: translateX(-50%); }
.chart { width: 100%; height: auto; display: block; color: var(--soft); }
figure { margin: 0; min-width: 0; }
video { width: 100%; display: block; border-radius: 8px; background: #000; }
figure figcaption { margin-top: 8px; line-height: 1.4; }
figcaption b { color: var(--ink); font-weight: 600; }
.solved { color: var(--good); font-weight: 600; } .failed { color: var(--bad); font-weight: 600; }
.strip { display: block; max-width: 100%; min-width: min(680px, 100%); height: auto; border-radius: 6px; }
@media (max-width: 640px) { .strip.wide { max-width: none; width: 680px; } }
.bar { height: 10px; border-radius: 5px; background: var(--policy); min-width: 2px; }
.times { display: grid; grid-template-columns: minmax(90px, max-content) 1fr max-content; gap: 8px 16px; align-items: center;
  font-size: 14.5px; }
.times .value { text-align: right; font-variant-numeric: tabular-nums; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 550; }
pre { font: 12.5px/1.5 var(--mono); background: var(--stripe); border-radius: 8px; padding: 14px; overflow-x: auto; margin: 10px 0 0;
  max-height: 560px; }
code { font: 0.9em var(--mono); overflow-wrap: anywhere; }
footer { padding-top: 40px; padding-bottom: 48px; font-size: 14px; color: var(--soft); }
@media (max-width: 640px) {
  body { font-size: 15.5px; } header { padding-top: 26px; } h1 { font-size: 25px; }
  main, header, nav, footer { padding-left: 14px; padding-right: 14px; }
  .card { padding: 15px; } .row { grid-template-columns: 1fr; gap: 4px; } .row.scale .name { display: none; }
  .tile .big { font-size: 32px; } th, td { padding-right: 8px; } td.num, th.num { padding-right: 8px; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""
