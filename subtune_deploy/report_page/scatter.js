// The scatter: axes and lines in SVG, points on a canvas between them, so that thousands stay light.

const FEW = 120; // beyond so many points, intervals are drawn for the front alone
const BESIDE = [
  [10, -8, 'start'], [-10, -8, 'end'], [10, 17, 'start'], [-10, 17, 'end'], [0, -14, 'middle'], [0, 23, 'middle'],
]; // where a name may stand, in pixels from its point
const CORNERS = {
  triangle: [[0, -1.15], [1.05, 0.8], [-1.05, 0.8]],
  diamond: [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
};
const SHAPES = ['circle', 'square', 'triangle', 'diamond']; // by length of the fork, where blocks are the axis

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
  const lengths = [...new Set(view.points.map((point) => point.layers.length))].sort((a, b) => a - b);
  const spots = view.points.map((point) => ({ point, ...placed(data, point, lengths) }));
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
  const size = spots.length > 1000 ? 2.4 : spots.length > FEW ? 3.4 : 4.6;
  const look = (spot) => [dim(spot), spot.point.status, colourOf(spot.point)].join();
  const groups = spots.length > FEW ? alike(spots, look) : spots.map((spot) => [spot]);
  for (const group of groups) {
    pen.globalAlpha = dim(group[0]);
    marks(pen, group, size, colourOf(group[0].point), { paper, data });
  }
  pen.globalAlpha = 1;
}

// What looks the same is drawn at one stroke, dim points first.
function alike(spots, look) {
  const groups = new Map();
  for (const spot of spots) {
    const key = look(spot);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(spot);
  }
  return [...groups.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, group]) => group);
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
function marks(pen, group, size, colour, { paper, data }) {
  const { status } = group[0].point;
  const measured = status === 'measured';
  pen.beginPath();
  for (const { point, px, py } of group) outline(pen, shapeOf(data, point), px, py, size);
  pen.fillStyle = measured ? colour : paper;
  pen.strokeStyle = measured ? paper : colour;
  pen.lineWidth = measured ? 0.9 : 1.6;
  pen.fill();
  if (!measured || group.length === 1) pen.stroke();
  if (status !== 'not run on hardware') return;
  pen.beginPath();
  for (const { px, py } of group) {
    pen.moveTo(px - size, py + size);
    pen.lineTo(px + size, py - size);
  }
  pen.stroke();
}

function outline(pen, shape, x, y, size) {
  if (shape === 'square') pen.rect(x - size * 0.86, y - size * 0.86, size * 1.72, size * 1.72);
  else if (shape === 'circle') {
    pen.moveTo(x + size, y);
    pen.arc(x, y, size, 0, 2 * Math.PI);
  } else {
    CORNERS[shape].forEach(([dx, dy], index) => pen[index ? 'lineTo' : 'moveTo'](x + dx * size, y + dy * size));
    pen.closePath();
  }
}

// The front as a line, knee, choice, names of the front's forks, and the ring round what is pointed at.
function decorate(scatter) {
  const { fore, spots, view, data } = scatter;
  const spotOf = new Map(spots.map((spot) => [spot.point, spot]));
  const best = [...view.best].map((point) => spotOf.get(point));
  const marks = asides(data, scatter.frame);
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
    const place = BESIDE.map((each) => beside(spot, text, each)).find(({ area }) =>
      isInside(area, frame) && !taken.some((each) => overlap(each, area)));
    if (!place) continue;
    taken.push(place.area);
    found.push(draw('text', { class: 'name', x: place.x, y: place.y, 'text-anchor': place.anchor, text }));
  }
  return found;
}

function beside(spot, text, [dx, dy, anchor]) {
  const [x, y, width] = [spot.px + dx, spot.py + dy, 6.3 * text.length + 4];
  const left = anchor === 'start' ? x : anchor === 'end' ? x - width : x - width / 2;
  return { x, y, anchor, area: { left, right: left + width, top: y - 10, bottom: y + 3 } };
}

function isInside(area, frame) {
  return area.left >= frame.left && area.right <= frame.width && area.top >= 18 && area.bottom <= frame.bottom;
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
