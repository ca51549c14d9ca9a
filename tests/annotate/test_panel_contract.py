"""What goes into the panel and what is accepted from it."""

import json

import pytest

from annotate.app.panel import Event, PanelTask, Progress, panel_parts, panel_value, read_event
from rlhf_kit.errors import InputError

SAID = {"event_id": "e1", "kind": "preference", "assignment": "a1", "revision": 1}


def test_an_event_is_read_field_by_field():
    sent = SAID | {"strength": -2, "aspects": {"helpful": 1}, "flags": ["unsafe"], "edits": {"1": "better"}, "visible_ms": 812}
    event = read_event(json.loads(json.dumps(sent)))
    expected = Event(
        "e1", "preference", "a1", 1, strength=-2, aspects={"helpful": 1}, flags=("unsafe",), edits={1: "better"}, visible_ms=812
    )
    assert event == expected


def test_a_negative_strength_is_for_the_first_answer_and_positive_for_the_store():
    event = read_event(SAID | {"strength": -3, "aspects": {"helpful": 2}})
    assert (event.first_better, event.aspects_first_better) == (3, {"helpful": -2})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"kind": "love"}, {"kind": None}, {"strength": 1.5}, {"strength": True}, {"strength": "1"}, {"flags": "unsafe"}),
        *({"aspects": {"a": "1"}}, {"edits": {"x": "t"}}, {"edits": {"0": 1}}, {"ranking": [1, "2"]}, {"visible_ms": None}),
        *({"assignment": 3}, {"event_id": None}, {"role": "admin"}, {"flags": [1]}, {"justification": None}),
    ],
)
def test_an_event_with_a_wrong_field_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"event.*{next(iter(wrong))}"):
        read_event(SAID | wrong)


@pytest.mark.parametrize("missing", SAID)
def test_an_event_without_its_identity_is_refused(missing):
    with pytest.raises(InputError, match=f"event.{missing}"):
        read_event({key: value for key, value in SAID.items() if key != missing})
    with pytest.raises(InputError):
        read_event(None)


def test_the_value_is_plain_json_and_holds_model_text_as_safe_html_only():
    task = PanelTask("a1", 1, [{"role": "user", "content": "<script>q</script>"}], ["<img src=x>", "b"], aspects=["helpful"])
    value = json.loads(json.dumps(panel_value(task, Progress(1, 2), guidelines="# <b>", reply_to="e1")))
    assert (value["mode"], value["view"], value["reply_to"]) == ("pair", "task", "e1")
    assert not any(tag in json.dumps(value) for tag in ("<script", "<img", "<b>"))


def test_three_answers_make_a_ranking_and_one_or_ten_are_refused():
    messages = [{"role": "user", "content": "q"}]
    assert panel_value(PanelTask("a", 1, messages, ["x", "y", "z"]), Progress())["mode"] == "rank"
    for count in (0, 1, 10):
        with pytest.raises(InputError, match="responses"):
            panel_value(PanelTask("a", 1, messages, ["x"] * count), Progress())


def test_the_parts_survive_the_templates_of_gradio():
    """Gradio reads template and style as Handlebars, then as a template string: neither may find anything in them."""
    parts = panel_parts()
    for text in (parts["html_template"], parts["css_template"]):
        assert not any(mark in text for mark in ("`", "${", "{{", "\\", "@children", "url(", "@import", "http"))
    assert "'judge'" in parts["js_on_load"]  # Gradio offers `panel.judge` because it finds this name
    assert not any(mark in parts["js_on_load"] for mark in ("fetch(", "XMLHttpRequest", "http:", "https:", "eval("))
