// A click on a router's line picks it. plotly draws anew whenever its figure changes, so it is asked to tell of clicks
// when the pointer reaches it.
document.addEventListener('pointerover', (event) => {
  const plot = event.target.closest?.('#report-curves .js-plotly-plot');
  if (!plot || plot.followed) return;
  plot.followed = true;
  plot.on('plotly_click', (click) => trigger('pick', {id: click.points[0].customdata}));
});
