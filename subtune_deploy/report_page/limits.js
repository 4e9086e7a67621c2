// The controls: which points are looked at, and the limits that they keep.

const OPEN = ''; // no limit

function makeLimits(data, form, changed) {
  const distinct = (of) => [...new Set(data.points.map(of))].sort((a, b) => a - b);
  const controls = {
    target: chooser('Target', data.targets.map(({ label }, n) => [n, label])),
    tasks: chooser('Tasks', distinct((point) => point.tasks).map((n) => [n, plural(n, 'task')])),
    length: chooser('Length of fork', lengths(distinct((point) => point.layers.length))),
    width: chooser('Width', widths(data)),
    maxAdded: limit('Added latency at most', data.points.map((point) => point.added[0]), Math.ceil),
    minAccuracy: data.accuracy && limit('Accuracy at least', accuracies(data), Math.floor),
  };
  const reset = make('button', { type: 'button', text: 'No limits', onclick: () => cleared(controls, changed) });
  form.append(...Object.values(controls).filter(Boolean).map((control) => control.element), reset);
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', () => changed());
  return () => settings(controls);
}

function accuracies(data) {
  return data.points.filter((point) => point.accuracy).map((point) => point.accuracy[0]);
}

function chooser(label, choices) {
  const select = make('select', { 'aria-label': label }, ...choices.map(([value, text]) => make('option', { value, text })));
  const element = make('label', { hidden: choices.length < 2 }, make('span', { text: label }), select);
  return { element, read: () => select.value };
}

function lengths(found) {
  const named = found.map((n) => [n, n ? plural(n, 'block') : 'the head alone']);
  return found.length > 1 ? [[OPEN, 'any length'], ...named] : named;
}

function widths(data) {
  const mixed = new Set(data.points.map((point) => point.pruned)).size > 1;
  return mixed ? [[OPEN, 'any width'], ['whole', 'whole'], ['pruned', 'pruned']] : [];
}

// A number in per cent and a slider beside it; where the slider stands at its open end there is no limit.
function limit(label, values, open) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity) * 100;
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity) * 100;
  const range = { min: Math.floor(Math.min(low, 100)), max: Math.ceil(high), step: high - low > 20 ? 1 : 0.1 };
  const end = open === Math.ceil ? range.max : range.min;
  const written = { type: 'number', inputmode: 'decimal', step: 'any', placeholder: 'any' };
  const number = make('input', { ...written, 'aria-label': `${label}, in per cent` });
  const slider = make('input', { type: 'range', ...range, value: end, 'aria-label': `${label}, slider` });
  slider.value = end;
  slider.addEventListener('input', () => {
    number.value = Number(slider.value) === end ? OPEN : slider.value;
  });
  number.addEventListener('input', () => {
    slider.value = number.value === OPEN ? end : number.value;
  });
  const unit = make('span', { class: 'unit', 'aria-hidden': 'true', text: '%' });
  const element = make('fieldset', {}, make('legend', { text: label }), make('div', {}, slider, number, unit));
  const read = () => (number.value === OPEN || Number.isNaN(number.valueAsNumber) ? null : number.valueAsNumber / 100);
  return { element, read, clear: () => { number.value = OPEN; slider.value = end; } };
}

function cleared(controls, changed) {
  for (const control of Object.values(controls)) if (control && control.clear) control.clear();
  changed();
}

function settings(controls) {
  const { target, tasks, length, width, maxAdded, minAccuracy } = controls;
  return {
    target: Number(target.read()),
    tasks: Number(tasks.read()),
    length: length.read() === OPEN ? null : Number(length.read()),
    width: width.read(),
    maxAdded: maxAdded.read(),
    minAccuracy: minAccuracy && minAccuracy.read(),
  };
}

// Points that are looked at, limits aside.
function lookedAt(data, now) {
  return data.points.filter((point) =>
    point.target === now.target && point.tasks === now.tasks && likePoint(point, now));
}

function likePoint(point, now) {
  if (now.length !== null && point.layers.length !== now.length) return false;
  return !now.width || point.pruned === (now.width === 'pruned');
}

function keeps(point, now) {
  if (now.maxAdded !== null && point.added[0] > now.maxAdded) return false;
  return now.minAccuracy === null || (point.accuracy !== null && point.accuracy[0] >= now.minAccuracy);
}
