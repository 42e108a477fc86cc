// On a screen too narrow for columns, each cell of a row is a line: give a cell the name of its column, for site.css.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".table-wrapper table.docutils")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.innerText.trim());
    if (names.length < 3) continue; // the second cell explains the first
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, column) => {
        if (column > 0 && names[column] && cell.innerText.trim()) cell.dataset.column = names[column];
      });
    }
  }
});
