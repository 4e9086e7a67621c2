// Elements and scales. Text is only ever set as text.

const SVG = 'http://www.w3.org/2000/svg';

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'text') element.textContent = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// A table without sorting, that scrolls by itself where it is too wide.
function plainTable(head, rows) {
  const table = make('table', { class: 'plain' }, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows));
  return make('div', { class: 'wide' }, table);
}

function byId(id) {
  return document.getElementById(id);
}

// Round steps that cover low..high with about `count` ticks.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(n * step);
  return found;
}

// As many decimals as the ticks need.
function decimals(values) {
  const fits = (n) => values.every((value) => Math.abs(value - Number(value.toFixed(n))) < 1e-9);
  return [0, 1, 2, 3].find(fits) ?? 4;
}

function linear([low, high], [from, to]) {
  const factor = high > low ? (to - from) / (high - low) : 0;
  return (value) => from + (value - low) * factor;
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function isDark() {
  return matchMedia('(prefers-color-scheme: dark)').matches;
}

// Of a stage; black would not be seen on a dark page.
function stageColour(data, stage) {
  const found = data.stages.colours[stage % data.stages.colours.length];
  return found === '#000000' && isDark() ? '#e8e8e8' : found;
}

function stageOf(data, point) {
  return point.layers.length ? data.stages.of[point.layers[0] - 1] || 0 : 0;
}

function pointColour(data, point) {
  return point.layers.length ? stageColour(data, stageOf(data, point)) : cssColour('--muted');
}
