// Numbers as people read them.

const WIDE = '\u2009'; // a thin space between a number and its unit

function plainPercent(share, digits = 1) {
  return `${(100 * share).toFixed(digits).replace('-', '\u2212')}${WIDE}%`;
}

function signedPercent(share, digits = 1) {
  return (share >= 0 ? '+' : '') + plainPercent(share, digits);
}

// [value, low, high] -> "+24.0 ± 0.6 %"; a bound that is null is none.
function withInterval([value, low, high], sign = '') {
  const told = (100 * value).toFixed(1).replace('-', '\u2212');
  const half = low === null || high === null ? '?' : (100 * Math.max(high - value, value - low)).toFixed(1);
  return `${sign && value >= 0 ? sign : ''}${told} ± ${half}${WIDE}%`;
}

// The added latency of a point, with a sign before what was not measured.
function addedBy(point) {
  return `${about(point)}${withInterval(point.added, '+')}`;
}

function about(point) {
  return point.status === 'measured' ? '' : `\u2248${WIDE}`;
}

function milliseconds(value) {
  if (value === null || value === undefined) return '\u2013';
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.1 ? 2 : 4;
  return `${value.toFixed(digits)}${WIDE}ms`;
}

// 4100000000 -> "4.10 G"
function scaled(value, unit = '') {
  const steps = ['', 'k', 'M', 'G', 'T'];
  let step = 0;
  let rest = Math.abs(value);
  while (rest >= 1000 && step < steps.length - 1) {
    rest /= 1000;
    step += 1;
  }
  const digits = step === 0 ? 0 : rest >= 100 ? 0 : rest >= 10 ? 1 : 2;
  const tail = steps[step] + unit;
  return `${value < 0 ? '\u2212' : ''}${rest.toFixed(digits)}${tail && WIDE}${tail}`;
}

function plural(count, what) {
  return `${count.toLocaleString('en')} ${what}${count === 1 ? '' : 's'}`;
}
