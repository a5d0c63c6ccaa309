() => {
  const tab = [...document.querySelectorAll('button[role="tab"]')].find((t) => t.textContent.trim() === 'Chat');
  if (tab) tab.click();
}
