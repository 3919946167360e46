"""The style sheet. A tone is a meaning with one colour everywhere: base, final, imagined, real; the rest is quiet."""

STYLE = """
:root {
  --page: #f5f6f7; --card: #ffffff; --edge: #e1e4e8; --ink: #1c2127; --soft: #5a6470; --grid: #e6e9ec;
  --base: #c26a00; --final: #0a66b5; --imagined: #a3439b; --real: #00806a;
  --strong: #38424e; --second: #8b7bb8; --third: #94a0ac; --faint: #ccd3da; --warn: #b8541f; --time: #7389a3;
  --good: #00735f; --bad: #b3361c; --track: #edf0f2;
  --run-a: #4f46c8; --run-b: #c2255c;
  --policy: #2f78c4; --denoise: #a3439b; --decode: #d58fce; --spool: #8794a3; --score: #00806a; --verify: #6fbfae;
  --batch: #b99a3c; --step: #d9730d; --checkpoint: #8a5a2b; --encode: #e3b98a; --load: #5c6bc0; --evaluate: #4c9a2a;
  --compare: #9cc97e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --card: #1a1f25; --edge: #2b323a; --ink: #e7eaee; --soft: #a3adb8; --grid: #2a3138;
    --base: #f2a94a; --final: #62b1f5; --imagined: #de8bd6; --real: #3cc7a8;
    --strong: #c7d0da; --second: #a99ae0; --third: #76828f; --faint: #48525d; --warn: #ee8b5a; --time: #7d94b0;
    --good: #45cdae; --bad: #ff8f73; --track: #262d34;
    --run-a: #9d97ff; --run-b: #ff7da8;
    --policy: #5aa2ea; --denoise: #c56bbd; --decode: #e6abe0; --spool: #6d7a88; --score: #2fb597; --verify: #93dfce;
    --batch: #cdb052; --step: #f2953d; --checkpoint: #b07c48; --encode: #eccda6; --load: #8491e8; --evaluate: #74c24f;
    --compare: #b9e3a0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 16px 20px 48px; }
header { margin-bottom: 14px; }
.name-line { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 14px; }
.eyebrow { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .02em; }
h1 { margin: 0; font-size: 27px; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere; }
.verdict { margin: 2px 0 0; font-size: 17px; max-width: 60em; }
.note { margin: 8px 0 0; color: var(--bad); overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 16px; font-weight: 620; }
h2.group { margin: 34px 0 12px; font-size: 20px; }
h3 { margin: 0 0 4px; font-size: 14px; font-weight: 600; }
.grid {
  display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); grid-auto-flow: dense; gap: 14px; margin-bottom: 14px;
}
.card {
  display: flex; flex-direction: column; min-width: 0; padding: 12px 18px 11px;
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
}
.wide, .grid > :nth-last-child(1 of .card:not(.wide)):nth-child(odd of .card:not(.wide)) { grid-column: 1 / -1; }
.thirds { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px; }
.how { margin: auto 0 0; padding-top: 6px; color: var(--soft); font-size: 13px; line-height: 1.45; }
.missing { margin: 0; color: var(--soft); font-style: italic; }
.lead { margin: 0 0 8px; }
.thirds + .lead { margin: 12px 0 2px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-size: 12.5px; font-weight: 500; text-align: left; }
th, td { padding: 3.5px 14px 3.5px 0; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr { border-top: 1px solid var(--grid); }
.num { text-align: right; }
.times table { font-size: 14px; }
.times td, .times th { padding-top: 2px; padding-bottom: 2px; }
.times td:last-child, .times th:last-child { width: 44%; }
.big { font-weight: 650; font-size: 17px; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.provenance td { white-space: normal; overflow-wrap: anywhere; font-size: 13.5px; }
.provenance td:first-child { white-space: nowrap; color: var(--soft); width: 14em; }
.provenance thead { display: none; }
td:last-child > .meter { min-width: 110px; }
.comparison td:last-child { white-space: normal; font-size: 13.5px; line-height: 1.3; }
details { margin-top: 12px; }
.round { margin: 20px 0 0; border-top: 1px solid var(--edge); padding-top: 12px; }
.round > summary h2 { display: inline; font-size: 20px; color: var(--ink); }
.round[open] > summary { margin-bottom: 12px; }
details thead { display: table-header-group !important; }
summary { cursor: pointer; color: var(--soft); }

.tone-base { --tone: var(--base); } .tone-final { --tone: var(--final); }
.tone-imagined { --tone: var(--imagined); } .tone-real { --tone: var(--real); }
.tone-strong { --tone: var(--strong); } .tone-second { --tone: var(--second); }
.tone-third { --tone: var(--third); } .tone-faint { --tone: var(--faint); }
.tone-warn { --tone: var(--warn); } .tone-time { --tone: var(--time); }
.tone-run-a { --tone: var(--run-a); } .tone-run-b { --tone: var(--run-b); }
.tone-phase-policy { --tone: var(--policy); } .tone-phase-denoise { --tone: var(--denoise); }
.tone-phase-decode { --tone: var(--decode); } .tone-phase-spool { --tone: var(--spool); }
.tone-phase-score { --tone: var(--score); } .tone-phase-verify { --tone: var(--verify); }
.tone-phase-batch { --tone: var(--batch); } .tone-phase-step { --tone: var(--step); }
.tone-phase-checkpoint { --tone: var(--checkpoint); } .tone-phase-encode { --tone: var(--encode); }
.tone-phase-load { --tone: var(--load); } .tone-phase-evaluate { --tone: var(--evaluate); }
.tone-phase-compare { --tone: var(--compare); }

.chart { display: block; width: 100%; height: auto; margin: 4px 0; font-family: inherit; }
.wide-chart { max-width: 620px; } .small-chart { max-width: 500px; }
.gridline { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--third); stroke-width: 1; }
.rule { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.tick { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.axis-label { fill: var(--soft); font-size: 12px; }
.name { fill: var(--ink); font-size: 12.5px; font-weight: 550; }
.line { fill: none; stroke: var(--tone); stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 7 5; } .dotted { stroke-dasharray: 1 5; }
.marker { fill: var(--tone); }
.leader { fill: none; stroke: var(--faint); stroke-width: 1; }
.band { fill: var(--tone); opacity: .17; }
.dot .band { opacity: .3; }
.whisker { stroke: var(--tone); stroke-width: 1.2; opacity: .65; }
.fill, .dot circle { fill: var(--tone); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 4px; font-size: 13px; }
.swatch {
  display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 3px; background: var(--tone);
}
.meter { position: relative; display: block; min-width: 90px; height: 9px; margin: 3px 0; border-radius: 3px; background: var(--track); }
.fill-bar { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--tone); }
.bound { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); box-shadow: 0 0 0 2px var(--card); }

.timeline { min-width: 640px; margin-bottom: 10px; }
.role-row { display: flex; align-items: center; gap: 10px; margin: 2px 0; font-size: 13px; font-variant-numeric: tabular-nums; }
.role-name { flex: 0 0 92px; text-align: right; color: var(--soft); }
.shares { display: flex; flex: 1; min-width: 0; height: 19px; border-radius: 4px; overflow: hidden; gap: 1px; }
.share { flex-basis: 0; min-width: 0; padding: 0 6px; background: var(--tone); font-size: 11.5px; line-height: 19px; white-space: nowrap; overflow: hidden; color: var(--card); }
.share.tone-faint { color: var(--ink); }
@media (prefers-color-scheme: light) {
  .tone-phase-decode, .tone-phase-verify, .tone-phase-encode, .tone-phase-compare, .tone-phase-batch { color: var(--ink); }
}
.share:empty { padding: 0; }
.role-row data { flex: 0 0 76px; }

.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px; }
.wide .gallery { grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.video { margin: 0; min-width: 0; }
.video img { display: block; max-width: 100%; height: auto; border-radius: 5px; }
.pixels { image-rendering: pixelated; }
.featured .video { width: fit-content; margin: 0 auto; }
.heads { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; color: var(--ink); }
.ends { display: flex; justify-content: space-between; gap: 10px; }
.ends b { white-space: nowrap; }
figcaption { margin-top: 6px; font-size: 13px; line-height: 1.4; color: var(--soft); overflow-wrap: anywhere; }
figcaption > span { display: block; }
.disagree img { outline: 2px solid var(--bad); outline-offset: 2px; }

@media (max-width: 780px) {
  main { padding: 18px 12px 40px; }
  h1 { font-size: 25px; } .verdict { font-size: 16px; }
  .grid, .thirds { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 14px 14px 12px; }
  th, td { padding-right: 9px; }
  .times table { font-size: 14px; }
.times td, .times th { padding-top: 2px; padding-bottom: 2px; }
.times td:last-child, .times th:last-child { width: 30%; }
  .meter { min-width: 56px; }
  .wide .gallery { grid-template-columns: minmax(0, 1fr); }
  .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
}
@media (max-width: 480px) {
  .wide-chart .tick { font-size: 14px; } .wide-chart .axis-label, .wide-chart .name { font-size: 14.5px; }
  table { font-size: 13.5px; } .big { font-size: 15px; } th { font-size: 12px; }
  th, td { padding-right: 7px; } td:last-child > .meter { min-width: 44px; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
