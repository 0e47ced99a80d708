"use strict";
// Tables: sort by a column's button, numbers before texts and empty fields last; filter by every word that is typed.
for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody");
  const rows = [...body.rows];
  const heads = [...sheet.querySelectorAll("thead th")];
  const count = sheet.querySelector("output");
  const compare = (column, sign) => (one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const [x, y] = [parseFloat(a.dataset.key), parseFloat(b.dataset.key)];
    if (!a.textContent !== !b.textContent) return a.textContent ? -1 : 1;
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return sign * (isNaN(x) ? a.textContent.localeCompare(b.textContent) : x - y);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.sort(compare(column, down ? -1 : 1)));
    });
  });
  sheet.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? left + " of " + rows.length + " rows" : "";
  });
}
// Figures: the value nearest to the pointer, or the next one by the arrow keys.
for (const figure of document.querySelectorAll("figure[data-marks]")) {
  const marks = JSON.parse(figure.dataset.marks);
  const drawing = figure.querySelector(".drawing");
  const dot = figure.querySelector(".dot");
  const tip = figure.querySelector(".tip");
  let at = -1;
  const show = (place) => {
    at = place;
    dot.hidden = tip.hidden = at < 0;
    if (at < 0) return;
    dot.style.left = 100 * marks[at][0] + "%";
    dot.style.top = 100 * marks[at][1] + "%";
    tip.textContent = marks[at][2];
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    let nearest = -1, least = 40 * 40;
    marks.forEach(([x, y], place) => {
      const far = (box.left + x * box.width - event.clientX) ** 2 + (box.top + y * box.height - event.clientY) ** 2;
      if (far < least) [nearest, least] = [place, far];
    });
    if (nearest !== at) show(nearest);
  });
  drawing.addEventListener("pointerleave", () => show(-1));
  figure.addEventListener("blur", () => show(-1));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step || event.target !== figure || !marks.length) return;
    event.preventDefault();
    show(at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length);
  });
}
