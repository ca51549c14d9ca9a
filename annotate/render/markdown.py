"""Markdown to HTML made only of elements and classes written here: the model's text is never anything but text.

Off, because they would run, load, lead away or hide characters: HTML, images, character references, reference definitions,
automatic links. A link shows its target beside its text and leads nowhere. Nesting beyond `MAX_DEPTH` is shown as its source;
a text that takes more than its budget of parser steps raises `TooCostly`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.table import escapedSplit, table
from markdown_it.rules_inline import StateInline, link
from markdown_it.token import Token

from annotate.render.code import render_code
from annotate.render.maths import MAX_FORMULAS, add_maths, render_formula
from annotate.render.text import displayable, escape

MAX_DEPTH = 24  # of quotes and lists
MAX_LABEL = 1_000  # characters of a link's text: each bracket in a long run would look through all that follow
STEPS_PER_CHARACTER = 8


class TooCostly(Exception):
    """The text makes the parser work out of proportion to its length."""


def render_markdown(text: str) -> str:
    """HTML of the text.

    Raises:
        TooCostly: when parsing takes more than `STEPS_PER_CHARACTER` steps a character.
    """
    env = {"steps": 1_000 + STEPS_PER_CHARACTER * len(text), "formulas": MAX_FORMULAS}
    return str(_parser().render(displayable(text), env))


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return True  # nothing is ever followed, so every target may be shown

    def normalizeLink(self, url: str) -> str:
        return url


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    # The library drops whatever lies deeper than its own limit, so ours comes first.
    parser = _Parser("commonmark", {"html": False, "breaks": True, "maxNesting": 4 * MAX_DEPTH}, renderer_cls=_Renderer)
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "image", "entity", "reference", "autolink"])
    add_maths(parser)
    parser.block.ruler.at("table", _whole_table, {"alt": ["paragraph"]})
    parser.block.ruler.before("table", "limits", _limit_block)
    parser.inline.ruler.at("link", _inert_link)
    parser.inline.ruler.before("text", "limits", _limit_inline)
    return parser


def _spend(env: Any, steps: int = 1) -> None:
    env["steps"] -= steps
    if env["steps"] < 0:
        raise TooCostly


def _limit_inline(state: StateInline, silent: bool) -> bool:
    _spend(state.env)
    return False


def _limit_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    _spend(state.env)
    if state.level < MAX_DEPTH:
        return False
    token = state.push("source_block", "pre", 0)
    token.block, token.content = True, state.getLines(start, end, state.blkIndent, False)
    state.line = end
    return True


def _whole_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table, unless a row has more cells than the head: the library would drop them, so that is shown as a paragraph."""
    before, parent = len(state.tokens), state.parentType
    if not table(state, start, end, silent):
        return False
    if silent:
        return True
    columns = sum(token.type == "th_open" for token in state.tokens[before:])
    rows = (state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]] for line in range(start, state.line))
    if all(len(escapedSplit(row.strip().removeprefix("|").removesuffix("|"))) <= columns for row in rows):
        return True
    del state.tokens[before:]
    state.line, state.parentType = start, parent
    return False


def _inert_link(state: StateInline, silent: bool) -> bool:
    start = state.pos
    if state.src[start] != "[" or state.src.find("](", start, start + MAX_LABEL) < 0:
        return False
    _spend(state.env, 40)  # what looking for the end of a label may cost
    if not link(state, silent):
        return False
    if not silent:
        end, state.pos = state.pos, start
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        state.pos = end
        state.tokens[-1].content = state.src[label_end + 1 : end]  # the target as it was written, brackets and title included
    return True


class _Renderer(RendererHTML):
    """One method a token type; the base class renders the rest (paragraphs, emphasis, quotes, rules) without attributes."""

    def text(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return escape(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<code>{escape(tokens[idx].content)}</code>"

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _pre(escape(tokens[idx].content))

    def source_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _pre(escape(tokens[idx].content))

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        info = tokens[idx].info.strip()
        caption = f'<div class="md-language">{escape(info)}</div>' if info else ""
        code = _pre(render_code(tokens[idx].content, info.split(maxsplit=1)[0] if info else ""))
        return f'<div class="md-code">{caption}{code}</div>\n'

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<span class="md-link">'

    def link_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f'</span><span class="md-target">{escape(tokens[idx].content)}</span>'

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        level = int(tokens[idx].tag[1])  # the page's own headings are h1 to h3
        return f'<h{min(level + 3, 6)} class="md-h{level}">'

    def heading_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"</h{min(int(tokens[idx].tag[1]) + 3, 6)}>\n"

    def ordered_list_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "<ol>\n"

    def list_item_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A number is shown as it was written: Markdown would renumber, and the model's own count is part of its answer."""
        token = tokens[idx]
        return f'<li><span class="md-marker">{escape(token.info + token.markup)}</span><div>' if token.info else "<li>"

    def list_item_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</div></li>\n" if tokens[idx].markup in (".", ")") else "</li>\n"

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="md-table"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _cell(tokens[idx])

    def td_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _cell(tokens[idx])

    def math_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        source = tokens[idx].content
        return self._formula(source, env, display=source.startswith(("$$", "\\[")))

    def math_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f'<div class="md-maths">{self._formula(tokens[idx].content, env, display=True)}</div>\n'

    @staticmethod
    def _formula(source: str, env: Any, *, display: bool) -> str:
        env["formulas"] -= 1
        return (
            render_formula(source, display=display) if env["formulas"] >= 0 else f'<code class="md-tex">{escape(source)}</code>'
        )


def _pre(code: str) -> str:
    return f"<pre>\n{code}</pre>"  # a browser drops the first line feed in <pre>; this one is ours


def _cell(token: Token) -> str:
    alignment = str(token.attrs.get("style", "")).removeprefix("text-align:")
    return f'<{token.tag} class="md-{alignment}">' if alignment else f"<{token.tag}>"
