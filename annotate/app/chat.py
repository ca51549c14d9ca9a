"""Chat and compare: two answers are written live, nobody says by whom, and the better one goes on with the conversation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from annotate.app.judging import Judging
from annotate.app.panel import PANEL_EVENT, Progress, panel_parts, panel_value, read_event
from annotate.app.people import NO_PROJECT, project_named, whose
from annotate.render import render_messages, render_response
from annotate.store.items import add_live
from annotate.store.protocol import Protocol
from annotate.store.records import NewComparison, NewResponse
from rlhf_kit.errors import InputError

if TYPE_CHECKING:  # torch, for those who chat alone
    from annotate.app.generation import Speakers

LONGEST = 8_000  # characters of a message
START = panel_value(None, Progress(), empty=("Two answers to choose from", "Write a message below: the answers appear here."))
NEXT = ("Go on, or begin anew", "The answer you chose is part of the conversation now.")
AGAIN = ("Nothing was chosen", "Your message is back in the box: send it again for other answers.")


def chat_page(judging: Judging, speakers: Speakers) -> Callable[[gr.Dropdown], None]:
    """What builds the chat page inside its tab."""

    def send(said: str, chat: dict[str, Any], name: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        user, project = whose(request), project_named(judging.database, name)
        said = said.strip()
        if project is None:
            yield gr.skip(), gr.skip(), panel_value(None, Progress(), empty=NO_PROJECT), gr.skip()
            return
        if chat.get("asked"):
            raise gr.Error("Judge the two answers first.", print_exception=False)
        if not 0 < len(said) <= LONGEST:
            raise gr.Error(f"Write 1 to {LONGEST:,} characters.", print_exception=False)
        asked = [*chat["messages"], {"role": "user", "content": said}]
        order = [0, 1]
        secrets.SystemRandom().shuffle(order)  # which model is A; the answers' canonical order is the one on the screen
        texts = ["", ""]
        try:
            for so_far in speakers.answers(order, asked):
                texts = list(so_far)
                yield gr.skip(), conversation(asked, texts), gr.skip(), gr.skip()
            responses = [
                NewResponse(text, speakers.names[i], speakers.checkpoints[i], speakers.sampling) for text, i in zip(texts, order)
            ]
            key = add_live(judging.database, project.id, NewComparison(asked, responses), by=user.id)
        except InputError as error:
            message = "Both models said the same: send it again." if texts[0] == texts[1] else str(error)
            raise gr.Error(message, print_exception=False) from error
        task = Protocol(judging.database, project.id).serve(key, user.id)
        value = judging.value(project, user.id, task) | {"undo": None}
        yield "", conversation([]), value, {"messages": chat["messages"], "asked": asked, "answers": texts, "shown": value}

    def judge(chat: dict[str, Any], name: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        user, project = whose(request), project_named(judging.database, name)
        if project is None or not chat.get("asked"):
            return gr.skip(), START, chat, gr.skip()
        said = read_event(event._data)
        value = judging.judge(project, user.id, "pair", said)
        if value["notice"] and value["notice"]["kind"] == "warning":
            return gr.skip(), chat["shown"] | {"notice": value["notice"], "reply_to": said.event_id}, chat, gr.skip()
        if said.kind in ("skip", "flag", "both_bad"):
            back = chat["asked"][-1]["content"]
            empty = panel_value(None, Progress(), empty=AGAIN, reply_to=said.event_id)
            return conversation(chat["messages"]), empty, {"messages": chat["messages"]}, back
        chosen = {"role": "assistant", "content": chat["answers"][0 if said.first_better >= 0 else 1]}
        messages = [*chat["asked"], chosen]
        return (
            conversation(messages),
            panel_value(None, Progress(), empty=NEXT, reply_to=said.event_id),
            {"messages": messages},
            gr.skip(),
        )

    def build(project: gr.Dropdown) -> None:
        chat = gr.State({"messages": []})
        panel = gr.HTML(value=START, elem_id="chat-panel", **panel_parts())
        talk = gr.HTML(elem_id="talk", apply_default_css=False)
        with gr.Row(elem_classes="say"):
            box = gr.Textbox(placeholder="Say something", show_label=False, container=False, lines=2, max_lines=8, scale=8)
            go = gr.Button("Send", variant="primary", scale=0, min_width=100)
            anew = gr.Button("Begin anew", scale=0, min_width=140)
        for event in (go.click, box.submit):
            event(send, [box, chat, project], [box, talk, panel, chat], concurrency_limit=4, show_progress="hidden")
        now: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        panel.judge(judge, [chat, project], [talk, panel, chat, box], **PANEL_EVENT)
        anew.click(lambda: ("", START, {"messages": []}), None, [talk, panel, chat], **now)

    return build


def conversation(messages: list[dict[str, str]], texts: list[str] | None = None) -> str:
    """The conversation, and two answers as far as they are written."""
    said = render_messages(messages) if messages else ""
    if texts is None:
        return f'<div class="talk">{said}</div>'
    panes = "".join(
        f"<section><h2>Answer {letter}</h2>{render_response(text) if text else '<p>…</p>'}</section>"
        for letter, text in zip("AB", texts)
    )
    return f'<div class="talk">{said}<div class="two" aria-live="polite">{panes}</div></div>'
