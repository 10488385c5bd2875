"""How the report looks: wide, narrow, dark, printed."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #b35900; --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #f0a050; --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.met { color: var(--good); } .unmet { color: var(--bad); } .note { opacity: .8; font-size: .9rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none; }
.facts li { flex: 1 1 9rem; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 6px; }
.facts strong { display: block; font-size: 1.5rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: linear-gradient(var(--soft), var(--soft)), Canvas; }
.number { text-align: right; } td.number { white-space: nowrap; }
.wide code { white-space: nowrap; } .wide .long { min-width: 15rem; overflow-wrap: anywhere; }
.wide .long code { white-space: normal; }
.wide tr > :first-child { position: sticky; left: 0; background-color: Canvas; }
pre { padding: .6rem .8rem; background: var(--soft); font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; } figure svg { max-width: none; } .strip { width: 100%; min-width: 44rem; }
.front svg { width: auto; height: 20rem; max-width: none; }
summary { cursor: pointer; padding: .3rem 0; overflow-wrap: anywhere; }
details.layer { border-bottom: 1px solid var(--line); }
details.layer summary { display: flex; flex-wrap: wrap; gap: 0 1rem; }
details.layer summary::before { content: "▸"; } details.layer[open] summary::before { content: "▾"; }
details.layer summary .number { margin-left: auto; } details.layer > div, details.layer > p { margin: .4rem 0 .8rem; }
.bar { display: inline-block; height: .7rem; min-width: 1px; background: var(--bar); vertical-align: middle; }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem; }
.views figure { margin: 0; min-width: 0; } .views img { max-width: 100%; height: auto; image-rendering: pixelated; }
.views .pair { display: flex; flex-wrap: wrap; gap: .6rem; } .views .pair > div { flex: 0 1 auto; max-width: 100%; }
.views.fields .pair { flex-wrap: nowrap; } .views.fields .pair > div { flex: 0 1 12rem; min-width: 0; }
.views figcaption, .views .pair span { font-size: .9rem; } .views .pair span { display: block; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  details.layer summary::before { content: none; } summary { list-style: none; font-weight: 600; }
  .wide { overflow: visible; } .strip { min-width: 0; } figure svg { max-width: 100%; height: auto; }
  .wide code { white-space: normal; overflow-wrap: break-word; } .wide .long { min-width: 0; }
  .wide tr > :first-child { position: static; } tr, figure, .facts li { break-inside: avoid; }
}
"""
