// Raw samples of base and graph, counted in equal bins when the page was made.

const PLOT = { width: 380, height: 112, left: 2, right: 378, top: 6, bottom: 92 };

function histogramOf(data, point) {
  const { samples } = point;
  if (!samples) return make('p', { class: 'muted small', text: 'There are no samples of this point.' });
  const x = linear([samples.low, samples.high], [PLOT.left, PLOT.right]);
  const most = Math.max(1, ...samples.base, ...samples.graph);
  const y = linear([0, most], [PLOT.bottom, PLOT.top]);
  const told = `Histogram of raw samples: base ${milliseconds(point.base[0])}, graph ${milliseconds(point.graph[0])}`;
  const shape = draw('svg', { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: 'img', class: 'plot', 'aria-label': told });
  shape.append(
    draw('path', { class: 'bars base', d: steps(samples.base, x, y, samples) }),
    draw('path', { class: 'bars graph', d: steps(samples.graph, x, y, samples) }),
    draw('line', { class: 'rule', x1: PLOT.left, x2: PLOT.right, y1: PLOT.bottom, y2: PLOT.bottom }),
    ...middles(point, x, samples),
    ...times(samples, x),
  );
  const beyond = samples.beyond[0] + samples.beyond[1];
  const count = `${plural(point.rounds, 'run')} of each`;
  const slow = beyond ? `; ${beyond} slower than ${milliseconds(samples.high)} not drawn` : '';
  return make('figure', {}, keys(point), shape, make('figcaption', { class: 'muted small', text: count + slow }));
}

function steps(counts, x, y, { low, high }) {
  const edge = (n) => x(low + ((high - low) * n) / counts.length).toFixed(1);
  const tops = counts.map((count, n) => `V${y(count).toFixed(1)}H${edge(n + 1)}`);
  return `M${edge(0)},${PLOT.bottom}${tops.join('')}V${PLOT.bottom}Z`;
}

function middles(point, x, { low, high }) {
  return ['base', 'graph']
    .filter((name) => point[name][0] >= low && point[name][0] <= high)
    .map((name) => {
      const at = x(point[name][0]);
      return draw('line', { class: `middle ${name}`, x1: at, x2: at, y1: PLOT.top - 4, y2: PLOT.bottom });
    });
}

function times({ low, high }, x) {
  const found = ticks(low, high, 5).filter((value) => x(value) > 12 && x(value) < PLOT.right - 26);
  const places = decimals(found);
  return found.map((value, n) => {
    const text = value.toFixed(places) + (n === found.length - 1 ? '\u2009ms' : '');
    return draw('text', { class: 'tick', x: x(value), y: PLOT.bottom + 15, 'text-anchor': 'middle', text });
  });
}

function keys(point) {
  const key = (name, text) => make('span', { class: 'key' }, make('i', { class: `swatch ${name}` }), text);
  const tasks = `with ${plural(point.tasks, 'task')}`;
  return make('p', { class: 'legend' },
    key('base', `base alone, ${milliseconds(point.base[0])}`),
    key('graph', `${tasks}, ${milliseconds(point.graph[0])}`));
}
