() => {
  const parts = ['#report-ask', '#report-prompts', '#report-details'].map((q) => document.querySelector(q));
  parts.find((e) => e?.offsetHeight)?.scrollIntoView({behavior: 'smooth', block: 'nearest'});
}
