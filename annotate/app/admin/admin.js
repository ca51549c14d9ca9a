// The admin's pages. Gradio calls this with `element`, `trigger`, `props` and `watch`; the contract is in __init__.py.
// One event is on its way at a time. The address says which page of which project is shown: #page/project.
const root = element.querySelector('.admin');
const $ = (selector, within = root) => within.querySelector(selector);
const $$ = (selector, within = root) => [...within.querySelectorAll(selector)];
const SLOW = 15_000;  // ms without an answer before somebody has to be told
let pending = null, slow = 0, typing = 0, here = {page: 'progress', project: null};

function address() {
  const [page, project] = location.hash.slice(1).split('/').map((part) => { try { return decodeURIComponent(part); } catch { return ''; } });
  return {page: page || 'progress', project: project || here.project};
}

function send(action, fields = {}) {
  pending = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
  busy(true);
  clearTimeout(slow);
  slow = setTimeout(unanswered, SLOW);
  trigger('act', {id: pending, page: here.page, project: here.project, action, fields});
}

async function unanswered() {
  const answer = await fetch('/api/projects').catch(() => null);
  if (answer?.status === 401) location.assign('/login');
  else if (answer) slow = setTimeout(unanswered, SLOW);
  else finish('The server cannot be reached. Nothing more is known of what you sent last: load the page again to see.', 'bad');
}

function finish(words, kind) {
  pending = null;
  clearTimeout(slow);
  busy(false);
  if (words) tell(words, kind);
}

function busy(yes) {
  root.toggleAttribute('data-busy', yes);
  $('.page').setAttribute('aria-busy', String(yes));
}

function tell(words, kind) {
  const notice = $('.notice');
  notice.hidden = !words;
  notice.dataset.kind = kind || '';
  notice.textContent = words || '';
  if (words) notice.scrollIntoView({block: 'nearest'});
}

function receive(value) {
  if (!value || value.reply_to !== pending) return;  // of a page that has been left
  if (value.part !== null) {
    finish();
    const part = $('[data-part]');
    if (part) part.innerHTML = value.part;
    return;
  }
  finish();
  if (value.html !== null) draw(value);
  if (value.notice) tell(value.notice.text, value.notice.kind);
}

function draw(value) {
  const moved = root.dataset.page !== value.page || here.project !== value.project;
  here = {page: value.page, project: value.project};
  root.dataset.page = value.page;
  $('.content').innerHTML = value.html;
  $('h1').textContent = value.title;
  document.title = `${value.title}: ${value.project ?? 'Annotate'}`;
  const where = `#${value.page}${value.project ? '/' + encodeURIComponent(value.project) : ''}`;
  if (location.hash !== where) history.replaceState(history.state, '', where);
  for (const link of $$('nav a')) link.toggleAttribute('aria-current', link.hash === `#${value.page}`);
  for (const link of $$('nav a[aria-current]')) { link.setAttribute('aria-current', 'page'); link.scrollIntoView({block: 'nearest', inline: 'center'}); }
  const waiting = $('.waiting');
  waiting.hidden = !value.waiting;
  waiting.textContent = value.waiting;
  $('.project').hidden = value.projects.length < 2;
  $('.project select').replaceChildren(...value.projects.map((name) => new Option(name, name, false, name === value.project)));
  if (moved) { $('h1').focus({preventScroll: true}); window.scrollTo(0, 0); }
}

// --- What people do ---------------------------------------------------------------------------------------------------------
function said(form) {
  const fields = {};
  for (const control of form.elements) {
    if (!control.name || control.type === 'file' || control.disabled) continue;
    if (control.type === 'checkbox') fields[control.name] = String(control.checked);
    else if (control.type !== 'radio' || control.checked) fields[control.name] = control.value;
  }
  return fields;
}

function onSubmit(event) {
  const form = event.target;
  if (!form.dataset.action) return;  // logging out
  event.preventDefault();
  if (pending) return;
  tell('');
  if (form.dataset.upload) upload(form);
  else if (form.dataset.download) download(form);
  else send(form.dataset.action, said(form));
}

function onClick(event) {
  const button = event.target.closest('button[data-action]');
  if (!button || pending) return;
  const {action, ask, current, label, ...fields} = button.dataset;
  if (ask && !confirm(ask)) return;
  tell('');
  send(action, fields);
}

function onInput(event) {
  if (!event.target.dataset?.preview) return;
  clearTimeout(typing);
  const box = event.target;
  typing = setTimeout(function show() {
    if (!box.isConnected) return;
    if (pending) typing = setTimeout(show, 300);
    else send('preview', {[box.name]: box.value});
  }, 300);
}

function onChoose(event) {
  if (event.target.matches('.project select')) location.hash = `#${here.page}/${encodeURIComponent(event.target.value)}`;
}

function visit() {
  const next = address();
  if (pending === null && root.dataset.page === next.page && here.project === next.project && $('.content').childNodes.length) return;
  here = next;
  tell('');
  send('show');
}

// --- Files ------------------------------------------------------------------------------------------------------------------
function upload(form) {
  const file = $('input[type=file]', form).files[0], bar = $('progress', form), request = new XMLHttpRequest();
  const query = new URLSearchParams({...said(form), project: here.project, name: file.name.replace(/[^A-Za-z0-9_\-. ()+]/g, '_')});
  const end = (words, kind) => { bar.hidden = true; finish(words, kind); };
  pending = 'upload';
  busy(true);
  bar.hidden = false;
  bar.value = 0;
  request.upload.onprogress = (event) => { if (event.total) bar.value = event.loaded / event.total; };
  request.upload.onload = () => bar.removeAttribute('value');  // it is there, and is being read
  request.onerror = () => end('The file did not get through: is the server running?', 'bad');
  request.onload = () => {
    const answer = read(request.responseText);
    if (request.status !== 200) return end(`Nothing was imported: ${answer.error ?? request.status}.`, 'bad');
    const bad = answer.bad ? `, ${answer.bad} bad rows left out. The first: ${answer.errors[0]}` : '';
    end(`${answer.added} comparisons added, ${answer.duplicates} were there, ${answer.twins} with equal answers left out${bad}.`, 'good');
    form.reset();
  };
  request.open('POST', `${form.dataset.upload}?${query}`);
  request.send(file);
}

async function download(form) {
  const query = new URLSearchParams({...said(form), project: here.project});
  pending = 'download';
  busy(true);
  try {
    const answer = await fetch(`${form.dataset.download}?${query}`);
    if (!answer.ok) return finish(`Nothing was exported: ${read(await answer.text()).error ?? answer.status}.`, 'bad');
    const link = document.createElement('a');
    link.href = URL.createObjectURL(await answer.blob());
    link.download = /filename="([^"]+)"/.exec(answer.headers.get('content-disposition') ?? '')?.[1] ?? 'export.zip';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    finish();
    send('show');
    tell(`Exported as ${link.download}.`, 'good');
  } catch {
    finish('The export did not get through: is the server running?', 'bad');
  }
}

function read(text) { try { return JSON.parse(text); } catch { return {}; } }

// --- Start ------------------------------------------------------------------------------------------------------------------
root.addEventListener('submit', onSubmit);
root.addEventListener('click', onClick);
root.addEventListener('input', onInput);
root.addEventListener('change', onChoose);
window.addEventListener('hashchange', visit);
let theme = null;
try { theme = localStorage.getItem('annotate-theme'); } catch { /* private mode */ }
if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
watch('value', () => receive(props.value));
visit();
