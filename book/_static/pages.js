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
  // buttons whose icons or words would give them a second name beside their label
  const oneName = () => {
    document.querySelectorAll(".search-button-field").forEach((button) => button.removeAttribute("aria-label"));
    document.querySelectorAll(".theme-switch-button svg").forEach((icon) => {
      icon.querySelector("title")?.remove();
      icon.removeAttribute("role");
      icon.setAttribute("aria-hidden", "true");
    });
  };
  const start = () => {
    oneName(); // and again where the icons are drawn late
    const late = new MutationObserver(oneName);
    document.querySelectorAll(".theme-switch-button").forEach((button) => late.observe(button, { childList: true }));
    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark);
  };
  window.addEventListener("load", start);
  window.addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
