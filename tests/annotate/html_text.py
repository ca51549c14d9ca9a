"""What a browser's `textContent` would give for rendered HTML, with a formula counted by its TeX annotation."""

from __future__ import annotations

from html.parser import HTMLParser

from annotate.render import MARKUP, displayable


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._formula, self._annotation, self._note = False, False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self._formula |= tag == "math"
        self._annotation |= tag == "annotation"
        self._note |= ("class", "md-note") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._formula &= tag != "math"
        self._annotation &= tag != "annotation"
        self._note &= tag != "p"

    def handle_data(self, data: str) -> None:
        if not self._note and (self._annotation or not self._formula):
            self.parts.append(data)


def parse(html: str) -> _Text:
    parser = _Text()
    parser.feed(html)
    parser.close()
    return parser


def text_of(html: str) -> str:
    return "".join(parse(html).parts)


def kept(text: str) -> str:
    """The characters that no rendering may lose: all but white space and what Markdown consumes."""
    return "".join(c for c in displayable(text) if not c.isspace() and c not in MARKUP)
