"""The report's style sheet: one page for desktop, phone, dark screens and paper."""

from __future__ import annotations

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --grid: #d9dee3; --tint: #f5f7f9;
  --good: #116329; --good-tint: #e6f5ea; --warn: #7a4b00; --warn-tint: #fff4d6;
  --fair: #0b4a85; --fair-tint: #e4f0fb;
  --bad: #a40e16; --bad-tint: #ffe9e8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --ink: #e4e8ec; --soft: #a3acb6; --line: #39424c; --grid: #353d46; --tint: #1c2229;
    --good: #7ddc97; --good-tint: #13291b; --warn: #f0c25e; --warn-tint: #2e2510;
    --fair: #8cc4ff; --fair-tint: #11263a;
    --bad: #ff9d97; --bad-tint: #381717;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h1 { font-size: 1.5rem; margin: 1.5rem 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; }
.soft, caption, figcaption, footer { color: var(--soft); }
.guarantee {
  margin: 0; max-width: none; padding: 1rem 1.25rem; border-left: .4rem solid; border-radius: .25rem;
  font-size: 1.1rem; line-height: 1.45; font-weight: 600; overflow-wrap: anywhere;
}
#strength { margin-top: .35rem; font-size: 1rem; font-weight: 400; }
.good { color: var(--good); background: var(--good-tint); border-color: var(--good); }
.fair { color: var(--fair); background: var(--fair-tint); border-color: var(--fair); }
.warn { color: var(--warn); background: var(--warn-tint); border-color: var(--warn); }
.bad { color: var(--bad); background: var(--bad-tint); border-color: var(--bad); }
strong.good, strong.fair, strong.warn, strong.bad { background: none; }
td.bad { background: none; border-color: var(--line); }
.notice { margin: .75rem 0; padding: .6rem 1rem; border-left: .3rem solid; border-radius: .25rem; max-width: none; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; padding: 0; }
.tiles div { padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .35rem; background: var(--tint); }
.tiles dt { font-size: .8rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .85rem; caption-side: top; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; font-weight: 600; }
thead th.num { white-space: normal; }
thead th small, td small { display: block; font-weight: 400; color: var(--soft); white-space: normal; }
tbody th { font-weight: 600; }
.stack th[scope="row"] { min-width: 8.75rem; max-width: 14rem; overflow-wrap: anywhere; }
a { color: inherit; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.lead { font-weight: 700; }
.approximation { font-style: italic; color: var(--soft); }
.pairs th { width: 34%; font-weight: 400; color: var(--soft); }
.pairs td { overflow-wrap: anywhere; }
.columns { columns: 2 24rem; column-gap: 2rem; }
.columns table { break-inside: avoid; margin: 0 0 1.25rem; }
.columns caption { font-weight: 600; color: var(--ink); }
.items dt { font-weight: 600; margin-top: .75rem; }
.items dd { margin: .1rem 0 0; max-width: 48rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 1rem 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 36rem; }
figcaption { font-size: .85rem; max-width: 48rem; }
code, .hash { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .85em; overflow-wrap: anywhere; }
pre { margin: .25rem 0 .75rem; padding: .5rem .75rem; background: var(--tint); border: 1px solid var(--line); border-radius: .25rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
pre code { font-size: inherit; }
.sign { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 3.5rem 2rem; margin-top: 4rem; }
.sign div { border-top: 1px solid var(--ink); padding-top: .25rem; font-size: .85rem; color: var(--soft); }
footer { margin-top: 2.5rem; font-size: .8rem; }
@media screen and (max-width: 40rem) {
  body { padding: 1rem .8rem 2rem; }
  .guarantee { font-size: 1rem; padding: .8rem .9rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .stack thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stack, .stack tbody, .stack tr, .stack th, .stack td, .stack caption { display: block; width: auto; }
  .stack tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .stack th[scope="row"], .stack td, .stack .num { min-width: 0; max-width: none; border: 0; padding: .1rem 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .stack td { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem; }
  .stack td::before { content: attr(data-label); color: var(--soft); }
  .stack small { display: inline; }
}
@media print {
  @page { size: A4; margin: 20mm 15mm 18mm;
    @top-left { content: "%(header)s"; font: 8pt sans-serif; color: #444; }
    @top-right { content: "%(moment)s"; font: 8pt sans-serif; color: #444; }
    @bottom-left { content: "Run %(run)s"; font: 8pt sans-serif; color: #444; }
    @bottom-right { content: "Page " counter(page) " of " counter(pages); font: 8pt sans-serif; color: #444; }
  }
  :root {
    color-scheme: light;
    --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --grid: #dddddd; --tint: #f7f7f7;
    --good: #116329; --good-tint: #e6f5ea; --warn: #7a4b00; --warn-tint: #fff4d6; --bad: #a40e16; --bad-tint: #ffe9e8;
    --fair: #0b4a85; --fair-tint: #e4f0fb;
  }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h1 { font-size: 15pt; } h2 { font-size: 11.5pt; margin-top: 1.25rem; }
  p, .items dd, figcaption { max-width: none; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; }
  caption, figcaption, footer { font-size: 8pt; }
  .tiles { grid-template-columns: repeat(6, 1fr); gap: .4rem; }
  .tiles dd { font-size: 11pt; }
  .stack th[scope="row"] { min-width: 2.2cm; max-width: 3cm; }
  th, td { padding: .2rem .2rem; }
  thead { display: table-header-group; }
  .columns { columns: 2; }
  .columns table { break-inside: auto; }
  .figures { grid-template-columns: 1fr 1fr; gap: .5rem 1rem; }
  figure svg { max-width: 12cm; }
  h2, h3, caption, .items dt { break-after: avoid; }
  figure, tr, .items dt, .guarantee, .notice, .tiles, .signoff, pre { break-inside: avoid; }
  .guarantee, .tiles div, .notice { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
