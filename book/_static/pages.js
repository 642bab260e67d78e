// A formula, table or code block that is wider than its column can be scrolled with the keyboard.
(() => {
  const wide = "mjx-container[display], div.math, .table-wrapper, .cell_output, div.highlight pre, .pst-scrollable-table-container";
  const mark = () => document.querySelectorAll(`.bd-article :is(${wide})`).forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX === "auto";
    box.toggleAttribute("tabindex", scrolls);
    if (scrolls) box.setAttribute("tabindex", "0");
  });
  const start = () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark);
  window.addEventListener("load", start);
  window.addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
