// The scatter: axes and lines in SVG, points on a canvas between them, so that thousands stay light.

const MARGIN = { left: 52, right: 18, top: 30, bottom: 48 };
const FEW = 120; // beyond so many points, intervals are drawn for the front alone
const NEAR = 22; // pixels from a point at which the pointer finds it
const SHAPES = ['circle', 'square', 'triangle', 'diamond']; // by length of the fork, where blocks are the axis

// Where a point stands: [x, y] in data units, with the intervals that it has.
function placed(data, point, spread) {
  if (data.accuracy) {
    return { x: point.added[0], y: point.accuracy[0], across: point.added, up: point.accuracy };
  }
  const first = point.layers.length ? point.layers[0] : 0;
  const aside = Math.max(-1, Math.min(1, (point.layers.length - 1 - (spread - 1) / 2) / Math.max(spread, 3)));
  return { x: first + 0.8 * aside, y: point.added[0], across: null, up: point.added };
}

function makeScatter(data, container, heard) {
  const layer = { class: 'layer', 'aria-hidden': 'true' };
  const back = draw('svg', layer);
  const canvas = make('canvas', layer);
  const fore = draw('svg', {
    class: 'layer fore', tabindex: 0, role: 'application', 'aria-roledescription': 'scatter plot',
  });
  container.append(back, canvas, fore);
  const scatter = { data, container, back, canvas, fore, heard, view: null, spots: [], active: null };
  listen(scatter);
  new ResizeObserver(() => scatter.view && render(scatter)).observe(container);
  return scatter;
}

function showScatter(scatter, view) {
  scatter.view = view;
  scatter.fore.setAttribute('aria-label', view.label);
  if (!view.points.includes(scatter.active)) scatter.active = null;
  render(scatter);
}

function render(scatter) {
  const { view, data } = scatter;
  const width = Math.max(240, scatter.container.clientWidth);
  const height = Math.round(Math.max(300, Math.min(480, width * 0.66)));
  const spread = Math.max(1, ...scatter.view.points.map((point) => point.layers.length));
  scatter.spread = Math.min(spread, 4);
  const spots = view.points.map((point) => ({ point, ...placed(data, point, scatter.spread) }));
  scatter.frame = framed(data, view, spots, width, height);
  for (const spot of spots) {
    spot.px = scatter.frame.x(spot.x);
    spot.py = scatter.frame.y(spot.y);
  }
  scatter.spots = spots;
  scatter.container.style.height = `${height}px`;
  for (const each of [scatter.back, scatter.fore]) each.setAttribute('viewBox', `0 0 ${width} ${height}`);
  scatter.back.replaceChildren(...axes(data, view, scatter.frame), ...shades(data, view, scatter.frame));
  paint(scatter);
  decorate(scatter);
}

function framed(data, view, spots, width, height) {
  const across = data.accuracy ? [0, ...spots.flatMap((spot) => bounds(spot.across))] : [0.5, data.stages.of.length + 0.5];
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
  const up = ticks(...frame.tall, 6);
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
    draw('text', { class: 'axis', x: middle, y: frame.height - 8, 'text-anchor': 'middle', text: view.across }),
    draw('text', { class: 'axis', x: 4, y: 14, text: view.up }),
  );
  return found;
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
  const shade = (x1, y1, x2, y2) =>
    x2 > x1 && y2 > y1 && found.push(draw('rect', { class: 'outside', x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
  const inside = (value, low, high) => Math.max(low, Math.min(high, value));
  const { left, right, top, bottom } = frame;
  if (data.accuracy) {
    if (view.maxAdded !== null) shade(inside(frame.x(view.maxAdded), left, right), top, right, bottom);
    if (view.minAccuracy !== null) shade(left, inside(frame.y(view.minAccuracy), top, bottom), right, bottom);
    const x = frame.x(0);
    found.push(draw('line', { class: 'reference', x1: x, x2: x, y1: top, y2: bottom }));
    found.push(draw('text', { class: 'aside', x: x + 5, y: bottom - 7, text: 'base alone, 0\u2009%' }));
    if (data.accuracy.head) found.push(...across(frame, data.accuracy.head[0], 'the head alone'));
  } else {
    if (view.maxAdded !== null) shade(left, top, right, inside(frame.y(view.maxAdded), top, bottom));
    found.push(...across(frame, 0, 'base alone, 0\u2009%'));
  }
  return found;
}

function across(frame, value, text) {
  const y = frame.y(value);
  return [
    draw('line', { class: 'reference', x1: frame.left, x2: frame.right, y1: y, y2: y }),
    draw('text', { class: 'aside', x: frame.right, y: y - 5, 'text-anchor': 'end', text }),
  ];
}

function paint(scatter) {
  const { canvas, frame, view, data, spots } = scatter;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(frame.width * ratio);
  canvas.height = Math.round(frame.height * ratio);
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const paper = cssColour('--paper');
  const colours = new Map();
  const colourOf = (point) => {
    const stage = point.layers.length ? stageOf(data, point) : -1;
    if (!colours.has(stage)) colours.set(stage, pointColour(data, point));
    return colours.get(stage);
  };
  const armed = spots.length <= FEW ? () => true : (spot) => view.best.has(spot.point);
  const dim = (spot) => (view.kept.has(spot.point) ? 1 : 0.22);
  for (const spot of spots) if (armed(spot)) arms(pen, frame, spot, colourOf(spot.point), dim(spot) * 0.55);
  const size = spots.length > 1000 ? 2.6 : spots.length > 200 ? 3.4 : 4.6;
  for (const spot of spots) {
    pen.globalAlpha = dim(spot);
    mark(pen, spot, shapeOf(data, spot.point), size, colourOf(spot.point), paper);
  }
  pen.globalAlpha = 1;
}

function shapeOf(data, point) {
  return data.accuracy ? 'circle' : SHAPES[Math.min(SHAPES.length, Math.max(1, point.layers.length)) - 1];
}

function arms(pen, frame, spot, colour, alpha) {
  pen.globalAlpha = alpha;
  pen.strokeStyle = colour;
  pen.lineWidth = 1.1;
  pen.beginPath();
  if (spot.across) {
    pen.moveTo(spot.across[1] === null ? frame.left : frame.x(spot.across[1]), spot.py);
    pen.lineTo(spot.across[2] === null ? frame.right : frame.x(spot.across[2]), spot.py);
  }
  pen.moveTo(spot.px, spot.up[1] === null ? frame.bottom : frame.y(spot.up[1]));
  pen.lineTo(spot.px, spot.up[2] === null ? frame.top : frame.y(spot.up[2]));
  pen.stroke();
}

// Measured points are filled; predicted ones hollow; those not run on hardware hollow with a stroke through.
function mark(pen, spot, shape, size, colour, paper) {
  pen.beginPath();
  outline(pen, shape, spot.px, spot.py, size);
  const measured = spot.point.status === 'measured';
  pen.fillStyle = measured ? colour : paper;
  pen.strokeStyle = measured ? paper : colour;
  pen.lineWidth = measured ? 0.9 : 1.6;
  pen.fill();
  pen.stroke();
  if (spot.point.status !== 'not run on hardware') return;
  pen.beginPath();
  pen.moveTo(spot.px - size, spot.py + size);
  pen.lineTo(spot.px + size, spot.py - size);
  pen.stroke();
}

function outline(pen, shape, x, y, size) {
  if (shape === 'square') pen.rect(x - size * 0.86, y - size * 0.86, size * 1.72, size * 1.72);
  else if (shape === 'circle') pen.arc(x, y, size, 0, 2 * Math.PI);
  else {
    const corners = shape === 'triangle' ? [[0, -1.15], [1.05, 0.8], [-1.05, 0.8]] : [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]];
    corners.forEach(([dx, dy], index) => pen[index ? 'lineTo' : 'moveTo'](x + dx * size, y + dy * size));
    pen.closePath();
  }
}

// The front as a line, knee, choice, names of the front's forks, and the ring round what is pointed at.
function decorate(scatter) {
  const { fore, spots, view, data } = scatter;
  const spotOf = new Map(spots.map((spot) => [spot.point, spot]));
  const best = [...view.best].map((point) => spotOf.get(point));
  const marks = [];
  if (data.accuracy && best.length > 1) {
    marks.push(draw('polyline', { class: 'front', points: best.map((spot) => `${spot.px},${spot.py}`).join(' ') }));
  }
  const [bend, chosen] = [spotOf.get(view.bend), spotOf.get(view.chosen)];
  if (bend) marks.push(draw('circle', { class: 'knee', cx: bend.px, cy: bend.py, r: 8.5 }));
  if (chosen) marks.push(draw('path', { class: 'star', d: star(chosen.px, chosen.py, 9.5) }));
  scatter.ring = draw('g', { class: 'ring' });
  fore.replaceChildren(...marks, ...names(scatter, chosen ? [chosen, ...best] : best), scatter.ring);
  ring(scatter);
}

function star(x, y, size) {
  const corner = (n) => {
    const [angle, reach] = [(Math.PI * n) / 5 - Math.PI / 2, n % 2 ? size * 0.42 : size];
    return `${(x + reach * Math.cos(angle)).toFixed(1)},${(y + reach * Math.sin(angle)).toFixed(1)}`;
  };
  return `M${Array.from({ length: 10 }, (_, n) => corner(n)).join('L')}Z`;
}

// A name stands where it covers no other name and no star; one that has no room is left to the pointer.
function names(scatter, spots) {
  const { frame } = scatter;
  const taken = scatter.spots.length <= FEW ? scatter.spots.map((spot) => box(spot.px, spot.py, 5)) : [];
  const found = [];
  for (const spot of new Set(spots)) {
    const text = spot.point.name;
    const width = 6.3 * text.length + 4;
    const places = [[9, -7, 'start'], [-9, -7, 'end'], [9, 16, 'start'], [-9, 16, 'end'], [0, -14, 'middle'], [0, 22, 'middle']];
    for (const [dx, dy, anchor] of places) {
      const [x, y] = [spot.px + dx, spot.py + dy];
      const left = anchor === 'start' ? x : anchor === 'end' ? x - width : x - width / 2;
      const area = { left, right: left + width, top: y - 10, bottom: y + 3 };
      if (area.left < frame.left || area.right > frame.width || area.top < 18 || area.bottom > frame.bottom) continue;
      if (taken.some((each) => overlap(each, area))) continue;
      taken.push(area);
      found.push(draw('text', { class: 'name', x, y, 'text-anchor': anchor, text }));
      break;
    }
  }
  return found;
}

function box(x, y, size) {
  return { left: x - size, right: x + size, top: y - size, bottom: y + size };
}

function overlap(one, other) {
  return one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
}

function ring(scatter) {
  const spot = scatter.active && scatter.spots.find((each) => each.point === scatter.active);
  if (!spot) return scatter.ring.replaceChildren();
  const text = spot.point.name;
  const side = spot.px > scatter.frame.width / 2 ? 'end' : 'start';
  const x = spot.px + (side === 'end' ? -13 : 13);
  const how = { x, y: spot.py - 11, 'text-anchor': side, text };
  return scatter.ring.replaceChildren(
    draw('circle', { cx: spot.px, cy: spot.py, r: 8 }),
    draw('text', { class: 'halo', ...how }),
    draw('text', { class: 'pointed', ...how }),
  );
}

function pointAt(scatter, point) {
  scatter.active = point;
  ring(scatter);
  scatter.heard.pointed(point);
}

function nearest(scatter, event) {
  const area = scatter.fore.getBoundingClientRect();
  const [x, y] = [event.clientX - area.left, event.clientY - area.top];
  let [found, least] = [null, NEAR ** 2];
  for (const spot of scatter.spots) {
    const far = (spot.px - x) ** 2 + (spot.py - y) ** 2 + (scatter.view.kept.has(spot.point) ? 0 : 40);
    if (far < least) [found, least] = [spot.point, far];
  }
  return found;
}

function listen(scatter) {
  const { fore, heard } = scatter;
  fore.addEventListener('pointermove', (event) => {
    if (event.pointerType === 'touch') return;
    const point = nearest(scatter, event);
    if (point !== scatter.active) pointAt(scatter, point);
  });
  fore.addEventListener('pointerleave', (event) => event.pointerType !== 'touch' && pointAt(scatter, null));
  fore.addEventListener('click', (event) => {
    const point = nearest(scatter, event);
    pointAt(scatter, point);
    heard.picked(point, false);
  });
  fore.addEventListener('keydown', (event) => walked(scatter, event));
}

// Arrows go to the next point in that direction, among those within the limits.
function walked(scatter, event) {
  const { active, heard } = scatter;
  if (event.key === 'Enter' || event.key === ' ') heard.picked(active, true);
  else if (event.key === 'Escape') {
    pointAt(scatter, null);
    heard.picked(null, false);
  } else {
    const next = neighbour(scatter, event.key);
    if (next === undefined) return;
    pointAt(scatter, next);
    heard.spoken(next);
  }
  event.preventDefault();
}

function neighbour(scatter, key) {
  const steps = { ArrowRight: ['px', 1], ArrowLeft: ['px', -1], ArrowUp: ['py', -1], ArrowDown: ['py', 1], Home: ['px', 0], End: ['px', 0] };
  if (!(key in steps)) return undefined;
  const [by, step] = steps[key];
  const kept = scatter.spots.filter((spot) => scatter.view.kept.has(spot.point));
  if (!kept.length) return undefined;
  kept.sort((a, b) => a[by] - b[by] || a.px - b.px || a.py - b.py);
  const here = kept.findIndex((spot) => spot.point === scatter.active);
  if (key === 'Home' || (here < 0 && step >= 0 && key !== 'End')) return kept[0].point;
  if (key === 'End' || here < 0) return kept[kept.length - 1].point;
  return kept[Math.max(0, Math.min(kept.length - 1, here + step))].point;
}
