// What is where, and what happens when something is chosen.

function main() {
  const data = JSON.parse(byId('data').textContent);
  byId('title').textContent = data.title;
  byId('summary').textContent = summary(data);
  const state = { data, pinned: null };
  state.scatter = makeScatter(data, byId('scatter'), {
    pointed: (point) => show(state, point || state.pinned),
    picked: (point, byKey) => pick(state, point, byKey),
    spoken: (point) => say(sentence(data, point)),
  });
  const opens = (point) => pick(state, point, true);
  state.table = makeTable(byId('points'), 'All points within the limits', pointColumns(data), opens);
  state.sides = data.targets.length > 1 && makeTable(byId('targets'), 'Forks on several targets', sideColumns(data));
  byId('targets').hidden = !state.sides;
  state.read = makeLimits(data, byId('limits'), () => update(state));
  writeNotes(data);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => update(state));
  update(state);
}

function summary(data) {
  const targets = data.targets.map(({ label }) => label).join(', ');
  const by = data.accuracy ? ` Accuracy is of ${data.accuracy.of}.` : '';
  return `${statuses(data)}. ${plural(data.targets.length, 'target')}: ${targets}.${by}`;
}

function statuses(data) {
  const count = (status) => data.points.filter((point) => point.status === status).length;
  return ['measured', 'predicted', 'not run on hardware']
    .map((status) => [count(status), status])
    .filter(([found]) => found)
    .map(([found, status]) => `${plural(found, 'point')} ${status}`)
    .join(', ');
}

// All that depends on limits and filters.
function update(state) {
  const { data } = state;
  const now = state.read();
  const seen = lookedAt(data, now);
  const drawn = data.accuracy ? seen.filter((point) => point.accuracy) : seen;
  const kept = seen.filter((point) => keeps(point, now));
  const found = data.accuracy ? choose(drawn, now.maxAdded, now.minAccuracy) : cheapest(seen, now.maxAdded);
  const best = data.accuracy ? front(drawn) : [];
  Object.assign(state, { now, found, best });
  const view = { points: drawn, kept: new Set(kept), best: new Set(best), bend: knee(best), chosen: found.point };
  showScatter(state.scatter, { ...now, ...view, ...wording(data, now, drawn) });
  showTable(state.table, kept, found.point);
  if (state.sides) showTable(state.sides, sides(data, now));
  tellChoice(state, kept.length, seen.length);
  writeLegend(data, drawn, view);
  byId('caption').textContent = captionOf(data, drawn);
  if (state.pinned && !seen.includes(state.pinned)) state.pinned = null;
  show(state, state.pinned);
}

function cheapest(points, maxAdded) {
  const order = [...points].sort((a, b) => a.added[0] - b.added[0]);
  if (!order.length) return { point: null, why: 'there is no fork' };
  if (maxAdded !== null && order[0].added[0] > maxAdded) {
    const told = `the cheapest, ${order[0].fork}, adds ${plainPercent(order[0].added[0])}`;
    return { point: null, why: `no fork adds at most ${plainPercent(maxAdded)}: ${told}` };
  }
  return { point: order[0], why: 'which fork is best cannot be said without accuracies' };
}

function wording(data, now, drawn) {
  const added = `added latency of ${plural(now.tasks, 'task')} on ${data.targets[now.target].label}`;
  const [up, across] = data.accuracy ? [`accuracy on ${data.accuracy.of}`, added] : [added, 'first block of the fork'];
  byId('figure-title').textContent = data.accuracy
    ? 'Accuracy against added latency' : 'Added latency by where the fork begins';
  const keys = 'Arrow keys walk from point to point, Enter opens details, Escape closes them.';
  const label = `${up} by ${across}, ${plural(drawn.length, 'point')}. ${keys} The table below holds the same points.`;
  return { up, across, label };
}

function captionOf(data, drawn) {
  const arms = drawn.length <= FEW ? '' : ', drawn for the front alone';
  const hollow = drawn.some((point) => point.status !== 'measured')
    ? ' Hollow points were not measured; those with a stroke not run on hardware.' : '';
  return `Bars are 95\u2009% intervals${arms}.${hollow} Point at a fork, tap it, or walk there with the arrow keys.`;
}

function tellChoice(state, kept, seen) {
  const { found, data } = state;
  const counted = `${kept.toLocaleString('en')} of ${plural(seen, 'fork')} within the limits. `;
  const text = found.point ? chosenText(data, found.point) : [make('strong', { text: `${found.why}. ` })];
  const why = found.point ? `${found.why[0].toUpperCase()}${found.why.slice(1)}. ` : '';
  byId('choice').replaceChildren(...text, make('span', { class: 'muted', text: why + counted }));
}

function chosenText(data, point) {
  return [data.accuracy ? 'Choice: ' : 'Cheapest: ', make('strong', { text: point.name }), ` \u2013 ${phrase(data, point)}. `];
}

function phrase(data, point) {
  const times = `${milliseconds(point.graph[0])} instead of ${milliseconds(point.base[0])}`;
  const right = point.accuracy ? `accuracy ${withInterval(point.accuracy)}, ` : '';
  return `${right}added latency ${addedBy(point)}, ${times}`;
}

function sentence(data, point) {
  return `Fork ${point.fork}, ${phrase(data, point)}, ${point.status}`;
}

function say(text) {
  byId('spoken').textContent = text;
}

function show(state, point) {
  const shown = point || state.found.point;
  showDetails(state.data, byId('details'), shown, shown && reason(state, shown));
}

function reason({ data, found, best }, point) {
  if (point === found.point) return data.accuracy ? `the choice: ${found.why}` : found.why;
  if (best.includes(point)) return 'on the front: no fork beats it in both';
  if (!data.accuracy || !point.accuracy) return data.accuracy ? 'timed, not trained' : 'pointed at';
  const rivals = openRivals(point, best).map((each) => each.name);
  const beaten = best.filter((each) => dominates(each, point)).map((each) => each.name);
  const names = (list) => list.slice(0, 3).join('; ') + (list.length > 3 ? ' and others' : '');
  return rivals.length ? `beaten by ${names(rivals)}, but not beyond the intervals` : `beaten by ${names(beaten)}`;
}

function pick(state, point, byKey) {
  state.pinned = point;
  state.scatter.active = point;
  ring(state.scatter);
  show(state, point);
  if (!byKey || !point) return;
  byId('details-title').focus({ preventScroll: true });
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  byId('details').scrollIntoView({ block: 'nearest', behavior: calm ? 'auto' : 'smooth' });
}

function writeLegend(data, drawn, view) {
  const key = (mark, text) => make('span', { class: 'key' }, mark, text);
  const used = new Set(drawn.filter((point) => point.layers.length).map((point) => stageOf(data, point)));
  const dots = data.stages.names.map((name, stage) => {
    const dot = make('i', { class: 'dot' });
    dot.style.setProperty('--mine', stageColour(data, stage));
    return used.has(stage) ? key(dot, name) : null;
  });
  const sizes = new Set(data.accuracy ? [] : drawn.map((point) => Math.min(SHAPES.length, point.layers.length)));
  sizes.delete(0);
  const sized = (n) => key(glyph(n), n === SHAPES.length ? `${n} blocks or more` : plural(n, 'block'));
  const shapes = sizes.size > 1 ? [...sizes].sort().map(sized) : [];
  const lines = [
    view.best.size > 1 ? key(make('i', { class: 'dash' }), 'not dominated') : null,
    view.bend ? key(make('i', { class: 'open' }), 'knee') : null,
    view.chosen ? key(make('i', { class: 'asterisk', text: '\u2605' }), data.accuracy ? 'choice' : 'cheapest') : null,
  ];
  byId('legend').replaceChildren(...[...dots, ...shapes, ...lines].filter(Boolean));
}

function glyph(length) {
  return make('i', { class: 'asterisk plainer', text: ['\u25cf', '\u25a0', '\u25b2', '\u25c6'][length - 1] });
}

function pointColumns(data) {
  const told = (point) => (point.accuracy ? withInterval(point.accuracy) : '\u2013');
  const columns = [
    { label: 'Fork', words: true, value: (point) => point.fork, text: (point) => point.fork },
    { label: 'Added', value: (point) => point.added[0], text: addedBy },
    { label: 'Accuracy', value: (point) => point.accuracy && point.accuracy[0], text: told },
    { label: 'Base', narrow: true, value: (point) => point.base[0], text: (point) => milliseconds(point.base[0]) },
    { label: 'Graph', narrow: true, value: (point) => point.graph[0], text: (point) => milliseconds(point.graph[0]) },
    { label: 'Graph, p99', narrow: true, value: (point) => point.graph[3], text: (point) => milliseconds(point.graph[3]) },
    { label: 'Doubts', narrow: true, value: (point) => point.warnings.length, text: (point) => `${point.warnings.length}` },
    { label: 'Status', words: true, narrow: true, value: (point) => point.status, text: (point) => point.status },
  ];
  return columns.filter(({ label }) => data.accuracy || label !== 'Accuracy');
}

// Forks that several targets have, by target.
function sides(data, now) {
  const found = new Map();
  for (const point of data.points) {
    if (point.tasks !== now.tasks || !likePoint(point, now)) continue;
    const key = sameFork(point);
    if (!found.has(key)) found.set(key, { fork: point.fork, by: new Map() });
    found.get(key).by.set(point.target, point);
  }
  return [...found.values()].filter((each) => each.by.size > 1);
}

function sideColumns(data) {
  const of = (index, text) => (row) => (row.by.has(index) ? text(row.by.get(index)) : null);
  const shown = (index, text) => (row) => of(index, text)(row) || '\u2013';
  const columns = data.targets.flatMap(({ label }, index) => [
    { label: `${label}: ratio`, value: of(index, (point) => point.added[0]), text: shown(index, ratio) },
    { label: 'base and graph', narrow: true, value: of(index, (point) => point.graph[0]), text: shown(index, bothTimes) },
  ]);
  return [{ label: 'Fork', words: true, value: (row) => row.fork, text: (row) => row.fork }, ...columns];
}

function ratio(point) {
  const [value, low, high] = point.added;
  const half = low === null || high === null ? '?' : Math.max(high - value, value - low).toFixed(3);
  return `${about(point)}${(1 + value).toFixed(3)} ± ${half}`;
}

function bothTimes(point) {
  return `${milliseconds(point.base[0])}, ${milliseconds(point.graph[0])}`;
}

function writeNotes(data) {
  const titled = (title, lines) =>
    make('div', {}, make('h3', { text: title }), make('ul', {}, ...lines.map((text) => make('li', { text }))));
  const drawn = data.points.every((point) => point.status === 'measured')
    ? ['No point is predicted, and none is of a target that was not run.']
    : [
        `${statuses(data)}.`,
        'Numbers behind \u2248 were not measured.',
        'Predicted latencies come from a model, and their intervals are the model\u2019s.',
        'What was not run on hardware is a calculation.',
      ];
  byId('notes').append(make('div', { class: 'notes' },
    ...data.notes.map(({ title, lines }) => titled(title, lines)),
    titled('Predicted, or not run on hardware', drawn),
    ...data.targets.map(({ label, facts: lines }) => titled(`Target ${label}`, lines)),
  ));
}

main();
