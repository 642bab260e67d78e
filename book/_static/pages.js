// What is wider than its column, a formula, a figure, a table or code, can be scrolled with the keyboard; a link
// to what is folded opens the fold.
(() => {
  const wide = "div.math, span.math.wide, pre, .pst-scrollable-table-container, mjx-container, .cell_output, .output, " +
    "figure, figure [role=group] > div";
  const mark = () => {
    document.querySelectorAll(".bd-article figure > img").forEach((img) => // too broad for a phone
      img.parentElement.classList.toggle("broad", img.naturalWidth > 560));
    document.querySelectorAll(".bd-article span.math").forEach((span) => { // on a phone a line of its own
      span.classList.remove("wide");
      const formula = span.querySelector("mjx-container")?.getBoundingClientRect().width ?? 0;
      span.classList.toggle("wide", formula > span.closest("p, li, td, th, dd, div").clientWidth + 1);
    });
    document.querySelectorAll(`.bd-article :is(${wide})`).forEach((box) => {
      const style = getComputedStyle(box);
      if (box.scrollWidth > box.clientWidth + 1 && style.display !== "inline" && /auto|scroll/.test(style.overflowX))
        box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    });
  };
  // buttons whose icons or words would give them a second name beside their label
  const oneName = () => {
    document.querySelectorAll(".search-button-field").forEach((button) => button.removeAttribute("aria-label"));
    document.querySelectorAll(".theme-switch-button svg").forEach((icon) => {
      icon.querySelector("title")?.remove();
      icon.removeAttribute("role");
      icon.setAttribute("aria-hidden", "true");
    });
  };
  // every fold around what the address points at, or below the heading that it points at
  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const heads = target.matches("section") || target.parentElement.matches("section");
    const below = heads && target.closest("section").querySelector(":scope > details.rest");
    if (below) below.open = true;
    for (let box = target; box; box = box.parentElement) {
      if (box.matches("details")) box.open = true;
      if (box !== target && box.matches(".toggle-hidden")) box.querySelector(".toggle-button").click();
    }
    target.scrollIntoView();
  };
  const start = () => {
    oneName(); // and again where the icons are drawn late
    const late = new MutationObserver(oneName);
    document.querySelectorAll(".theme-switch-button").forEach((button) => late.observe(button, { childList: true }));
    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark).then(unfold);
  };
  window.addEventListener("load", start);
  window.addEventListener("hashchange", unfold);
  document.addEventListener("click", (event) => { // the same link once more changes nothing in the address
    if (event.target.closest("a[href*='#']")?.href === location.href) unfold();
  });
  window.addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
