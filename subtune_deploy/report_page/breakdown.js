// What a graph asks of the machine, column by column: what the base asks, and what the fork adds on top.

const KINDS = [
  { name: 'compute', unit: 'MACs', of: ([macs], { batch }) => macs * batch },
  { name: 'read and written', unit: 'B', of: ([, moved, weights], { batch, width }) => (moved * batch + weights) * width },
  { name: 'launches', unit: '', of: ([, , , launches]) => launches },
];
const ROW = { width: 380, height: 66, top: 20, label: 18, gap: 12 };
const WIDTHS = { stem: 2, head: 2, 'between blocks': 0.6 }; // in widths of a block
const PARTS = ['prefix', 'fork', 'suffix'];
const NOTHING = [0, 0, 0, 0];

function breakdownOf(data, point) {
  if (data.costs.missing || point.cost === null) {
    const why = data.costs.missing || 'this point was not counted';
    return make('p', { class: 'muted small', text: `The breakdown by block is missing: ${why}.` });
  }
  const target = data.targets[point.target];
  const parts = partsOf(data.costs.columns, point);
  const edges = edgesOf(data.costs.columns);
  const bars = KINDS.map((kind, row) => barsOf(data, point, target, kind, row, edges));
  const height = ROW.top + KINDS.length * (ROW.height + ROW.gap) + 14;
  const spoken = `Cost by block: ${spokenCosts(data, point, target)}`;
  const shape = draw('svg', { viewBox: `0 0 ${ROW.width} ${height}`, role: 'img', class: 'plot', 'aria-label': spoken });
  shape.append(...bands(parts, edges, height), ...bars.flat(), ...numbers(data.costs.columns, edges, height));
  return make('figure', {}, shape, partTable(data, point, target, parts));
}

function partsOf(columns, point) {
  const own = columns.map(([, block]) => block !== null && point.layers.includes(block));
  const first = own.indexOf(true);
  const until = first < 0 ? columns.length - 1 : first; // without a fork the head alone is the task's own
  return own.map((mine, n) => (mine ? 'fork' : n < until ? 'prefix' : 'suffix'));
}

// Where each column begins, and where the last one ends.
function edgesOf(columns) {
  const edges = [0];
  for (const [name] of columns) edges.push(edges[edges.length - 1] + (WIDTHS[name] || 1));
  return edges.map(linear([0, edges[edges.length - 1]], [0, ROW.width]));
}

// Behind the columns of the fork a tint, and over each part its name.
function bands(parts, edges, height) {
  const found = [];
  const text = (x, anchor, part) =>
    found.push(draw('text', { class: 'tick', x, y: 11, 'text-anchor': anchor, text: part }));
  for (let from = 0, to = 0; from < parts.length; from = to) {
    while (to < parts.length && parts[to] === parts[from]) to += 1;
    const [left, width] = [edges[from], edges[to] - edges[from]];
    if (parts[from] === 'fork') found.push(draw('rect', { class: 'band', x: left, y: 0, width, height: height - 14 }));
  }
  const [first, last] = [edges[parts.indexOf('fork')], edges[parts.lastIndexOf('fork') + 1]];
  const middle = Math.max(14, Math.min(ROW.width - 14, (first + last) / 2));
  if (parts.includes('fork')) text(middle, 'middle', 'fork');
  if (!(middle < 60)) text(0, 'start', 'prefix');
  if (!(middle > ROW.width - 60) && parts.includes('suffix')) text(ROW.width, 'end', 'suffix');
  return found;
}

function addedAt(data, point, column) {
  return data.costs.added[point.cost][column] || NOTHING;
}

function sums(data, point, target, kind, keep = () => true) {
  const chosen = data.costs.base.map((_, n) => n).filter(keep);
  const base = chosen.reduce((sum, n) => sum + kind.of(data.costs.base[n], target), 0);
  return [base, chosen.reduce((sum, n) => sum + kind.of(addedAt(data, point, n), target), 0)];
}

function barsOf(data, point, target, kind, row, edges) {
  const above = ROW.top + row * (ROW.height + ROW.gap);
  const [top, bottom] = [above + ROW.label, above + ROW.height];
  const base = data.costs.base.map((costs) => kind.of(costs, target));
  const added = base.map((_, n) => kind.of(addedAt(data, point, n), target));
  const y = linear([0, Math.max(1, ...base.map((each, n) => each + Math.max(0, added[n])))], [0, bottom - top]);
  const bar = (name, n, from, size) => {
    const across = { x: edges[n] + 1, width: Math.max(1, edges[n + 1] - edges[n] - 2) };
    return size > 0 && draw('rect', { class: `bars ${name}`, ...across, y: bottom - y(from + size), height: y(size) });
  };
  const found = base.flatMap((_, n) => [bar('base', n, 0, base[n]), bar('graph', n, base[n], added[n])]);
  const [alone, more] = sums(data, point, target, kind);
  const text = `${kind.name}: ${scaled(alone, kind.unit)} ${signed(more, kind.unit)}${share(more, alone)}`;
  return [
    ...found.filter(Boolean),
    draw('line', { class: 'rule', x1: 0, x2: ROW.width, y1: bottom, y2: bottom }),
    draw('text', { class: 'axis', x: 0, y: above + 12, text }),
  ];
}

function signed(value, unit) {
  return `${value < 0 ? '' : '+'}\u2009${scaled(value, unit)}`;
}

function share(more, alone) {
  return alone ? ` (${signedPercent(more / alone, 0)})` : '';
}

function numbers(columns, edges, height) {
  const every = columns.length > 30 ? Math.ceil(columns.length / 16) : 1;
  return columns.flatMap(([name, block], n) => {
    if (block === null ? name === 'between blocks' : (block - 1) % every) return [];
    const x = (edges[n] + edges[n + 1]) / 2;
    const text = block === null ? name : `${block}`;
    return [draw('text', { class: 'tick', x, y: height - 2, 'text-anchor': 'middle', text })];
  });
}

function spokenCosts(data, point, target) {
  return KINDS.map((kind) => {
    const [alone, more] = sums(data, point, target, kind);
    return `${kind.name} ${scaled(alone, kind.unit)}, the fork adds ${scaled(more, kind.unit)}`;
  }).join('; ');
}

function partTable(data, point, target, parts) {
  const head = ['', ...KINDS.map((kind) => kind.name)].map((text) => make('th', { scope: 'col', text }));
  const rows = PARTS.filter((part) => parts.includes(part)).map((part) => {
    const cells = KINDS.map((kind) => {
      const [alone, more] = sums(data, point, target, kind, (n) => parts[n] === part);
      return make('td', { text: `${scaled(alone, kind.unit)} ${signed(more, kind.unit)}` });
    });
    return make('tr', {}, make('th', { scope: 'row', text: part }), ...cells);
  });
  const table = plainTable(head, rows);
  return make('details', {}, make('summary', { text: 'The same by part: base, and what the fork adds' }), table);
}
