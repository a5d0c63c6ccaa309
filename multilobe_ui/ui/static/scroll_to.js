(...values) => {
  document.querySelector('SELECTOR')?.scrollIntoView({behavior: 'smooth', block: 'nearest'});
  return values;
}
