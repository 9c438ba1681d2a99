"use strict";
// Every table sorts by its heads; the table of cells filters. Without scripts everything is still there to read.

const keyOf = (cell) => {
  const number = cell.dataset.value ?? cell.textContent.trim();
  return number !== "" && !Number.isNaN(Number(number)) ? Number(number) : null;
};

const order = (a, b, sign) => {
  const [x, y] = [keyOf(a), keyOf(b)];
  if (x !== null && y !== null) return sign * (x - y);
  if (x !== null || y !== null) return x === null ? 1 : -1; // gaps stand last, whichever the direction
  return sign * a.textContent.localeCompare(b.textContent);
};

const sortBy = (table, column) => {
  const heads = [...table.tHead.rows[0].cells];
  const direction = heads[column].getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
  heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].sort((a, b) => order(a.cells[column], b.cells[column], sign));
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, column));
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
  });
}

const filters = [...document.querySelectorAll(".filters [data-field]")];
const narrow = () => {
  let shown = 0;
  const rows = [...document.querySelectorAll("#cells tbody tr")];
  for (const row of rows) {
    row.hidden = !filters.every((filter) =>
      filter.dataset.field === "text"
        ? row.textContent.toLowerCase().includes(filter.value.toLowerCase())
        : filter.value === "" || row.dataset[filter.dataset.field] === filter.value);
    shown += row.hidden ? 0 : 1;
  }
  document.querySelector("#shown").textContent = `${shown} of ${rows.length} cells shown`;
};
for (const filter of filters) for (const event of ["input", "change"]) filter.addEventListener(event, narrow);
if (filters.length) narrow();
