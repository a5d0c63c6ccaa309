// Hovering, or the arrow keys on the strip, says a token's weights below it and marks its column in the map.
const show = (token) => {
  const card = element.querySelector('.ml-token-card');
  if (!card || !token) return;
  element.querySelectorAll('.ml-strip .is-here').forEach((other) => other.classList.remove('is-here'));
  token.classList.add('is-here');
  card.style.setProperty('--x', (Number(token.dataset.i) + 0.5) / Number(card.dataset.n));
  card.classList.add('has-here');
  card.querySelector('.ml-readout').textContent =
    '“' + (token.textContent.trim() || '␣') + '”  ' + token.dataset.w;
};
element.addEventListener('mouseover', (event) => show(event.target.closest('[data-w]')));
element.addEventListener('click', (event) => show(event.target.closest('[data-w]')));
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step || !event.target.closest('.ml-strip')) return;
  event.preventDefault();
  const all = [...element.querySelectorAll('.ml-strip [data-w]')];
  const now = all.findIndex((token) => token.classList.contains('is-here'));
  show(all[Math.min(all.length - 1, Math.max(0, now + step))]);
});
