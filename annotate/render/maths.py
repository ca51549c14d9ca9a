r"""TeX maths to MathML that cannot carry anything but maths.

The delimiters are those that language models write: `$..$`, `$$..$$`, `\(..\)`, `\[..\]`. The rules are our own because the
dollarmath plugin knows the dollar alone, and reads `$5. You owe me 10$` as a formula. A formula that is invalid, that hides
something, or whose letters and digits do not all come through is shown as its source.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from annotate.render.text import escape, has_hidden

MAX_FORMULA = 2_000  # characters
MAX_FORMULAS = 300  # a text; converting one takes about a millisecond

_INLINE = re.compile(
    rf"""\$\$(?P<double>[^$]{{1,{MAX_FORMULA}}}?)\$\$
    | \$(?![\s$])(?P<dollar>(?:\\.|[^$\\]){{1,{MAX_FORMULA}}}?)(?<!\s)\$(?![\d$])
    | \\\((?P<paren>.{{1,{MAX_FORMULA}}}?)\\\)
    | \\\[(?P<bracket>.{{1,{MAX_FORMULA}}}?)\\\]""",
    re.DOTALL | re.VERBOSE,
)
_MONEY = re.compile(r"\d[^\\^_={}]*[A-Za-z]{2}[^\\^_={}]*")
_REFUSED = re.compile(  # definitions expand without bound; phantoms and laps hide; links and colours are not maths
    r"\\(?:(?:re)?new(?:command|environment)|providecommand|def|let|href|url|style|class|cssId|\w*color\w*|[hv]?phantom|"
    r"[lrc]lap|smash|rule|unicode)(?![A-Za-z])"
)
_ARGUMENTS = re.compile(  # names and lengths, which are not shown
    r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[lcr|\s]*\})?|\\[hv]space\*?\s*\{[^{}]*\}|\\\\\s*\[[^\]]*\]|\\[A-Za-z]+|\\."
)
_ENVIRONMENT = re.compile(r"(\\(?:begin|end)\s*\{)([a-z]+\*?)\}")
_ENVIRONMENTS = {"aligned": "split", "gathered": "matrix", "gather": "matrix", "gather*": "matrix"}  # those the converter lacks
_SMALLER = {
    "msup": 2,
    "msub": 2,
    "mfrac": 2,
    "mroot": 2,
    "munder": 2,
    "mover": 2,
    "msubsup": 3,
    "munderover": 3,
}  # children each has
_PLAIN = re.compile("m(row|i|n|o|text|space|sqrt|table|tr|td|style|padded|enclose)")
_WORDS = re.compile(  # attributes whose value is a word or a list of words
    "mathvariant|stretchy|fence|separator|form|accent|accentunder|movablelimits|displaystyle|scriptlevel|columnalign|rowalign|"
    "columnlines|rowlines|notation|symmetric|largeop"
)
_LENGTHS = re.compile("width|height|depth|linethickness|minsize|maxsize|rowspacing|columnspacing|lspace|rspace")


def add_maths(parser: MarkdownIt) -> None:
    """Teach the parser the tokens `math_inline` and `math_block`; a token's content is the source with its delimiters."""
    parser.inline.ruler.before("escape", "math_inline", _inline_rule)
    parser.block.ruler.before("fence", "math_block", _block_rule, {"alt": ["paragraph", "blockquote", "list"]})


def _inline_rule(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\" or not (match := _INLINE.match(state.src, state.pos, state.posMax)):
        return False
    if match["dollar"] and (_MONEY.fullmatch(match["dollar"]) or state.src[state.pos - 1 : state.pos].isalnum()):
        return False
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content = match[0]
    state.pos = match.end()
    return True


def _block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Lines from one that begins with `$$` or `\\[` to the first that ends with its partner; no blank line in between."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    opening = first[:2]
    if state.is_code_block(start) or opening not in ("$$", "\\["):
        return False
    closing, line, source = "$$" if opening == "$$" else "\\]", start, first
    while not (source.rstrip().endswith(closing) and len(source.rstrip()) >= 4):
        line += 1
        if line >= end or state.isEmpty(line) or state.sCount[line] < state.blkIndent or closing in source[2:]:
            return False
        source += "\n" + state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
        if len(source) > MAX_FORMULA:
            return False
    if closing in source.rstrip()[2:-2]:
        return False  # two formulas on the line: a paragraph
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block, token.content, token.map = True, source.rstrip(), [start, line + 1]
        state.line = line + 1
    return True


def render_formula(source: str, *, display: bool) -> str:
    """MathML of one formula given with its delimiters; its source as code when it cannot be shown whole.

    The source stays beside the MathML as its TeX annotation, which browsers do not draw.
    """
    tex = source.strip("$") if source.startswith("$") else source[2:-2]
    try:
        mathml = None if _REFUSED.search(tex) or has_hidden(tex) else _convert(tex, display=display)
    except Exception:  # the converter raises whatever it stumbles on: its own errors, IndexError, StopIteration, RecursionError
        mathml = None
    if mathml is None:
        return f'<code class="md-tex">{escape(source)}</code>'
    style = ' display="block"' if display else ""
    annotation = f'<annotation encoding="application/x-tex">{escape(source)}</annotation>'
    return f"<math{style}><semantics>{mathml}{annotation}</semantics></math>"


def _convert(tex: str, *, display: bool) -> str | None:
    tex = _ENVIRONMENT.sub(lambda match: match[1] + _ENVIRONMENTS.get(match[2], match[2]) + "}", tex)
    row = Converter(display="block" if display else "inline").convert_to_element(tex)[0]
    wanted = Counter(c for c in unicodedata.normalize("NFKC", _ARGUMENTS.sub(" ", tex)) if c.isalnum())
    shown = Counter(c for c in unicodedata.normalize("NFKC", "".join(map(html.unescape, row.itertext()))) if c.isalnum())
    return None if wanted - shown else _serialise(row, depth=0, shrunk=0)


def _serialise(element: Element, *, depth: int, shrunk: int) -> str:
    shrunk += element.tag in _SMALLER
    known = len(element) == _SMALLER[element.tag] if element.tag in _SMALLER else _PLAIN.fullmatch(element.tag)
    if depth > 60 or shrunk > 8 or not known:
        raise ValueError(
            f"<{element.tag}> of {len(element)} at depth {depth}, shrunk {shrunk} times: unknown, or too small to read"
        )
    attributes = "".join(
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if (_WORDS.fullmatch(name) and re.fullmatch(r"[A-Za-z0-9 -]{1,80}", value))
        or (_LENGTHS.fullmatch(name) and element.tag != "mpadded" and _is_modest(value))
    )
    text = html.unescape(element.text or "")  # the converter writes symbols as character references
    if element.tag == "mi" and ("\\" in text or "&" in text):
        raise ValueError(f"{text} is not understood")
    if element.tag == "mi" and len(text) > 1 and text.isalpha():  # log, sin, ...: a name needs a little room on both sides
        return f'<mo form="prefix" lspace="0.17em" rspace="0.1em">{html.escape(text)}</mo>'
    children = "".join(_serialise(child, depth=depth + 1, shrunk=shrunk) for child in element)
    return f"<{element.tag}{attributes}>{html.escape(text)}{children}</{element.tag}>"


def _is_modest(value: str) -> bool:
    """Whether these lengths move nothing further than a few characters: maths may not be laid over other text."""
    lengths = [re.fullmatch(r"([+-]?\d{0,3}\.?\d{1,6})(em|ex)?", length) for length in value.split()]
    return bool(lengths) and all(length is not None and -0.5 <= float(length[1]) <= 4 for length in lengths)
