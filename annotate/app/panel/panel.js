// The judging panel's behaviour. Gradio calls it with `element`, `trigger`, `props` and `watch`; the contract is in
// __init__.py, the drawing in drawing.js, loaded before it.
const root = element.querySelector('.annotate');
const $ = (selector) => root.querySelector(selector);
const $$ = (selector) => [...root.querySelectorAll(selector)];
const RETRY_MS = [6000, 12000, 24000, 30000];
const ARM_MS = 150;

let task = {};            // the value now shown
let draft = null;         // what the person has said about it so far
let armed = false;        // whether a verdict is taken: painted, 150 ms ago, and not yet answered
let pending = null;       // the event sent and not yet answered
const answered = new Set();  // events that have had their reply
let retryTimer = 0;
let shownAt = null, visibleMs = 0;

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const keyCap = (key) => make('kbd', {textContent: key});
const newDraft = () => ({active: 0, aspects: {}, flags: [], remark: '', edits: {}, order: [], why: '', ms: 0});
const letter = (index) => (task.mode === 'rank' ? String(index + 1) : 'AB'[index]);

// --- What the server sent ---------------------------------------------------------------------------------------------------
function receive(value) {
  if (!value || typeof value !== 'object') return;
  if (answered.has(value.reply_to)) return;  // a second reply to a repeated event: the panel has moved on
  if (pending && value.reply_to !== pending.event_id && value.assignment === pending.assignment) return;
  if (pending) { answered.add(pending.event_id); pending = null; clearTimeout(retryTimer); setOffline(''); }
  const same = draft && value.assignment !== null && value.assignment === task.assignment && value.revision === task.revision;
  task = value;
  if (!same) { draft = keptDraft() ?? newDraft(); stopClock(); visibleMs = draft.ms; shownAt = null; }
  root.dataset.view = task.view;
  root.dataset.mode = task.mode;
  root.dataset.count = task.answers ? task.answers.length : 0;
  delete root.dataset.locked;
  for (const button of $$('[data-pressed]')) delete button.dataset.pressed;
  drawProgress();
  drawNotice(task.notice);
  if (task.view === 'task' && !same) drawTask();
  if (task.view === 'empty') drawEmpty();
  drawTools();
  armAfterPaint();
}

function armAfterPaint() {
  armed = false;
  const assignment = task.assignment;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    if (shownAt === null && visibleMs === draft?.ms) $('.prompt').scrollTop = $('.prompt').scrollHeight;  // the question is what is asked last
    if (task.assignment === assignment && shownAt === null) startClock();
    makeScrollable();
    setTimeout(() => {
      armed = task.view === 'task' && !pending;
      root.dataset.armed = armed ? assignment : '';
    }, ARM_MS);
  }));
}

// --- Time on a visible page -------------------------------------------------------------------------------------------------
function startClock() { if (document.visibilityState === 'visible') shownAt = performance.now(); }
function stopClock() { if (shownAt !== null) visibleMs += performance.now() - shownAt; shownAt = null; }
function onVisibility() {
  if (document.visibilityState === 'visible') return startClock();
  stopClock();
  keepDraft();
}

// --- A draft outlives a reload of the page ----------------------------------------------------------------------------------
function keepDraft() {
  if (!draft || task.view !== 'task' || root.offsetParent === null) return;
  stopClock();
  const kept = {...draft, why: $('.justification').value, ms: visibleMs, of: [task.assignment, task.revision]};
  try { sessionStorage.setItem('annotate-draft-' + task.mode, JSON.stringify(kept)); }
  catch { /* private mode, or a very long correction: it lasts as long as the page */ }
}
function keptDraft() {
  try {
    const kept = JSON.parse(sessionStorage.getItem('annotate-draft-' + task.mode));
    return String(kept.of) === String([task.assignment, task.revision]) ? kept : null;
  } catch { return null; }
}

// --- Saying something -------------------------------------------------------------------------------------------------------
function judge(kind, fields = {}, button = null) {
  if (!armed || pending) return;
  const votes = ['preference', 'tie', 'both_bad', 'rank'].includes(kind);
  if (votes && task.justification === 'required' && !$('.justification').value.trim()) {
    $('.why').dataset.missing = '';
    drawNotice({text: 'A reason is needed here: write one, press Esc, then choose.', kind: 'warning'});
    return $('.justification').focus();
  }
  send({kind, ...fields}, button);
}
function send(fields, button) {
  const running = shownAt === null ? 0 : performance.now() - shownAt;
  pending = {
    event_id: Date.now().toString(36) + Math.random().toString(36).slice(2), attempt: 1,
    assignment: task.assignment, revision: task.revision, undo: null, strength: 0, ranking: null,
    aspects: {...draft.aspects}, flags: [...draft.flags], edits: {...draft.edits},
    justification: [$('.justification').value, draft.remark].filter((words) => words.trim()).join('\n\n'),
    visible_ms: Math.round(visibleMs + running), guidelines_version: task.guidelines.version, ...fields,
  };
  armed = false;
  root.dataset.armed = '';
  root.dataset.locked = '';
  if (button) button.dataset.pressed = '';
  transmit();
}
function transmit() {
  clearTimeout(retryTimer);
  trigger('judge', {...pending});
  retryTimer = setTimeout(again, RETRY_MS[Math.min(pending.attempt, RETRY_MS.length) - 1]);
}
function again() {
  if (!pending || !root.isConnected) return;
  pending.attempt += 1;
  setOffline('No answer from the server. What you said is kept here and is being sent again (try ' + pending.attempt + ').');
  transmit();
}
function setOffline(text) { $('.offline').textContent = text; $('.offline').hidden = !text; }
function undo() {
  if (task.undo && !pending) send({kind: 'undo', undo: task.undo}, $('[data-do=undo]'));
}
function vote(strength) {
  const button = $$('.step').find((step) => Number(step.value) === strength);
  judge(strength === 0 ? 'tie' : 'preference', {strength}, button);
}
function rank() {
  if (task.mode !== 'rank' || draft.order.length !== task.answers.length) return;
  judge('rank', {ranking: task.answers.map((_, index) => draft.order.indexOf(index) + 1)}, $('[data-do=rank]'));
}
function place(index, at = null) {
  if (index >= task.answers.length) return;
  const was = draft.order.indexOf(index);
  if (was >= 0) draft.order.splice(was, 1);
  if (at !== null) draft.order.splice(at, 0, index);
  else if (was < 0) draft.order.push(index);
  drawOrder();
}
function setAspect(name, strength) {
  if (draft.aspects[name] === strength) delete draft.aspects[name];  // a second click takes it back
  else draft.aspects[name] = strength;
  const marks = $$('.mark').filter((mark) => mark.name === name);
  marks.forEach((mark) => { mark.ariaChecked = String(draft.aspects[name] === Number(mark.value)); });
}
function flag(outright) {
  draft.flags = $$('.reason').filter((reason) => reason.ariaPressed === 'true').map((reason) => reason.value);
  draft.remark = $('.remark').value;
  if (outright && !draft.flags.length) return;
  $('.flagging').close();
  drawFlags();
  if (outright) judge('flag', {}, $('[data-do=flag]'));
}

// --- Tools ------------------------------------------------------------------------------------------------------------------
const HELP = [
  ['1 to 7', 'A much better, ..., 4 a tie, ..., B much better (fewer on a shorter scale)'],
  ['← →', 'move along the scale; Enter takes it'], ['b', 'both are bad'], ['s', 'skip: somebody else gets it'],
  ['f', 'flag, with a reason'], ['u or z', 'undo the last judgement'], ['j', 'write why; Esc comes back'],
  ['e', 'correct the outlined answer; Esc comes back'], ['r', 'raw text, every character'],
  ['g', 'guidelines'], ['?', 'these keys'],
  ['1 to 9', 'when ranking: the answers, best first; Backspace takes one back, Enter submits'],
];
function toggleRaw() {
  const button = $('[data-do=raw]');
  button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
  if (task.view !== 'task') return;
  fillPanes();
  makeScrollable();
}
function toggleDialog(selector) {
  const dialog = $(selector);
  dialog.open ? dialog.close() : dialog.showModal();
}
function setTheme(theme) {
  root.dataset.theme = theme;
  document.body.classList.toggle('dark', theme === 'dark');
  try { localStorage.setItem('annotate-theme', theme); } catch { /* private mode: the choice lasts as long as the page */ }
}
function isDark() {
  return root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}
function showGuidelines() {
  if (!task.guidelines?.html) return;
  $('.guidelines .body').innerHTML = task.guidelines.html;
  toggleDialog('.guidelines');
}
function openFlagging() {
  if (!armed) return;
  for (const reason of $$('.reason')) reason.ariaPressed = String(draft.flags.includes(reason.value));
  $('.remark').value = draft.remark;
  $('.flagging').showModal();
}
const ACTIONS = {
  undo, rank,
  both_bad: () => task.mode === 'pair' && judge('both_bad', {}, $('[data-do=both_bad]')),
  skip: () => judge('skip', {}, $('[data-do=skip]')),
  flag: openFlagging, 'flag-only': () => flag(false), 'flag-send': () => flag(true),
  edit: () => task.edit && edit(draft.active),
  why: () => task.justification !== 'off' && $('.justification').focus(),
  clear: () => { draft.order = []; drawOrder(); },
  raw: toggleRaw, guidelines: showGuidelines, help: () => toggleDialog('.help'),
  theme: () => setTheme(isDark() ? 'light' : 'dark'),
  close: () => $$('dialog[open]').forEach((dialog) => dialog.close()),
};
const KEYS = {
  b: 'both_bad', s: 'skip', f: 'flag', u: 'undo', z: 'undo', e: 'edit', j: 'why',
  r: 'raw', g: 'guidelines', '?': 'help', Enter: 'rank',
};

function onClick(event) {
  const button = event.target.closest('button');
  if (!button || button.disabled) return;
  if (button.dataset.do) ACTIONS[button.dataset.do]();
  else if (button.classList.contains('step')) vote(Number(button.value));
  else if (button.classList.contains('mark')) setAspect(button.name, Number(button.value));
  else if (button.classList.contains('reason')) button.ariaPressed = String(button.ariaPressed !== 'true');
  else if (button.classList.contains('rank-it')) place(Number(button.value));
  else if (button.classList.contains('edit-it')) {
    const card = button.closest('.answer');
    card.querySelector('.editor') ? stopEditing(card) : edit(Number(button.value));
  }
}
function moveAlong(buttons, step) {
  const at = buttons.findIndex((button) => button.tabIndex === 0);
  const next = buttons[Math.max(0, Math.min(buttons.length - 1, at + step))];
  for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
  next.focus();
  return next;
}
function onArrow(event, step) {
  const group = event.target.closest?.('.steps');
  if (group) {
    const mark = moveAlong([...group.querySelectorAll('.mark')], step);
    delete draft.aspects[mark.name];
    return setAspect(mark.name, Number(mark.value));
  }
  if (task.mode === 'rank') return activate(Math.max(0, Math.min(task.answers.length - 1, draft.active + step)));
  const chosen = Number(moveAlong($$('.step'), step).value);
  if (chosen) activate(chosen < 0 ? 0 : 1);
}
function onKey(event) {
  if (!root.isConnected) return document.removeEventListener('keydown', onKey);
  if (root.offsetParent === null || event.defaultPrevented || event.isComposing || event.keyCode === 229) return;
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.closest?.('input, textarea, select, [contenteditable]');
  const dialog = $('dialog[open]');
  if (event.key === 'Escape' && writing && !dialog) {
    event.preventDefault();
    const card = writing.closest('.answer');
    return card && root.contains(card) ? stopEditing(card) : writing.blur();
  }
  if (writing) return;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (dialog) {
    if (digit && dialog.matches('.flagging')) $$('.reason')[digit - 1]?.click();
    else if ((key === 'g' && dialog.matches('.guidelines')) || (key === '?' && dialog.matches('.help'))) dialog.close();
    return;
  }
  const focused = event.target.closest?.('button, a');
  if (key === 'Enter' && focused && focused.role !== 'tab') return;  // its own click; the tab just opened keeps the focus, though
  if (task.view !== 'task' && !['u', 'z', 'g', '?'].includes(key)) return;
  if (key === 'ArrowLeft' || key === 'ArrowRight') onArrow(event, key === 'ArrowLeft' ? -1 : 1);
  else if (key === 'Backspace' && task.mode === 'rank') { draft.order.pop(); drawOrder(); }
  else if (digit && task.mode === 'rank') place(digit - 1);
  else if (digit && digit <= 2 * task.scale + 1) vote(digit - 1 - task.scale);
  else if (KEYS[key]) ACTIONS[KEYS[key]]();
  else return;
  event.preventDefault();
}

// --- Dragging the chips of a ranking ----------------------------------------------------------------------------------------
let dragged = null;
$('.chips').addEventListener('dragstart', (event) => {
  dragged = Number(event.target.dataset.index);
  event.dataTransfer.effectAllowed = 'move';
});
$('.chips').addEventListener('dragover', (event) => event.preventDefault());
$('.chips').addEventListener('drop', (event) => {
  event.preventDefault();
  const chips = $$('.chips li'), target = event.target.closest('li');
  if (dragged === null || !target) return;
  const order = chips.map((chip) => Number(chip.dataset.index)), to = chips.indexOf(target);
  order.splice(order.indexOf(dragged), 1);
  order.splice(to, 0, dragged);
  draft.order = order;  // a drag says the whole order
  dragged = null;
  drawOrder();
});

// --- Start ------------------------------------------------------------------------------------------------------------------
$('.help dl').replaceChildren(...HELP.flatMap(([keys, meaning]) => [make('dt', {}, keyCap(keys)), make('dd', {}, meaning)]));
root.addEventListener('click', onClick);
document.addEventListener('keydown', onKey);
document.addEventListener('visibilitychange', onVisibility);
window.addEventListener('pagehide', keepDraft);
window.addEventListener('online', () => pending && again());
let theme = null;
try { theme = localStorage.getItem('annotate-theme'); } catch { /* private mode */ }
if (theme === 'light' || theme === 'dark') setTheme(theme);
watch('value', () => receive(props.value));
receive(props.value);
