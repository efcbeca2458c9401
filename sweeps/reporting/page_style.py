"""How the page of a report looks: on light and dark ground, on a telephone and on paper.

Figures are drawn on white and keep it. Numbers have digits of one width, so that columns of them line up.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fff; --ink: #1c2126; --quiet: #5b6570; --rule: #d5dae0; --strong-rule: #7d8791;
  --accent: #0b62a5; --tint: #f2f6fa; --code: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --ink: #dfe4e9; --quiet: #9aa5b1; --rule: #343b43; --strong-rule: #76818c;
    --accent: #79b8f3; --tint: #1c232b; --code: #252c34;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 80rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.25rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 0.75rem; }
p, li { max-width: 50rem; }
p { margin: 0.75rem 0; }
ul { margin: 0.75rem 0; padding-left: 1.2rem; }
li { margin: 0.3rem 0; }
.long { max-height: 12rem; overflow-y: auto; }
a { color: var(--accent); text-underline-offset: 0.15em; }
code {
  font: 0.875em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--code); border-radius: 3px; padding: 0.1em 0.3em;
}
header > p {
  margin: 0; padding: 1rem 1.25rem;
  background: var(--tint); border-left: 4px solid var(--accent); font-size: 1.15rem;
}
header > p > strong { font-weight: 600; }
header li, header + nav { font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1.5rem 0 0; padding: 0.75rem 0;
  border: solid var(--rule); border-width: 1px 0; font-size: 0.9rem; }
.wide { overflow-x: auto; margin: 1rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; line-height: 1.35; font-variant-numeric: tabular-nums lining-nums;
  border: solid var(--strong-rule); border-width: 2px 0; overflow-wrap: normal; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--strong-rule); }
td { border-top: 1px solid var(--rule); }
tbody tr:first-child td { border-top: 0; }
th:last-child, td:last-child { padding-right: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); }
td:first-child { white-space: nowrap; }
.number { text-align: right; }
td.number { white-space: nowrap; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; padding: 0.5rem; background: #fff;
  border: 1px solid var(--rule); border-radius: 4px; }
figcaption { margin-top: 0.35rem; color: var(--quiet); font-size: 0.875rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.5rem;
  align-items: start; }
.gallery figure:target img { outline: 3px solid var(--accent); }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  header > p { font-size: 1.05rem; padding: 0.75rem 1rem; }
}
@media print {
  :root { --ground: #fff; --ink: #000; --quiet: #444; --rule: #bbb; --strong-rule: #000; --accent: #000; --tint: #fff;
    --code: #fff; }
  @page { margin: 16mm 14mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h1 { font-size: 16pt; } h2 { font-size: 12pt; margin-top: 1.5rem; break-after: avoid; }
  header > p { padding: 0 0 0 0.75rem; font-size: 11pt; }
  p, li { max-width: none; }
  .long { max-height: none; }
  a { text-decoration: none; }
  code { padding: 0; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.2rem 0.5rem 0.2rem 0; }
  tr, figure { break-inside: avoid; }
  figure img { padding: 0; border: 0; }
  .gallery { grid-template-columns: 1fr 1fr; }
}
"""
