// Tables whose headings are buttons: the rows in the order of a column, the other way round when it is asked again.
document.addEventListener("click", event => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const rows = [...head.closest("table").tBodies[0].rows], up = head.ariaSort !== "ascending";
  const text = row => row.cells[head.cellIndex].textContent;
  const names = (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true });
  const order = head.cellIndex ? (a, b) => parseFloat(text(a)) - parseFloat(text(b)) : names;
  const filled = rows.filter(text).sort((a, b) => (up ? order(a, b) : order(b, a)));
  for (const other of head.parentElement.cells) other.ariaSort = null;
  head.ariaSort = up ? "ascending" : "descending";
  head.closest("table").tBodies[0].append(...filled, ...rows.filter(row => !text(row)));
});
