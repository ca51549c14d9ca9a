"""What a person sees of a model's text is the text: all of it, laid out, and nothing but text."""

import random
import subprocess
import sys
import time

import pytest

from annotate.render import LIMIT, displayable, raw_view, render_messages, render_response, stylesheet
from rlhf_kit.errors import InputError
from tests.annotate.hostile_text import hostile_texts
from tests.annotate.html_text import kept, parse, text_of

_ALPHABET = [
    *"ab1 *_`~#>-+.|:$[]()<>!\\&;\"'{}=^\n\n\t\r\0é\xad\x1b\u200b\u202e\u2028\ufeff\ud800",
    *(
        "\n    ",
        "```",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "](",
        "1. ",
        "- ",
        "|-|-|\n",
        "|a|b|\n",
        "&#65;",
        "\\frac{a}{b}",
        "\\text{x}",
    ),
]


def test_no_character_is_lost_in_any_random_mixture_of_markup():
    rng = random.Random(0)
    for _ in range(4_000):
        text = "".join(rng.choices(_ALPHABET, k=rng.randint(1, 40)))
        assert kept(text_of(render_response(text))) == kept(text)
        assert text_of(raw_view(text)) == "\n" + displayable(text)  # the browser drops the line feed that opens a <pre>


def test_no_character_is_lost_and_only_known_elements_come_out_of_hostile_text():
    for text in hostile_texts(2_000, seed=1):
        rendered = parse(render_response(text))
        assert kept("".join(rendered.parts)) == kept(text)
        assert rendered.attributes <= {
            "class",
            "data-code",
            "role",
            "display",
            "encoding",
            "stretchy",
            "fence",
            "form",
            "columnalign",
        }
        assert not rendered.tags & {
            "a",
            "img",
            "script",
            "style",
            "svg",
            "iframe",
            "form",
            "input",
            "button",
            "object",
            "link",
            "meta",
        }


@pytest.mark.parametrize(
    "text", ["vector<int> v;", "a<b and c>d", "<think>why</think>", "&lt; &amp; &copy;", "a_b_c", "<!-- note -->"]
)
def test_text_that_looks_like_html_is_shown_as_it_was_written(text):
    assert text_of(render_response(text)).strip() == text


@pytest.mark.parametrize(
    "text", ["I paid $5 and $10", "$5. You owe me 10$.", "US$10 or A$12", "from $5-$10", "it is \\$x\\$", "$ x $", "5$ and 6$"]
)
def test_money_is_not_maths(text):
    assert "<math" not in render_response(text)


@pytest.mark.parametrize(
    ("text", "display"),
    [("$x$ is 5", False), ("so \\(x\\)", False), ("$$x$$", True), ("a\n\\[\nx\n= y\n\\]\nb", True), ("- $$\n  x\n  $$", True)],
)
def test_every_maths_delimiter_gives_mathml(text, display):
    html = render_response(text)
    assert ('<math display="block">' in html) is display
    assert "<mi>x</mi>" in html


@pytest.mark.parametrize(
    "tex",
    [
        *("a^b^c", "\\frac{1}", "\\unknowncommand x", "\\phantom{hidden}", "\\color{white}x", "\\href{u}{x}"),
        *("\\newcommand{\\a}{b}\\a", "{" * 400, "x^{" * 20 + "2" + "}" * 20, "a\u202eb"),
    ],
)
def test_maths_that_is_invalid_or_hides_something_is_shown_as_its_source(tex):
    html = render_response(f"${tex}$")
    assert '<code class="md-tex">$' in html
    assert "<math" not in html


def test_markup_inside_maths_stays_text():
    html = render_response(r"$\text{<script>alert(1)</script>} &lt;b&gt;$ and $\text{&lt;b>}$")
    assert "<script" not in html
    assert "<b" not in html


def test_a_link_shows_its_target_and_leads_nowhere():
    html = render_response('[docs](https://example.org/a_b "title")')
    assert text_of(html).strip() == 'docs(https://example.org/a_b "title")'
    assert "href" not in html


def test_numbers_of_a_list_are_those_the_model_wrote():
    assert text_of(render_response("2. a\n2. b\n9. c")).split() == ["2.a", "2.b", "9.c"]


def test_a_table_whose_rows_are_longer_than_its_head_is_not_cut():
    assert "<table>" in render_response("|a|b|\n|-|-|\n|1|2|")
    assert "3" in text_of(render_response("|a|b|\n|-|-|\n|1|2|3|"))


def test_code_is_highlighted_and_kept_to_the_last_space():
    code = "\n\ndef f(x):\n\treturn x  # <b>\n\n"
    html = render_response(f"```python\n{code}```")
    assert '<span class="md-k">def</span>' in html
    assert text_of(html) == "python\n" + code + "\n"


def test_hidden_characters_get_a_label_and_writing_that_needs_them_does_not():
    assert 'data-code="U+202E"' in render_response("a\u202eb")
    assert 'data-code="U+200B ×3"' in raw_view("a\u200b\u200b\u200bb")
    assert "data-code" not in render_response("👩‍👩‍👧 ❤️ क्‍ष 1️⃣ می‌خواهم")


def test_a_long_text_is_cut_with_a_notice_and_the_raw_view_has_it_all():
    text = "word " * LIMIT
    html = render_response(text)
    assert f"of {len(text):,} characters" in html
    assert len(html) < 2 * LIMIT
    assert text_of(raw_view(text)) == "\n" + text


def test_nesting_beyond_the_limit_is_shown_as_its_source():
    for text in (">" * 200 + " deep", "- " * 200 + "deep", "> - " * 100 + "deep", "1. " * 200 + "deep"):
        assert kept(text_of(render_response(text))) == kept(text)


_TANGLES = [
    *("[", "![", "[[](", "[]]](", "*", "*a _", "`", "``a`", ">", "> ", "- ", "1. ", "$", "$x", "\\(", "\\[x ", "$$\n", "|", "\\"),
    *("|a|b\n|-|-\n", "<a ", "&", "~~a", "# a\n", "a\n=\n", "```\n", '```python\n"""\n', "\u202e\u200b", "> a\n>> b\n"),
    *("1. a\n   - b\n", "$a^2$ ", "$$\\frac{a}{b}$$ ", "```html\n<a <a", "\t", "\n", "a" * 99 + "@", "_*"),
]


@pytest.mark.parametrize("unit", _TANGLES)
def test_a_hundred_kilobytes_of_tangled_markup_take_seconds_at_most(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    html = render_response(text)
    assert time.process_time() - start < 5  # about 1 s at worst on an idle core; a quadratic parser takes minutes
    assert "md-note" in html


def test_a_conversation_names_its_turns():
    html = render_messages([{"role": "user", "content": "**hi**"}, {"role": "<b>", "content": "x"}])
    assert (
        '<section class="md-turn md-turn-user"><div class="md-role">User</div><div class="md"><p><strong>hi</strong></p>' in html
    )
    assert "&lt;b&gt;" in html


@pytest.mark.parametrize(
    "bad", [[{"role": "user"}], [{"role": 1, "content": "x"}], ["hello"], [{"role": "user", "content": None}]]
)
def test_a_malformed_message_is_named(bad):
    with pytest.raises(InputError, match=r"messages\[0\]"):
        render_messages(bad)


def test_the_stylesheet_loads_nothing():
    assert "url(" not in stylesheet()
    assert "@import" not in stylesheet()


def test_rendering_needs_neither_torch_nor_gradio():
    code = "import sys, annotate.render as r; r.render_response('x'); sys.exit(bool({'torch', 'gradio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
