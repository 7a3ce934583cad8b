'use strict';
const read = id => { const e = document.getElementById(id); return e ? JSON.parse(e.textContent) : null; };
const all = (query, root = document) => [...root.querySelectorAll(query)];
const shared = read('shared'), data = read('data');

// Flags: in the address, which goes along with every link, and in the browser's store where it has one. Newest wins.
const flags = new Set();
let written = 0;
const valid = found => found && Array.isArray(found.flags) ? found : { at: 0, flags: [] };
const stored = () => { try { return valid(JSON.parse(localStorage.getItem(shared.key))); } catch { return valid(null); } };
const inAddress = () => {
  const match = /[#&]flags=([^&]*)/.exec(location.hash);
  try { return valid(JSON.parse(decodeURIComponent(match[1]))); } catch { return valid(null); }
};
function load() {
  const newest = [stored(), inAddress()].sort((a, b) => b.at - a.at)[0];
  if (newest.at <= written) return;
  written = newest.at;
  flags.clear();
  newest.flags.forEach(id => flags.add(String(id)));
}
const text = () => JSON.stringify({ at: written, flags: [...flags] });
const quoted = word => /^[\w@%+=:,.\/-]+$/.test(word) ? word : "'" + word.replace(/'/g, `'"'"'`) + "'";
const command = () => [...shared.build, ...(flags.size ? ['--exclude', ...flags] : [])].map(quoted).join(' ');
function flag(id, on) {
  load(); // what another page wrote meanwhile
  if (on) flags.add(id); else flags.delete(id);
  written = Math.max(Date.now(), written + 1);
  try { localStorage.setItem(shared.key, text()); } catch { /* a page from disk may have no store */ }
  history.replaceState(null, '', '#flags=' + encodeURIComponent(text()));
  draw();
}
function draw() {
  const hash = written ? '#flags=' + encodeURIComponent(text()) : '';
  all('a[data-page]').forEach(a => { a.href = a.dataset.page + hash; });
  all('button[data-flag]').forEach(b => {
    const on = flags.has(b.dataset.flag);
    b.setAttribute('aria-pressed', on);
    b.textContent = on ? 'flagged' : (b.dataset.long || 'flag');
    const row = b.closest('tr');
    if (row) row.classList.toggle('flagged', on);
  });
  all('.command').forEach(e => { e.textContent = command(); });
  all('.count').forEach(e => { e.textContent = flags.size; });
}
all('button[data-flag]').forEach(b => b.addEventListener('click', () => flag(b.dataset.flag, !flags.has(b.dataset.flag))));
all('button.copy').forEach(b => b.addEventListener('click', async () => {
  const text = document.querySelector('.command');
  try { await navigator.clipboard.writeText(text.textContent); } catch {
    getSelection().selectAllChildren(text);
    document.execCommand('copy');
  }
  b.textContent = 'copied';
  setTimeout(() => { b.textContent = 'copy'; }, 1500);
}));
window.addEventListener('pageshow', () => { load(); draw(); });
load();
draw();

if (data) {
  const slider = document.getElementById('slider'), play = document.getElementById('play');
  const images = all('img[data-camera]'), values = all('.value'), cursors = all('.cursor');
  const marks = all('.lane i'), output = document.getElementById('now'), canvas = document.getElementById('robot');
  const last = data.times.length - 1;
  let playing = 0;
  const number = v => v === null || v === undefined ? '–' : String(Number(v.toPrecision(4)));
  // The newest entry of a rising list that is not above a value.
  const newest = (list, value) => {
    let low = 0, high = list.length;
    while (low < high) { const middle = (low + high) >> 1; if (list[middle] <= value) low = middle + 1; else high = middle; }
    return Math.max(low - 1, 0);
  };
  function show(step) {
    step = Math.min(Math.max(step, 0), last);
    slider.value = step;
    const frame = data.frames[step], share = data.duration ? data.times[step] / data.duration : 0;
    output.textContent = `${data.times[step].toFixed(2)} s, frame ${frame}`;
    images.forEach(image => {
      const camera = data.cameras[image.dataset.camera], place = newest(camera.frames, frame);
      if (!camera.images.length || image.dataset.shown === String(place)) return;
      image.dataset.shown = place;
      image.src = 'data:image/jpeg;base64,' + camera.images[place];
      image.alt = image.nextElementSibling.querySelector('b').textContent + ', frame ' + camera.frames[place];
      image.nextElementSibling.querySelector('span').textContent = 'frame ' + camera.frames[place];
    });
    values.forEach(e => {
      const column = data.columns[e.dataset.column], words = [];
      if (column.target) words.push('target ' + number(column.target[step]));
      if (column.state) words.push('state ' + number(column.state[step]));
      e.textContent = words.join(', ');
    });
    cursors.forEach(c => { const x = share * Number(c.dataset.width); c.setAttribute('x1', x); c.setAttribute('x2', x); });
    marks.forEach(m => { m.style.left = 100 * share + '%'; });
    if (canvas) robot(step);
  }
  // The links as lines from each to its parent: seen from the side, and from the front.
  let box = null;
  function robot(step) {
    const { parents, points } = data.robot, pen = canvas.getContext('2d'), style = getComputedStyle(canvas);
    if (!box) {
      box = [[Infinity, -Infinity], [Infinity, -Infinity], [Infinity, -Infinity]];
      points.forEach(row => row.forEach((v, i) => { box[i % 3][0] = Math.min(box[i % 3][0], v); box[i % 3][1] = Math.max(box[i % 3][1], v); }));
    }
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = pen.fillStyle = style.color;
    pen.lineWidth = 3;
    pen.font = '22px system-ui';
    const half = canvas.width / 2, tall = canvas.height - 70;
    const widest = Math.max(box[0][1] - box[0][0], box[1][1] - box[1][0], 0.01), height = Math.max(box[2][1] - box[2][0], 0.01);
    const scale = Math.min((half - 60) / widest, tall / height);
    [[0, 'from the side'], [1, 'from the front']].forEach(([axis, title], view) => {
      const middle = (box[axis][0] + box[axis][1]) / 2, row = points[step];
      const at = i => [half * (view + 0.5) + scale * (row[3 * i + axis] - middle), 40 + tall - scale * (row[3 * i + 2] - box[2][0]) - (tall - scale * height) / 2];
      pen.fillText(title, half * view + 12, 26);
      parents.forEach((parent, i) => {
        const [x, y] = at(i);
        if (parent >= 0) { pen.beginPath(); pen.moveTo(...at(parent)); pen.lineTo(x, y); pen.stroke(); }
        pen.beginPath(); pen.arc(x, y, 5, 0, 7); pen.fill();
      });
    });
  }
  const seek = seconds => show(newest(data.times, seconds + 1e-6));
  function tick(began, from) {
    if (!playing) return;
    const seconds = from + (performance.now() - began) / 1000;
    seek(seconds);
    if (seconds >= data.times[last]) return stop();
    requestAnimationFrame(() => tick(began, from));
  }
  function stop() { playing = 0; play.textContent = 'play'; }
  function toggle() {
    if (playing) return stop();
    playing = 1;
    play.textContent = 'pause';
    const from = Number(slider.value) >= last ? 0 : data.times[slider.value];
    tick(performance.now(), from);
  }
  play.addEventListener('click', toggle);
  slider.addEventListener('input', () => { stop(); show(Number(slider.value)); });
  all('[data-seek]').forEach(e => e.addEventListener('click', event => { event.preventDefault(); stop(); seek(Number(e.dataset.seek)); }));
  all('.lane,svg').forEach(e => e.addEventListener('click', event => {
    if (event.target.closest('[data-seek]')) return;
    const edge = e.getBoundingClientRect();
    stop();
    seek((event.clientX - edge.left) / edge.width * data.duration);
  }));
  const whole = document.getElementById('whole');
  whole.addEventListener('change', () => all('g[data-whole]').forEach(g => {
    if (whole.checked && g.dataset.whole) g.setAttribute('transform', g.dataset.whole); else g.removeAttribute('transform');
  }));
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = event.shiftKey ? 10 : 1, keys = { ArrowLeft: () => show(Number(slider.value) - by), ArrowRight: () => show(Number(slider.value) + by),
      Home: () => show(0), End: () => show(last), ' ': toggle, f: () => flag(data.id, !flags.has(data.id)) };
    if (!(event.key in keys) || (event.key === ' ' && event.target.tagName === 'BUTTON')) return;
    event.preventDefault();
    if (event.key !== ' ' && event.key !== 'f') stop();
    keys[event.key]();
  });
  show(0);
}
