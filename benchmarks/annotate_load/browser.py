"""What a person at a real browser waits for: the next pair after a key, the first after the login, a reload."""

from __future__ import annotations

import os
import statistics

from playwright.sync_api import Page, sync_playwright

from benchmarks.annotate_load.server import Server
from benchmarks.annotate_load.world import LOGIN

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),  # no request of its own
]
OPENINGS = 5
# A second frame begins after the first has been painted. `painted`: when the first pair was; `waits`: of each key.
WATCH = """
window.waits = []; window.painted = null;
const afterPaint = (then) => requestAnimationFrame(() => requestAnimationFrame(() => then(performance.now())));
let pressed = null;
addEventListener('keydown', (event) => { pressed = event.timeStamp; }, true);
new MutationObserver((changes) => {
  for (const change of changes) {
    const root = change.target;
    if (!root.matches?.('#pair-panel .annotate')) continue;
    if (change.attributeName === 'data-view' && window.painted === null && root.dataset.view === 'task')
      afterPaint((now) => { window.painted = now; });
    // The panel is locked from the key to the moment in which the next pair is drawn.
    if (change.attributeName === 'data-locked' && change.oldValue !== null && !('locked' in root.dataset)) {
      const from = pressed;
      afterPaint((now) => window.waits.push(now - from));
    }
  }
}).observe(document, {subtree: true, attributes: true, attributeOldValue: true, attributeFilter: ['data-view', 'data-locked']});
"""


def browser(server: Server, keys: int) -> dict[str, float]:
    """`key_to_next_pair`: from the key's own time stamp to the frame after the one that holds the next pair."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        logins, reloads, waits = [], [], []
        for opening in range(OPENINGS):
            context = chromium.new_context(viewport={"width": 1440, "height": 900})
            context.add_init_script(WATCH)
            page = context.new_page()
            logins.append(_log_in(page, f"http://localhost:{server.port}"))
            page.reload()
            reloads.append(_painted(page) / 1000)
            if opening == OPENINGS - 1:
                waits = _judge(page, keys)
            context.close()
        chromium.close()
    cuts = statistics.quantiles(waits, n=20)
    return {
        "key_to_next_pair_p50_ms": statistics.median(waits),
        "key_to_next_pair_p95_ms": cuts[18],
        "login_to_first_pair_s": statistics.median(logins),
        "warm_reload_s": statistics.median(reloads),
    }


def _log_in(page: Page, address: str) -> float:
    page.goto(f"{address}/login")
    page.fill("input[name=name]", LOGIN[0])
    page.fill("input[name=password]", LOGIN[1])
    clicked = page.evaluate("performance.timeOrigin + performance.now()")
    page.click("button")
    page.wait_for_url("**/app/")
    painted = _painted(page)
    return (page.evaluate("performance.timeOrigin") + painted - clicked) / 1000


def _painted(page: Page) -> float:
    """Milliseconds from the beginning of the navigation to the paint of the first pair."""
    page.wait_for_function("window.painted !== null", timeout=60_000)
    return float(page.evaluate("window.painted"))


def _judge(page: Page, keys: int) -> list[float]:
    """Press keys, each as soon as the panel takes one."""
    before = ""
    for number in range(keys):
        ready = f"#pair-panel .annotate[data-armed]:not([data-armed='']):not([data-armed='{before}'])"
        before = page.wait_for_selector(ready, timeout=60_000).get_attribute("data-armed") or ""  # type: ignore[union-attr]
        page.keyboard.press("1" if number % 2 else "7")
        page.wait_for_function(f"window.waits.length === {number + 1}", timeout=60_000)
    return [float(each) for each in page.evaluate("window.waits")]
