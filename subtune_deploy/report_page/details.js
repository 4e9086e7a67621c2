// One point in full: what it is, its times, its samples, what its graph asks, and the same fork elsewhere.

function showDetails(data, container, point, why) {
  if (!point) {
    container.replaceChildren(
      make('h2', { id: 'details-title', tabindex: -1, text: 'Details' }),
      make('p', { class: 'muted', text: 'Point at a fork, or walk to one with the arrow keys.' }),
    );
    return;
  }
  container.style.setProperty('--mine', pointColour(data, point));
  container.replaceChildren(
    make('p', { class: 'muted small over', text: why }),
    make('h2', { id: 'details-title', tabindex: -1 }, dotOf(point), `Fork ${point.fork}`),
    facts(data, point),
    ...doubts(data, point),
    make('h3', { text: 'Raw samples' }),
    histogramOf(data, point),
    make('h3', { text: 'What it asks of the machine' }),
    breakdownOf(data, point),
    ...elsewhere(data, point),
  );
}

function dotOf(point) {
  return make('i', { class: point.status === 'measured' ? 'dot' : 'dot hollow' });
}

function facts(data, point) {
  const stage = data.stages.names[stageOf(data, point)];
  const blocks = point.layers.length ? `${point.layers.join(', ')}${stage ? `, from ${stage}` : ''}` : 'none, the head alone';
  const rows = [
    ['Blocks', blocks],
    data.accuracy && ['Accuracy', point.accuracy ? withInterval(point.accuracy) : 'not trained'],
    ['Added latency', addedBy(point)],
    ['Base alone', spanned(point.base)],
    [`With ${plural(point.tasks, 'task')}`, spanned(point.graph)],
    point.samples && ['99th percentile', `${milliseconds(point.base[3])} and ${milliseconds(point.graph[3])}`],
    ['Target', data.targets[point.target].label],
    ['Status', point.started ? `${point.status}, ${point.started.slice(0, 10)}` : point.status],
  ];
  const cells = rows.filter(Boolean).flatMap(([name, text]) => [make('dt', { text: name }), make('dd', { text })]);
  return make('dl', {}, ...cells);
}

function spanned([value, low, high]) {
  const ends = low === null || high === null ? 'no interval' : `${milliseconds(low).split(WIDE)[0]} to ${milliseconds(high)}`;
  return `${milliseconds(value)}, ${ends}`;
}

function doubts(data, point) {
  const lines = point.warnings.map((index) => data.warnings[index]);
  return lines.length ? [make('ul', { class: 'doubts small' }, ...lines.map((text) => make('li', { text })))] : [];
}

// By what a fork is the same on another target.
function sameFork(point) {
  return JSON.stringify([point.fork, point.name, point.tasks]);
}

function elsewhere(data, point) {
  const key = sameFork(point);
  const found = data.targets.length > 1 ? data.points.filter((each) => sameFork(each) === key) : [];
  if (found.length < 2) return [];
  const rows = found.map((each) => make('tr', { class: each === point ? 'chosen' : null },
    make('th', { scope: 'row', class: 'words', text: data.targets[each.target].label }),
    make('td', { text: addedBy(each) }),
    make('td', { text: milliseconds(each.base[0]) }),
    make('td', { text: milliseconds(each.graph[0]) })));
  const head = ['Target', 'Added', 'Base', 'Graph'].map((text) => make('th', { scope: 'col', text }));
  return [make('h3', { text: 'The same fork on other targets' }), plainTable(head, rows)];
}
