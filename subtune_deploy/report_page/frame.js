// The frame of the scatter: where points stand in it, its axes, limits and the lines to compare with.

const MARGIN = { left: 52, right: 18, top: 30, bottom: 48 };

// Where a point stands, in units of the data, and its intervals; forks of one block stand beside each other by length.
function placed(data, point, lengths) {
  if (data.accuracy) {
    return { x: point.added[0], y: point.accuracy[0], across: point.added, up: point.accuracy };
  }
  const first = point.layers.length ? point.layers[0] : 0;
  const aside = (lengths.indexOf(point.layers.length) - (lengths.length - 1) / 2) / Math.max(lengths.length, 3);
  return { x: first + 0.8 * aside, y: point.added[0], across: null, up: point.added };
}

function framed(data, view, spots, width, height) {
  const blocks = [0.5, data.stages.of.length + 0.5];
  const across = data.accuracy ? [0, ...spots.flatMap((spot) => bounds(spot.across))] : blocks;
  if (!data.accuracy && spots.some((spot) => spot.x < 0.5)) across[0] = -0.5;
  const up = spots.flatMap((spot) => bounds(spot.up));
  if (data.accuracy && data.accuracy.head) up.push(data.accuracy.head[0]);
  if (!data.accuracy) up.push(0);
  const wide = padded(across, data.accuracy ? 0.04 : 0);
  const tall = padded(up, 0.05);
  return {
    width, height, wide, tall,
    left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom,
    x: linear(wide, [MARGIN.left, width - MARGIN.right]),
    y: linear(tall, [height - MARGIN.bottom, MARGIN.top]),
  };
}

function bounds(interval) {
  return interval.filter((each) => each !== null);
}

function padded(values, share) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!(high > low)) return Number.isFinite(low) ? [low - 0.05, low + 0.05] : [0, 1];
  return [low - (high - low) * share, high + (high - low) * share];
}

function axes(data, view, frame) {
  const found = [];
  const up = ticks(...frame.tall, 8);
  const places = decimals(up.map((each) => 100 * each));
  for (const value of up) {
    const y = frame.y(value);
    found.push(draw('line', { class: 'grid', x1: frame.left, x2: frame.right, y1: y, y2: y }));
    const text = plainPercent(value, places);
    found.push(draw('text', { class: 'tick', x: frame.left - 8, y: y + 4, 'text-anchor': 'end', text }));
  }
  for (const { value, text } of acrossTicks(data, frame)) {
    const x = frame.x(value);
    found.push(draw('line', { class: 'rule', x1: x, x2: x, y1: frame.bottom, y2: frame.bottom + 4 }));
    found.push(draw('text', { class: 'tick', x, y: frame.bottom + 18, 'text-anchor': 'middle', text }));
  }
  const middle = (frame.left + frame.right) / 2;
  found.push(
    draw('line', { class: 'rule', x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
    draw('text', { class: 'axis', x: middle, y: frame.height - 8, 'text-anchor': 'middle', text: fitted(view.across, frame) }),
    draw('text', { class: 'axis', x: 4, y: 14, text: fitted(view.up, frame) }),
  );
  return found;
}

// A name of an axis that is longer than the figure is cut.
function fitted(text, frame) {
  const room = Math.floor((frame.width - 8) / 6.6);
  return text.length > room ? `${text.slice(0, room - 1)}\u2026` : text;
}

function acrossTicks(data, frame) {
  const room = (frame.right - frame.left) / (data.accuracy ? 70 : 24);
  const [low, high] = frame.wide;
  if (data.accuracy) {
    const found = ticks(low, high, Math.max(3, Math.min(9, room)));
    const places = decimals(found.map((each) => 100 * each));
    return found.map((value) => ({ value, text: plainPercent(value, places) }));
  }
  const every = Math.max(1, Math.ceil((high - low) / room));
  const found = [];
  for (let n = Math.ceil(low); n <= high; n += every) found.push({ value: n, text: n ? `${n}` : 'head' });
  return found;
}

// What lies outside the limits, and what forks are compared with: the base, and the head alone.
function shades(data, view, frame) {
  const found = [];
  const shade = (x, y, width, height) =>
    width > 0 && height > 0 && found.push(draw('rect', { class: 'outside', x, y, width, height }));
  const inside = (value, low, high) => Math.max(low, Math.min(high, value));
  const { left, right, top, bottom } = frame;
  if (data.accuracy) {
    const edge = view.maxAdded === null ? right : inside(frame.x(view.maxAdded), left, right);
    const level = view.minAccuracy === null ? bottom : inside(frame.y(view.minAccuracy), top, bottom);
    shade(edge, top, right - edge, bottom - top);
    shade(left, level, edge - left, bottom - level);
    const x = frame.x(0);
    found.push(draw('line', { class: 'reference', x1: x, x2: x, y1: top, y2: bottom }));
  } else if (view.maxAdded !== null) shade(left, top, right - left, inside(frame.y(view.maxAdded), top, bottom) - top);
  const level = levelOf(data);
  if (level === null) return found;
  return [...found, draw('line', { class: 'reference', x1: left, x2: right, y1: frame.y(level), y2: frame.y(level) })];
}

// Up the axis: the head alone, or the base where added latency goes up.
function levelOf(data) {
  if (!data.accuracy) return 0;
  return data.accuracy.head && data.accuracy.head[0];
}

// Names of the lines that forks are compared with, over the points.
function asides(data, frame) {
  const name = (x, y, anchor, text) => draw('text', { class: 'aside', x, y, 'text-anchor': anchor, text });
  const [level, base] = [levelOf(data), 'base alone, 0\u2009%'];
  const found = data.accuracy ? [name(frame.x(0) + 5, frame.bottom - 7, 'start', base)] : [];
  if (level !== null) found.push(name(frame.right, frame.y(level) - 5, 'end', data.accuracy ? 'the head alone' : base));
  return found;
}
