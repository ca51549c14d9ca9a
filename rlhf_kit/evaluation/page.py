"""The report's page: its style, its small script, and the shell round its sections. No part of it is fetched.

The script only shows values under the pointer. The content security policy names its hash, so that no other script can
run in the page, whatever text a model wrote into it.
"""

from __future__ import annotations

import base64
import hashlib
import html

STYLE = """
:root{color-scheme:light dark;--bg:#f6f6f3;--card:#fff;--ink:#1b1d22;--soft:#5d626d;--faint:#6f7480;--line:#e4e4df;
  --grid:#ececec;--c1:#2f62d9;--c2:#c07a08;--c3:#0f8a78;--c4:#8a4fd0;--good:#16794c;--goodbg:#e8f4ec;--bad:#b3372b;
  --badbg:#fbecea;--tint:#edf2fe;--track:#e0e1e5;--shadow:0 1px 2px rgba(20,22,30,.05),0 4px 14px rgba(20,22,30,.04)}
@media (prefers-color-scheme:dark){:root{--bg:#121317;--card:#1b1d23;--ink:#e9eaee;--soft:#a6abb8;--faint:#8d92a1;
  --line:#2c2f38;--grid:#272a32;--c1:#7ea6ff;--c2:#e8b04a;--c3:#55cbb4;--c4:#c19bff;--good:#6fd3a0;--goodbg:#17291f;
  --bad:#ff9184;--badbg:#32201f;--tint:#1d2536;--track:#343844;--shadow:none}
}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif}
main{max-width:1200px;margin:0 auto;padding:44px 28px 64px}
h1,h2,h3,h4,p,figure,dl,dd,ul{margin:0}
.eyebrow{font-size:12px;letter-spacing:.09em;text-transform:uppercase;color:var(--faint);font-weight:600}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:6px 0 12px;overflow-wrap:anywhere}
.verdict{font-size:18px;line-height:1.5;max-width:62ch;color:var(--ink)}
h2{font-size:21px;letter-spacing:-.01em;margin:52px 0 4px;line-height:1.25}
h2 small{font-size:14px;font-weight:400;color:var(--soft);letter-spacing:0;margin-left:8px}
.lead{color:var(--soft);max-width:76ch;margin-bottom:16px}
.grid{display:grid;gap:16px;margin-top:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px;box-shadow:var(--shadow);
  min-width:0}
.grid>.group{grid-column:1/-1;font-size:15px;font-weight:600;color:var(--soft);margin:10px 0 -6px}
.grid>.group:first-child{margin-top:0}
.grid.fill{grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.grid.fill>:only-child{max-width:560px}
.tiles{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(172px,1fr));margin:26px 0 14px}
.tile{padding:15px 15px 16px}
.tile .label{font-size:13px;color:var(--soft);font-weight:500}
.tile .value{font-size:clamp(21px,2.3vw,28px);white-space:nowrap;line-height:1.2;font-weight:650;letter-spacing:-.02em;
  margin-top:2px;font-variant-numeric:tabular-nums}
.tile .value small{font-size:14px;font-weight:500;color:var(--soft);letter-spacing:0;margin-left:4px}
.tile .value.alarm{color:var(--bad)}
.tile .sub{font-size:12.5px;color:var(--soft);line-height:1.4;margin-top:4px}
.strip{display:block;width:100%;height:16px;margin:6px 0 2px}
.strip line{vector-effect:non-scaling-stroke}
.track{stroke:var(--track);stroke-width:5}
.range{stroke:var(--c1);stroke-width:5;opacity:.45}
.point{stroke:var(--c1);stroke-width:3}
.tickmark{stroke:var(--faint);stroke-width:1}
.health{padding:4px 18px}
.health details,.health .note{border-top:1px solid var(--line);padding:11px 0;font-size:14px}
.health>:first-child{border-top:0}
.note{display:flex;gap:10px;align-items:flex-start}
.note b{font-weight:600}
.note span.text{color:var(--soft)}
.flag{flex:none;display:inline-grid;place-items:center;width:20px;height:20px;border-radius:50%;font-size:12px;
  font-weight:700;line-height:1;margin-top:1px}
.flag.ok{background:var(--goodbg);color:var(--good)}
.flag.no{background:var(--badbg);color:var(--bad)}
.health summary{display:flex;gap:10px;align-items:center;cursor:pointer;list-style:none}
.health summary::-webkit-details-marker{display:none}
.health summary::after{content:"show";color:var(--faint);font-size:13px;margin-left:auto}
.health details[open] summary::after{content:"hide"}
.health details .note{border:0;padding:7px 0 0 2px}
.stages{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));margin-top:14px;padding:0;overflow:hidden}
.stage{display:flex;flex-direction:column;border-top:1px solid var(--line);margin-top:-1px;
  padding:15px 18px 16px;border-left:1px solid var(--line);margin-left:-1px;text-decoration:none;color:inherit;min-width:0}
a.stage:hover{background:var(--tint)}
.stage .n{font-size:12px;color:var(--faint);font-weight:600}
.stage .name{font-weight:600;line-height:1.3}
.stage .result{font-size:13px;color:var(--soft);line-height:1.4;margin-top:2px}
.stage .time{font-variant-numeric:tabular-nums;font-size:13px;margin-top:auto;padding-top:9px;white-space:nowrap}
.meter{margin-top:4px;height:5px;border-radius:3px;background:var(--track);overflow:hidden}
.meter i{display:block;height:100%;background:var(--c1);border-radius:3px}
figure.card{display:flex;flex-direction:column;padding:14px 16px 13px}
h3{font-size:14.5px;font-weight:600;line-height:1.35}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft);margin:1px 0 6px;
  font-variant-numeric:tabular-nums}
.legend b{color:var(--ink);font-weight:600;margin-left:3px}
.legend i{display:inline-block;width:12px;height:3px;border-radius:2px;margin-right:5px;vertical-align:middle;
  background:var(--k)}
.k1{--k:var(--c1)}
.k2{--k:var(--c2)}
.k3{--k:var(--c3)}
.k4{--k:var(--c4)}
.k0{--k:var(--faint)}
.caption{font-size:12.5px;line-height:1.45;color:var(--soft);margin-top:7px}
svg.chart{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
.chart .grid{display:inline;margin:0;stroke:var(--grid);stroke-width:1}
.chart text{font-size:10.5px;fill:var(--faint);font-variant-numeric:tabular-nums}
.chart .note{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.chart .axis,.chart .note{font-size:10.5px;fill:var(--soft)}
.line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
.line.raw{stroke-width:1;opacity:.28}
.dashed{stroke-dasharray:5 4}
.verdict b{font-weight:650}
.line.c1{stroke:var(--c1)}
.line.c2{stroke:var(--c2)}
.line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)}
.dots.c1{fill:var(--c1)}
.dots.c2{fill:var(--c2)}
.dots.c3{fill:var(--c3)}
.dots.c4{fill:var(--c4)}
.band{fill:var(--good);opacity:.1}
.rule{stroke:var(--faint);stroke-width:1;stroke-dasharray:3 3}
.error{stroke:var(--c1);stroke-width:1.2;opacity:.45}
.cursor{stroke:var(--faint);stroke-width:1}
.hot{stroke:var(--card);stroke-width:1.5}
.hot.c1{fill:var(--c1)}
.hot.c2{fill:var(--c2)}
.hot.c3{fill:var(--c3)}
.hot.c4{fill:var(--c4)}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:7px;padding:6px 10px;
  font-size:12px;line-height:1.45;font-variant-numeric:tabular-nums;white-space:nowrap;display:none}
.split{display:flex;height:26px;border-radius:6px;overflow:hidden;margin:4px 0 3px;font-size:12px;font-weight:600;color:#fff;
  gap:2px}
.split div{display:grid;place-items:center;min-width:0;overflow:hidden;white-space:nowrap}
.split .win{background:var(--c1)}
.split .tie{background:var(--faint)}
.split .loss{background:var(--track);color:var(--ink)}
@media (prefers-color-scheme:dark){.split{color:#10131a}
}
.row{margin-top:13px}
.row:first-of-type{margin-top:8px}
.row .head{display:flex;justify-content:space-between;gap:10px;font-size:13.5px}
.row .head span{font-size:12.5px;white-space:nowrap;color:var(--soft);font-variant-numeric:tabular-nums;text-align:right}
.pair{display:grid;grid-template-columns:minmax(90px,34%) 1fr 62px;gap:3px 12px;align-items:center;font-size:13.5px;
  margin-top:11px}
.pair .what{grid-row:span 2;line-height:1.3;overflow-wrap:anywhere}
.pair .num{font-variant-numeric:tabular-nums;font-size:12.5px;text-align:right;color:var(--soft)}
.pair .num.after{color:var(--ink);font-weight:600}
.bar{height:9px;border-radius:3px;background:var(--track)}
.bar i{display:block;height:100%;border-radius:3px;background:var(--faint)}
.dense .pair{margin-top:6px;gap:1px 12px;font-size:12.5px}
.dense .bar{height:6px}
.dense .num{font-size:11.5px;line-height:1.35}
.bar.after i{background:var(--c1)}
.samples{display:grid;gap:16px}
.sample{padding:0;overflow:hidden}
.prompt{padding:14px 18px;border-bottom:1px solid var(--line);font-weight:550;white-space:pre-wrap;overflow-wrap:anywhere;
  display:flex;gap:12px}
.prompt .n{color:var(--faint);font-weight:500;font-variant-numeric:tabular-nums}
.answers{display:grid;grid-template-columns:1fr 1fr}
.answer{padding:13px 18px 14px;min-width:0;display:flex;flex-direction:column;border-top:3px solid transparent}
.answer+.answer{border-left:1px solid var(--line)}
.answer.best{border-top-color:var(--c1);background:var(--tint)}
.who{font-size:12px;font-weight:600;color:var(--soft);display:flex;align-items:center;gap:8px;min-height:22px}
.pill{border-radius:10px;padding:1px 9px;font-size:11.5px;font-weight:600;background:var(--c1);color:var(--card)}
.pill.quiet{background:var(--track);color:var(--soft)}
.said{white-space:pre-wrap;overflow-wrap:anywhere;margin:5px 0 11px;max-height:320px;overflow:auto;font-size:14.5px}
.said.none{color:var(--faint);font-style:italic}
.scores{margin-top:auto;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:12.5px;color:var(--soft);
  font-variant-numeric:tabular-nums}
.scores b{color:var(--ink);font-weight:600}
details.more{margin-top:16px}
details.more>summary,details.config>summary{cursor:pointer;font-weight:550;font-size:14.5px}
details.more>summary{color:var(--c1);margin-bottom:14px}
details.config{margin-top:10px;padding:12px 18px}
.config dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:0 28px;margin-top:10px;
  font-size:13px}
.config dl div{display:flex;justify-content:space-between;gap:14px;border-top:1px solid var(--line);padding:4px 0;min-width:0}
.config dt{color:var(--soft);flex:none}
.config dd{text-align:right;overflow-wrap:anywhere;min-width:0;
  font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12.5px}
footer{margin-top:48px;color:var(--faint);font-size:12.5px}
a.stage:focus-visible,summary:focus-visible{outline:2px solid var(--c1);outline-offset:3px;border-radius:4px}
@media (max-width:640px){main{padding:26px 16px 44px}
h1{font-size:27px}
.verdict{font-size:16.5px}
h2{margin-top:40px}
h2 small{display:block;margin:2px 0 0}
.tiles{grid-template-columns:1fr 1fr;gap:10px}
.tile{padding:12px 14px}
.tile:first-child:nth-last-child(odd){grid-column:1/-1}
.tile .value{font-size:24px}
.tile .value small{display:block;margin:0;font-size:12px}
.answers{grid-template-columns:1fr}
.answer+.answer{border-left:0;border-top:1px solid var(--line)}
.answer.best{border-top:3px solid var(--c1)}
.stages{grid-template-columns:1fr}
.stage{border-left:0;margin:0;border-top:1px solid var(--line)}
.stage:first-child{border-top:0}
}
@media print{body{background:#fff}
.card{box-shadow:none;break-inside:avoid}
main{padding:0}
#tip{display:none}
}
"""

SCRIPT = """
(function(){
var tip=document.createElement("div");tip.id="tip";document.body.appendChild(tip);
var NS="http://www.w3.org/2000/svg";
function make(name,cls){var e=document.createElementNS(NS,name);e.setAttribute("class",cls);return e}
document.querySelectorAll("svg.chart").forEach(function(svg){
  var series=JSON.parse(svg.dataset.series||"[]"),marks=[];
  function clear(){marks.forEach(function(m){m.remove()});marks=[];tip.style.display="none"}
  svg.addEventListener("pointerleave",clear);
  svg.addEventListener("pointermove",function(event){
    clear();
    var box=svg.getBoundingClientRect(),view=svg.viewBox.baseVal;
    var x=(event.clientX-box.left)/box.width*view.width,lines=[],nearest=null;
    series.forEach(function(s){
      var best=0;s.x.forEach(function(v,i){if(Math.abs(v-x)<Math.abs(s.x[best]-x))best=i});
      if(nearest===null||Math.abs(s.x[best]-x)<Math.abs(nearest.x-x))nearest={x:s.x[best],at:s.at[best]};
      var dot=make("circle","hot c"+s.c);
      dot.setAttribute("cx",s.x[best]);dot.setAttribute("cy",Math.max(2,s.y[best]));dot.setAttribute("r",4);
      svg.appendChild(dot);marks.push(dot);lines.push(s.label+"  "+s.value[best]);
    });
    if(!nearest)return;
    tip.textContent="";
    [nearest.at].concat(lines).forEach(function(text,i){
      var row=document.createElement("div");row.textContent=text;if(!i)row.style.opacity=.7;tip.appendChild(row);
    });
    tip.style.display="block";
    var left=event.clientX+14;if(left+tip.offsetWidth>innerWidth-8)left=event.clientX-14-tip.offsetWidth;
    tip.style.left=left+"px";tip.style.top=(event.clientY+14)+"px";
  });
});
})();
"""


def page(title: str, body: str) -> str:
    """One self-contained HTML document round `body` (HTML); `title` is plain text."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )
