const rows = [...document.querySelectorAll('article')], list = document.getElementById('rows');
const byId = name => document.getElementById(name);
const value = (row, key) => Number(row.dataset[key]);
function show() {
  const kind = byId('kind').value, words = byId('find').value.toLowerCase(), key = byId('order').value;
  let shown = 0;
  for (const row of rows) {
    const fits = kind === 'all' || row.dataset.kinds.includes(kind) || (kind === 'right' && !row.dataset.kinds);
    row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
    shown += !row.hidden;
  }
  const order = key === 'place' ? 1 : -1;
  list.append(...rows.slice().sort((a, b) => order * (value(a, key) - value(b, key))));
  byId('shown').textContent = shown + ' of ' + rows.length;
}
for (const name of ['kind', 'find', 'order']) byId(name).addEventListener('input', show);
show();
