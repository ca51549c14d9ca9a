// What the panel draws: functions only, loaded before panel.js, whose `task` and `draft` they show.
function drawProgress() {
  const {done, total, today, eta_seconds: eta} = task.progress;
  $('.count').textContent = total === null ? done + ' judged' : done + ' of ' + total;
  $('.track').hidden = total === null;
  $('.fill').style.width = (total ? 100 * Math.min(1, done / total) : 0) + '%';
  $('.track').setAttribute('aria-valuemax', total || 1);
  $('.track').setAttribute('aria-valuenow', Math.min(done, total || 1));
  const left = eta === null ? '' : eta < 90 ? 'about a minute left' : eta < 5400 ? 'about ' + Math.round(eta / 60) + ' min left'
    : 'about ' + Math.round(eta / 3600) + ' h left';
  $('.pace').textContent = [today ? today + ' today' : '', left].filter(Boolean).join(' · ');
}
function drawNotice(notice) {
  const box = $('.notice');
  box.textContent = notice ? notice.text : '';
  box.dataset.kind = notice ? notice.kind : '';
}
function drawEmpty() {
  $('.empty h2').textContent = task.empty.title;
  $('.empty p').textContent = task.empty.text;
}
function drawTools() {
  $('.empty').hidden = task.view !== 'empty';
  $('[data-do=undo]').disabled = !task.undo;
  $('[data-do=guidelines]').disabled = !task.guidelines.html;
  drawFlags();
}
function drawTask() {
  $('.answers').replaceChildren(...task.answers.map(answerCard));
  fillPanes();
  const pair = task.mode === 'pair';
  $('.scale').hidden = !pair;
  $('.order').hidden = pair;
  $('[data-do=both_bad]').hidden = !pair;
  $('.scale').replaceChildren(...(pair ? scaleButtons() : []));
  $('.aspects').replaceChildren(...(pair ? task.aspects.map(aspectControl) : []));
  $('.why').hidden = task.justification === 'off';
  $('.justification').value = draft.why;
  $('.justification').placeholder = 'A reason in a sentence' + (task.justification === 'required' ? ' (needed)' : '');
  delete $('.why').dataset.missing;
  $('.extras').hidden = task.justification === 'off' && !(pair && task.aspects.length) && !draft.flags.length;
  $('.reasons').replaceChildren(...task.flag_reasons.map((reason, index) => {
    const properties = {type: 'button', className: 'reason', value: reason, ariaPressed: 'false'};
    return make('button', properties, reason + ' ', keyCap(String(index + 1)));
  }));
  for (const mark of $$('.mark')) mark.ariaChecked = String(draft.aspects[mark.name] === Number(mark.value));
  $$('.answer').forEach((card, index) => titleCard(card, index));
  activate(0);
  if (!pair) drawOrder();
}
function titleCard(card, index) {
  card.querySelector('h2').textContent = 'Answer ' + letter(index) + (index in draft.edits ? ', corrected' : '');
}
function answerCard(answer, index) {
  const header = make('header', {}, make('h2'), make('span', {className: 'place'}));
  if (task.mode === 'rank') {
    const rank = make('button', {type: 'button', className: 'rank-it', value: String(index)}, 'Rank ', keyCap(String(index + 1)));
    rank.setAttribute('aria-label', 'Rank answer ' + letter(index));
    header.append(rank);
  }
  if (task.edit) {
    const edit = make('button', {type: 'button', className: 'edit-it', value: String(index)}, 'Edit ', keyCap('e'));
    edit.setAttribute('aria-label', 'Correct answer ' + letter(index));
    header.append(edit);
  }
  const pane = make('div', {className: 'pane', tabIndex: 0});
  pane.setAttribute('role', 'region');
  pane.setAttribute('aria-label', 'Answer ' + letter(index) + ', text');
  const card = make('section', {className: 'answer'}, header, pane);
  card.dataset.index = index;
  card.addEventListener('pointerdown', () => activate(index));
  card.addEventListener('focusin', () => activate(index));
  return card;
}
function fillPanes() {
  const raw = $('[data-do=raw]').getAttribute('aria-pressed') === 'true';
  $('.prompt').innerHTML = raw ? task.conversation.raw : task.conversation.html;  // both made by annotate.render
  $$('.pane').forEach((pane, index) => {
    pane.innerHTML = raw ? task.answers[index].raw : task.answers[index].html;
    pane.scrollTop = 0;
  });
}
function makeScrollable() {  // wide code, tables and formulas scroll by the keyboard too
  for (const box of $$('.md pre, .md-table, .md-maths')) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
function scaleButtons() {
  const words = {1: 'slightly better', 2: 'better', 3: 'much better'};
  return Array.from({length: 2 * task.scale + 1}, (_, index) => {
    const strength = index - task.scale, size = Math.abs(strength), side = strength < 0 ? 'A' : 'B';
    const label = size === 0 ? 'Tie' : task.scale === 1 ? side + ' is better' : side + ' ' + words[size];
    const long = make('span', {className: 'long'}, label);
    const short = make('span', {className: 'short'}, size ? side + '+'.repeat(size) : 'Tie');
    const button = make('button', {type: 'button', className: 'step', value: String(strength), tabIndex: size ? -1 : 0},
      keyCap(String(index + 1)), long, short);
    button.setAttribute('aria-label', label);
    button.dataset.size = size;
    return button;
  });
}
function aspectControl(name) {
  const steps = Array.from({length: 2 * task.scale + 1}, (_, index) => {
    const strength = index - task.scale;
    const button = make('button', {type: 'button', className: 'mark', value: String(strength), name, role: 'radio'});
    Object.assign(button, {ariaChecked: 'false', tabIndex: strength ? -1 : 0});
    button.setAttribute('aria-label', strength === 0 ? 'tie' : (strength < 0 ? 'A' : 'B') + ' by ' + Math.abs(strength));
    return button;
  });
  const group = make('div', {className: 'steps', role: 'radiogroup'}, make('span', {}, 'A'), ...steps, make('span', {}, 'B'));
  group.setAttribute('aria-label', name);
  return make('div', {className: 'aspect'}, make('span', {}, name), group);
}
function drawFlags() {
  $('.flags').textContent = draft && draft.flags.length ? 'Marked: ' + draft.flags.join(', ') : '';
  if (draft && draft.flags.length) $('.extras').hidden = false;
}
function drawOrder() {
  const rest = task.answers.map((_, index) => index).filter((index) => !draft.order.includes(index));
  $('.chips').replaceChildren(...[...draft.order, ...rest].map((index) => {
    const place = draft.order.indexOf(index);
    const chip = make('li', {draggable: true}, (place < 0 ? '' : place + 1 + '. ') + 'Answer ' + letter(index));
    if (place >= 0) chip.dataset.ranked = '';
    chip.dataset.index = index;
    return chip;
  }));
  $$('.answer').forEach((card, index) => {
    const place = draft.order.indexOf(index);
    card.querySelector('.place').textContent = place < 0 ? '' : '#' + (place + 1);
  });
  $('[data-do=rank]').disabled = draft.order.length !== task.answers.length;
}
function activate(index) {
  draft.active = index;
  $$('.answer').forEach((card, at) => card.toggleAttribute('data-active', at === index));
}

function edit(index) {
  const card = $$('.answer')[index], open = card.querySelector('.editor');
  if (open) return open.focus();
  const source = make('div', {innerHTML: task.answers[index].raw}).textContent;
  const editor = make('textarea', {className: 'editor', value: draft.edits[index] ?? source});
  editor.setAttribute('aria-label', 'Corrected answer ' + letter(index));
  editor.addEventListener('input', () => {
    if (editor.value === source.replaceAll('\r\n', '\n').replaceAll('\r', '\n')) delete draft.edits[index];
    else draft.edits[index] = editor.value;
    titleCard(card, index);
  });
  card.querySelector('.pane').hidden = true;
  card.append(editor);
  card.querySelector('.edit-it').firstChild.textContent = 'Done ';
  editor.setSelectionRange(0, 0);
  editor.focus();
}
function stopEditing(card) {
  card.querySelector('.editor').remove();
  card.querySelector('.pane').hidden = false;
  card.querySelector('.edit-it').firstChild.textContent = 'Edit ';
}
