"""Thousands of hostile answers, rendered and put into a real page the way the app does it: nothing gets out of its pane."""

from playwright.sync_api import Page

from annotate.render import displayable, raw_view, render_response, stylesheet
from tests.annotate.hostile_text import hostile_texts
from tests.annotate.html_text import kept

_SHELL = f"""<!doctype html><meta charset=utf-8><title>panes</title><style>{stylesheet()}
body {{ margin: 0 }} .pane {{ contain: content; overflow: auto; width: 400px; height: 200px }}</style>
<button id=sentinel style="position:fixed;top:0;right:0;width:60px;height:30px">judge</button><main></main>"""

_INSPECT = """(panes) => {
  const main = document.querySelector('main'), wrong = [], texts = [];
  const elements = new Set(('DIV P BR PRE CODE SPAN BDI UL OL LI BLOCKQUOTE H4 H5 H6 HR EM STRONG S TABLE THEAD TBODY TR TH TD '
    + 'math semantics annotation mrow mi mn mo mtext mspace msup mfrac mtable mtr mtd mstyle').split(' '));
  const attributes = new Set('class data-code role display encoding stretchy fence form columnalign lspace rspace'.split(' '));
  const visible = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    if (node.localName === 'math') return node.querySelector('annotation').textContent;
    return node.classList.contains('md-note') ? '' : [...node.childNodes].map(visible).join('');
  };
  main.innerHTML = panes.map(() => '<div class=pane></div><div class=pane></div>').join('');
  [...main.children].forEach((pane, i) => { pane.innerHTML = panes[i >> 1][i & 1]; });
  [...main.children].forEach((pane, i) => {
    if (i & 1) { texts[i >> 1].push(pane.textContent); } else { texts.push([visible(pane)]); }
    for (const element of pane.querySelectorAll('*')) {
      const style = getComputedStyle(element), faults = [];
      if (!elements.has(element.tagName)) faults.push('element');
      for (const {name} of element.attributes) if (!attributes.has(name)) faults.push('attribute ' + name);
      const placed = style.position !== 'static' || style.float !== 'none' || style.transform !== 'none';
      if (placed || style.zIndex !== 'auto') faults.push('placed');
      if (element.localName !== 'annotation' && style.display === 'none') faults.push('hidden');
      if (style.visibility !== 'visible' || style.opacity !== '1' || parseFloat(style.fontSize) < 4) faults.push('invisible');
      if (faults.length) wrong.push([i >> 1, element.outerHTML.slice(0, 200), faults]);
    }
    if (pane.offsetWidth !== 400 || pane.offsetHeight !== 200) wrong.push([i >> 1, 'the pane changed its size', []]);
  });
  if (document.elementFromPoint(innerWidth - 30, 15)?.id !== 'sentinel') wrong.push([-1, 'something lies over the page', []]);
  if (!(document.forms instanceof HTMLCollection) || document.body.tagName !== 'BODY') wrong.push([-1, 'clobbered', []]);
  return {wrong, texts, ran: window.escaped, names: main.querySelectorAll('[id], [name], [style], [href], [src]').length};
}"""


def test_nothing_runs_loads_covers_clobbers_or_gets_lost(page: Page):
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: requests.append(f"dialog {dialog.message}"))
    page.route(
        "**/*",
        lambda route: route.fulfill(body=_SHELL, content_type="text/html") if "pane.test" in route.request.url else route.abort(),
    )
    page.goto("http://pane.test/")
    del requests[:]
    texts = hostile_texts(3_000, seed=2)
    assert len(texts) == 3_000
    for start in range(0, len(texts), 150):
        batch = texts[start : start + 150]
        found = page.evaluate(_INSPECT, [[render_response(text), raw_view(text)] for text in batch])
        assert found["wrong"] == [], [batch[index] for index, *_ in found["wrong"][:3]]
        assert found["names"] == 0
        for text, (rendered, raw) in zip(batch, found["texts"], strict=True):
            assert raw == displayable(text)
            assert kept(rendered) == kept(text)
    page.mouse.move(200, 100)
    page.mouse.click(200, 100)
    page.wait_for_timeout(200)  # what loads or navigates late would do so now
    assert requests == []
    assert page.url == "http://pane.test/"
    assert page.evaluate("window.escaped") is None


def test_the_inspection_sees_what_it_must_see(page: Page):
    """The same inspection on unsafe HTML finds the faults: a test of the test."""
    page.set_content(_SHELL)
    overlay = "<div style='position:fixed;inset:0;z-index:9' onclick=x></div>"
    unsafe = overlay + "<a id=body href=x>l</a><img src=x onerror='window.escaped=1'>"
    found = page.evaluate(_INSPECT, [[unsafe, "<pre></pre>"]])
    assert len(found["wrong"]) >= 3
    assert found["names"] == 3
    page.wait_for_function("window.escaped === 1")
