// How a point of the scatter is come by: with a pointer, a finger or the arrow keys.

const NEAR = 22; // pixels from a point at which the pointer finds it
const STEPS = {
  ArrowRight: ['px', 1], ArrowLeft: ['px', -1], ArrowUp: ['py', -1], ArrowDown: ['py', 1], Home: ['px', 0], End: ['px', 0],
};

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
  if (!(key in STEPS)) return undefined;
  const [by, step] = STEPS[key];
  const kept = scatter.spots.filter((spot) => scatter.view.kept.has(spot.point));
  if (!kept.length) return undefined;
  kept.sort((a, b) => a[by] - b[by] || a.px - b.px || a.py - b.py);
  const here = kept.findIndex((spot) => spot.point === scatter.active);
  if (key === 'Home' || (here < 0 && step >= 0 && key !== 'End')) return kept[0].point;
  if (key === 'End' || here < 0) return kept[kept.length - 1].point;
  return kept[Math.max(0, Math.min(kept.length - 1, here + step))].point;
}
