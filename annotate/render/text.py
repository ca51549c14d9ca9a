"""Model text as HTML text: escaped, with every character that a reader could not see made visible.

A bidirectional override or a zero-width character changes what is read without being seen, so an answer could look like
another one. Each such character stays in the document (copying gives the true text), inside an isolating element whose label
the stylesheet draws.
"""

from __future__ import annotations

import html
import re
import unicodedata
from itertools import groupby

# Controls, soft hyphen and other default-ignorable characters, line and paragraph separators, bidi controls, fillers, tags.
_HIDDEN_RUN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+|\r(?!\n)"
)
_JOINERS = "\u200c\u200d"
_VARIATION_SELECTORS = frozenset([*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))])


def displayable(text: str) -> str:
    """Text without the two kinds of code point that no HTML document can hold: NUL (shown as ␀) and lone surrogates (as �)."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("\0", "\u2400")


def escape(text: str) -> str:
    """Safe HTML text whose `textContent` is exactly `displayable(text)`; hidden characters are wrapped in `<bdi data-code>`."""
    parts, end = [], 0
    text = displayable(text)
    for match in _HIDDEN_RUN.finditer(text):
        if not _belongs_to_its_script(text, match):
            parts += [html.escape(text[end : match.start()]), _mark(match[0])]
            end = match.end()
    parts.append(html.escape(text[end:]))
    return "".join(parts).replace("\r", "&#13;")  # a bare CR would become a line feed when the browser parses it


def has_hidden(text: str) -> bool:
    """Whether the text holds a character that a reader would not see."""
    return any(not _belongs_to_its_script(text, match) for match in _HIDDEN_RUN.finditer(text))


def _belongs_to_its_script(text: str, match: re.Match[str]) -> bool:
    """Whether this is one joiner or variation selector where emoji and scripts need it: marking it would break the writing."""
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    if match[0] in _VARIATION_SELECTORS:
        return before in "#*0123456789" or unicodedata.category(before) in ("Lo", "So", "Sm", "Po") if before else False
    if len(match[0]) == 2 and match[0][0] in _VARIATION_SELECTORS and match[0][1] in _JOINERS:
        return before > "\u02ff" and after > "\u02ff"
    return match[0] in tuple(_JOINERS) and before > "\u02ff" and after > "\u02ff"


def _mark(run: str) -> str:
    marks = []
    for character, same in groupby(run):
        count = len(list(same))
        label = f"U+{ord(character):04X}" + (f" ×{count}" if count > 1 else "")
        marks.append(f'<bdi class="md-hidden" data-code="{label}">{character * count}</bdi>')
    return "".join(marks)
