// The rule of subtune_deploy/pareto.py, line for line: points are {fork, accuracy: [value, low, high], added: [...]}.

function dominates(one, other) {
  const same = one.accuracy[0] === other.accuracy[0] && one.added[0] === other.added[0];
  return !same && one.accuracy[0] >= other.accuracy[0] && one.added[0] <= other.added[0];
}

// Points that none dominates, cheapest first; equals in both stand there together.
function front(points) {
  const found = [];
  const order = (a, b) => a.added[0] - b.added[0] || b.accuracy[0] - a.accuracy[0];
  for (const point of [...points].sort(order)) {
    if (!found.length || !dominates(found[found.length - 1], point)) found.push(point);
  }
  return found;
}

// Of a front, the point farthest above the line from its cheapest to its most accurate; null if none is above.
function knee(best) {
  if (best.length < 3) return null;
  const [first, last] = [best[0], best[best.length - 1]];
  const width = last.added[0] - first.added[0];
  const height = last.accuracy[0] - first.accuracy[0];
  if (!width || !height) return null;
  const above = (point) =>
    (point.accuracy[0] - first.accuracy[0]) / height - (point.added[0] - first.added[0]) / width;
  const found = best.reduce((most, point) => (above(point) > above(most) ? point : most));
  return above(found) > 0 ? found : null;
}

// {point, why} or {point: null, why}: what keeps the limits, null where there is none.
function choose(points, maxAdded = null, minAccuracy = null) {
  const best = front(points);
  if (!best.length) return { point: null, why: 'no fork has both accuracy and latency' };
  const last = best[best.length - 1];
  if (maxAdded === null && minAccuracy === null) {
    const bend = knee(best);
    return { point: bend || last, why: bend ? 'the knee of the front' : 'the most accurate; the front has no knee' };
  }
  const within = best.filter((each) => maxAdded === null || each.added[0] <= maxAdded);
  if (!within.length) {
    const told = `the cheapest, ${best[0].fork}, adds ${plainPercent(best[0].added[0])}`;
    return { point: null, why: `no fork adds at most ${plainPercent(maxAdded)}: ${told}` };
  }
  const kept = within.filter((each) => minAccuracy === null || each.accuracy[0] >= minAccuracy);
  if (!kept.length) {
    const nearest = within[within.length - 1];
    const where = maxAdded === null ? '' : ` within ${plainPercent(maxAdded)} of added latency`;
    const told = `the nearest, ${nearest.fork}, has ${plainPercent(nearest.accuracy[0])}`;
    return { point: null, why: `no fork has an accuracy of ${plainPercent(minAccuracy)}${where}: ${told}` };
  }
  if (maxAdded === null) return { point: kept[0], why: 'the cheapest that is so accurate' };
  return { point: kept[kept.length - 1], why: 'the most accurate within the limits' };
}

// Those of the front that beat a point, where intervals do not show that any of them does.
function openRivals(point, best) {
  const bounded = (each) => each.added[2] !== null && point.added[1] !== null;
  const surely = (each) =>
    each.accuracy[1] >= point.accuracy[2] && bounded(each) && each.added[2] <= point.added[1];
  return best.some(surely) ? [] : best.filter((each) => dominates(each, point));
}
