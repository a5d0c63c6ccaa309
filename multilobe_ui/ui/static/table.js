// Events of a block whose rows can be picked and ticked: pick with {id}, check with {id, on}.
element.addEventListener('click', (event) => {
  if (event.target.closest('input, label, a')) return;
  const row = event.target.closest('[data-row]');
  if (row) trigger('pick', {id: row.dataset.row});
});
element.addEventListener('change', (event) => {
  const box = event.target.closest('[data-check]');
  if (box) trigger('check', {id: box.dataset.check, on: box.checked});
});
// A redraw keeps DOM nodes, and with them ticks that are no longer true, so they are set again from the attribute.
watch('value', () => element.querySelectorAll('[data-check]').forEach(
  (box) => { box.checked = box.hasAttribute('checked'); }));
