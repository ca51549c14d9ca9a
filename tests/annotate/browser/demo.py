"""The panel in a small Gradio app with made-up tasks; `python -m tests.annotate.browser.demo` serves it for a look."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from annotate.app.panel import PAGE_CSS, PANEL_EVENT, Event, PanelTask, Progress, panel_parts, panel_value, read_event

_ASK = "I keep seeing **KL divergence** in papers about fine-tuning. What is it, and why is it in the loss?"
_FIRST = r"""Think of it as the *price of surprise*: how many extra nats you pay when you expect $q$ but the world follows $p$.

$$
D_{\mathrm{KL}}(p \,\|\, q) = \sum_{x} p(x) \log \frac{p(x)}{q(x)}
$$

In fine-tuning, $p$ is the policy and $q$ the model you started from. Three things follow:

1. It is **never negative**, and zero only when both agree.
2. It is *not symmetric*: $D_{\mathrm{KL}}(p\,\|\,q) \neq D_{\mathrm{KL}}(q\,\|\,p)$.
3. It keeps the policy from drifting into text that merely fools the reward model.

```python
def kl(p: Tensor, q: Tensor) -> Tensor:
    # both in log space, so that nothing underflows
    return (p.exp() * (p - q)).sum(-1)
```

| coefficient | what you see |
|:--|--:|
| 0.001 | reward climbs, text degrades |
| 0.05 | steady |
| 0.5 | nothing changes |

So it is a leash: long enough to learn, short enough to stay readable. See [Schulman's note](http://joschu.net/blog/kl-approx.html)."""
_SECOND = r"""KL divergence measures how different two probability distributions are.

It is used in RLHF to stop the model from changing too much. The total reward is usually written as

\[ r(x, y) - \beta \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)} \]

> A small $\beta$ allows more change, a large one less.

Some points to remember:

- it is always positive
- it is a distance between distributions
- you can use `F.kl_div` in PyTorch, which expects a `Tensor<float>` of log-probabilities

Typical runs cost between $5 and $10 on a rented card. <think>should I mention the estimator?</think>

Hope this helps! Let me know if you have any other questions about it."""
_MESSAGES = [
    {"role": "system", "content": "You are a patient tutor."},
    {"role": "user", "content": "Hello! I am new to this field."},
    {"role": "assistant", "content": "Welcome. Ask me anything, and I will start from the beginning."},
    {"role": "user", "content": _ASK},
]
GUIDELINES = (
    "## Which answer is better?\n\nPrefer the one that **helps the person who asked**: right first, then clear, then short.\n\n"
    "- A wrong claim weighs more than a dull style.\n- Length by itself is neither good nor bad."
)


@dataclass
class Demo:
    """Keeps what it was sent. `down`: answer nothing, as a server does that cannot be reached; `slow`: seconds a reply takes."""

    rank: bool = False
    justification: Any = "optional"
    last: int = 400
    down: bool = False
    slow: float = 0.0
    events: list[Event] = field(default_factory=list)
    at: int = 37
    app: Any = None

    def task(self) -> PanelTask:
        """The task that stands at `at`; every second one has its sides swapped."""
        answers = [_FIRST, _SECOND] if self.at % 2 else [_SECOND, _FIRST]
        if self.rank:
            answers = [_SECOND, _FIRST, _SECOND[:300], _FIRST[:420]]
        return PanelTask(
            f"task-{self.at}", 1, _MESSAGES, answers, aspects=["helpful", "correct"], justification=self.justification
        )

    def value(self, reply_to: str | None = None, notice: str = "") -> dict[str, Any]:
        """What the panel shows now."""
        task = self.task() if self.at < self.last else None
        undo = f"task-{self.at - 1}" if self.events else None
        progress = Progress(self.at, self.last, len(self.events), 40.0 * (self.last - self.at))
        return panel_value(
            task, progress, guidelines=GUIDELINES, guidelines_version=3, undo=undo, reply_to=reply_to, notice=notice
        )

    def judge(self, event: gr.EventData) -> Any:
        """The handler: a new judgement moves on, a repeat only answers."""
        said = read_event(event._data)
        self.events.append(said)
        if self.down:
            return gr.skip()
        if said.kind == "undo":
            self.at -= 1
            return self.value(said.event_id, "Undone: here it is again.")
        if said.assignment == f"task-{self.at}":
            self.at += 1
        reply = self.value(said.event_id)
        time.sleep(self.slow)
        return reply

    def blocks(self) -> gr.Blocks:
        """The app."""
        with gr.Blocks(title="Demo") as blocks:
            panel = gr.HTML(value=self.value(), **panel_parts())
            panel.judge(self.judge, None, panel, **PANEL_EVENT)
            blocks.load(self.value, None, panel, queue=False, show_progress="hidden")
        return blocks

    def launch(self, port: int) -> str:
        """Serve it without blocking; the address."""
        self.app = self.blocks()
        _, url, _ = self.app.launch(
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            css=PAGE_CSS,
            ssr_mode=False,
            footer_links=[],
            server_name="127.0.0.1",
        )
        return str(url)


if __name__ == "__main__":
    print(Demo().launch(next(itertools.count(7871))))
    input("Enter ends it. ")
