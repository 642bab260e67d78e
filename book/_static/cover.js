// The cover's moving picture: uncovers the walks from t = 1 to t = 0 and moves their heads along them.
// Stands still, complete, where the reader prefers reduced motion, until asked to move.
(() => {
  const figure = document.getElementById("walk");
  if (!figure) return;
  const svg = figure.querySelector("svg"), seen = svg.querySelector("#walk-seen rect");
  const button = figure.querySelector("button");
  const paths = [...svg.querySelectorAll(".lines path")].map((path) =>
    path.getAttribute("d").slice(1).split(" ").map((point) => point.split(",").map(Number)));
  const heads = [...svg.querySelectorAll(".heads circle")];
  const left = paths[0][0][0], right = paths[0].at(-1)[0], steps = paths[0].length - 1;
  const MOVE = 9000, REST = 3000;
  let at = 1, since = null, moving = false;
  const draw = () => {
    const place = at * steps, i = Math.min(Math.floor(place), steps - 1), part = place - i;
    const x = paths[0][i][0] * (1 - part) + paths[0][i + 1][0] * part;
    seen.setAttribute("width", x - left);
    heads.forEach((head, k) => {
      head.setAttribute("cx", x);
      head.setAttribute("cy", paths[k][i][1] * (1 - part) + paths[k][i + 1][1] * part);
    });
  };
  const tick = (now) => {
    if (!moving) return;
    since ??= now - at * MOVE;
    const time = (now - since) % (MOVE + REST);
    at = Math.min(time / MOVE, 1);
    draw();
    requestAnimationFrame(tick);
  };
  const set = (on) => {
    moving = on;
    since = null;
    button.textContent = on ? "Pause" : "Play";
    if (on) { if (at === 1) at = 0; requestAnimationFrame(tick); }
  };
  button.hidden = false;
  button.addEventListener("click", () => set(!moving));
  set(!matchMedia("(prefers-reduced-motion: reduce)").matches);
})();
