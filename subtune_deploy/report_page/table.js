// A table that sorts by any column and shows a page of rows at a time.

const ROWS = 25;

// columns: [{label, value(row), text(row), words, narrow}]; words: to the left; narrow: left out on a phone.
function makeTable(container, caption, columns, picked = null) {
  const table = { columns, picked, rows: [], sorted: columns.length > 1 ? 1 : 0, down: false, page: 0, chosen: null };
  table.heads = columns.map((column, index) => {
    const button = make('button', { type: 'button', text: column.label, onclick: () => sortBy(table, index) });
    return make('th', { scope: 'col', class: classes(column) }, button);
  });
  table.body = make('tbody');
  table.told = make('span', { role: 'status' });
  table.back = make('button', { type: 'button', text: 'Previous', onclick: () => turn(table, -1) });
  table.on = make('button', { type: 'button', text: 'Next', onclick: () => turn(table, 1) });
  const head = make('thead', {}, make('tr', {}, ...table.heads));
  const sheet = make('table', {}, make('caption', { class: 'spoken', text: caption }), head, table.body);
  container.append(
    make('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': caption }, sheet),
    make('p', { class: 'pager small muted' }, table.back, table.told, table.on),
  );
  return table;
}

function classes(column) {
  return [column.words ? 'words' : '', column.narrow ? 'roomy' : ''].join(' ').trim() || null;
}

function showTable(table, rows, chosen = null) {
  table.rows = rows;
  table.chosen = chosen;
  table.page = Math.min(table.page, Math.max(0, Math.ceil(rows.length / ROWS) - 1));
  fill(table);
}

function sortBy(table, index) {
  table.down = table.sorted === index && !table.down;
  table.sorted = index;
  table.page = 0;
  fill(table);
}

function turn(table, step) {
  table.page += step;
  fill(table);
}

// Numbers by size, words by the numbers in them; what is not known comes last either way.
function compared(one, other) {
  if (one === null || other === null) return one === other ? 0 : null;
  if (typeof one === 'number') return one - other;
  return String(one).localeCompare(String(other), 'en', { numeric: true });
}

function ordered(table) {
  const { value } = table.columns[table.sorted];
  const sign = table.down ? -1 : 1;
  return table.rows.map((row) => [value(row), row]).sort(([a], [b]) => {
    const found = compared(a, b);
    return found === null ? (a === null) - (b === null) : sign * found;
  }).map(([, row]) => row);
}

function fill(table) {
  const { page, rows } = table;
  const last = Math.max(0, Math.ceil(rows.length / ROWS) - 1);
  table.body.replaceChildren(...ordered(table).slice(page * ROWS, (page + 1) * ROWS).map((row) => line(table, row)));
  table.heads.forEach((head, index) => {
    if (index === table.sorted) head.setAttribute('aria-sort', table.down ? 'descending' : 'ascending');
    else head.removeAttribute('aria-sort');
  });
  const end = Math.min(rows.length, (page + 1) * ROWS);
  const told = `${page * ROWS + 1}\u2013${end} of ${rows.length.toLocaleString('en')}`;
  table.told.textContent = rows.length ? told : 'nothing to show';
  table.back.disabled = page === 0;
  table.on.disabled = page >= last;
  table.back.hidden = table.on.hidden = last === 0;
}

function line(table, row) {
  const cells = table.columns.map((column, index) => {
    if (index) return make('td', { class: classes(column), text: column.text(row) });
    const link = { type: 'button', class: 'link', text: column.text(row), onclick: () => table.picked(row) };
    const inside = table.picked ? make('button', link) : column.text(row);
    return make('th', { scope: 'row', class: classes(column) }, inside);
  });
  return make('tr', { class: row === table.chosen ? 'chosen' : null }, ...cells);
}
