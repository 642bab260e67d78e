// What is wider than its column, a formula, a table or code, can be scrolled with the keyboard.
(() => {
  const wide = "div.math, pre, .pst-scrollable-table-container, mjx-container, .cell_output, .output";
  const mark = () =>
    document.querySelectorAll(`.bd-article :is(${wide})`).forEach((box) => {
      const style = getComputedStyle(box);
      if (box.scrollWidth > box.clientWidth + 1 && style.display !== "inline" && /auto|scroll/.test(style.overflowX))
        box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    });
  const start = () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark);
  window.addEventListener("load", start);
  // the search button says "Search": a second name beside that one would only differ from it
  document.addEventListener("DOMContentLoaded", () =>
    document.querySelectorAll(".search-button-field").forEach((button) => button.removeAttribute("aria-label")));
  window.addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
