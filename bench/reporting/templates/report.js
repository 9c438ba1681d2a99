"use strict";
// Every table sorts by its heads, and all are filtered together. Without scripts everything is still there to read.

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

// Of the tables in the chooser one is open. Without scripts their headings open them, one after the other.
const chooser = document.querySelector(".chooser");
const views = [...chooser.querySelectorAll("details")];
if (views.length > 1) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  views.forEach((view, i) => select.add(new Option(view.querySelector("summary").textContent.trim(), i)));
  select.addEventListener("change", () => views.forEach((view, i) => { view.open = i === Number(select.value); }));
  label.append("table", select);
  chooser.prepend(label);
}
chooser.classList.add("chosen");

const FIELDS = ["dataset", "shots", "method", "seed"];
const form = document.querySelector(".filters");
const tagged = [...document.querySelectorAll(FIELDS.map((field) => `main [data-${field}]`).join(","))];
const cells = [...document.querySelectorAll("#cells tbody tr")];

const fits = (element, wanted) =>
  FIELDS.every((field) => !wanted[field] || !(field in element.dataset) || element.dataset[field].split("|").includes(wanted[field]));

const narrow = () => {
  const wanted = Object.fromEntries([...form.querySelectorAll("[data-field]")].map((filter) => [filter.dataset.field, filter.value]));
  const text = wanted.text.toLowerCase();
  for (const element of tagged) element.hidden = !fits(element, wanted);
  for (const row of document.querySelectorAll("main tbody tr")) {
    row.hidden = !fits(row, wanted) || !row.textContent.toLowerCase().includes(text);
  }
  for (const figure of document.querySelectorAll("figure.table")) {
    const empty = ![...figure.querySelectorAll("tbody tr")].some((row) => !row.hidden);
    figure.hidden = empty || !fits(figure, wanted);
  }
  const shown = cells.filter((row) => !row.hidden).length;
  document.querySelector("#shown").textContent = `${shown} of ${cells.length} cells shown, and the tables' rows and columns that are about them`;
};
if (form) {
  form.hidden = false;
  for (const event of ["input", "change"]) form.addEventListener(event, narrow);
  form.addEventListener("reset", () => setTimeout(narrow)); // after the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault()); // Enter in the text field
  narrow();
}
