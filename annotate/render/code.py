"""Fenced code with its highlighting, as spans whose classes the stylesheet colours for light and dark."""

from __future__ import annotations

import re

from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

from annotate.render.text import escape

MAX_HIGHLIGHTED = 20_000  # characters; longer code is shown plain

# Only these are loaded: some of the hundreds of lexers take time quadratic in their input.
LANGUAGES = re.compile(
    r"python|py|python3|py3|pycon|bash|sh|shell|console|zsh|javascript|js|typescript|ts|jsx|tsx|java|kotlin|scala|c|cpp|c\+\+|"
    r"csharp|c#|cs|go|golang|rust|rs|ruby|rb|php|perl|swift|r|julia|matlab|lua|haskell|hs|sql|html|xml|css|scss|json|jsonl|yaml|"
    r"yml|toml|ini|diff|dockerfile|docker|make|makefile|cmake|latex|tex|powershell|ps1|elixir|erlang|clojure|lisp|scheme|ocaml|dart"
)


def render_code(code: str, language: str) -> str:
    """HTML of the code's characters, all of them and in order; plain when the language is unknown or the code very long."""
    name = language.lower()
    if not LANGUAGES.fullmatch(name) or len(code) > MAX_HIGHLIGHTED:
        return escape(code)
    tokens = list(get_lexer_by_name(name, stripnl=False, ensurenl=False).get_tokens(code))
    if "".join(value for _, value in tokens) != code:
        return escape(code)
    return "".join(_span(str(STANDARD_TYPES.get(kind, "")), value) for kind, value in tokens)


def _span(name: str, value: str) -> str:
    return f'<span class="md-{name}">{escape(value)}</span>' if name and not value.isspace() else escape(value)
