"""Whether the interactive figures of a page that is open answer the keyboard and the mouse."""

import time
from collections.abc import Iterator
from typing import Any

# What the figures show now, as one number each; their controls, in order, with their places on the screen.
SHOWN = r"""(async () => {
  await new Promise((done) => setTimeout(done, 30));
  const boxes = new Set([...document.querySelectorAll(".bd-article input[type=range]")]
    .map((e) => e.closest(".output")));
  const sum = (text) => [...text].reduce((n, c) => (31 * n + c.codePointAt(0)) | 0, 0);
  return JSON.stringify([...boxes].map((box) => ({
    name: box.querySelector("[id]").id,
    ready: [...box.querySelectorAll("canvas")].every((e) => !e.closest("[role=group]")
      || e.closest("[data-ready]")),
    text: [...box.querySelectorAll("img, canvas, svg")].some((e) => e.alt || e.ariaLabel),
    shown: sum([...box.querySelectorAll("canvas")].map((e) => e.toDataURL()).join()
      + [...box.querySelectorAll("svg, output")].map((e) => e.outerHTML).join()),
  })));
})()"""

# Focus on a control and its place on the screen.
REACH = r"""(() => {
  const boxes = [...new Set([...document.querySelectorAll(".bd-article input[type=range]")]
    .map((e) => e.closest(".output")))];
  const knob = boxes[BOX].querySelectorAll("button, input, select")[KNOB];
  if (!knob) return null;
  knob.scrollIntoView({block: "center", behavior: "instant"});
  knob.focus();
  const place = knob.getBoundingClientRect();
  const value = Number(knob.value), half = Number(knob.max) / 2;
  return JSON.stringify({kind: knob.type, low: value === 0, far: 0.5 + 0.45 * (value > half ? -1 : 1),
    focused: document.activeElement === knob, named: Boolean(knob.ariaLabel || knob.labels?.length ||
    knob.textContent), left: place.left, width: place.width, y: place.top + place.height / 2});
})()"""

# Whether what moves lies over its picture, in the dark too, where a theme may frame pictures.
OVER = r"""(() => {
  const theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "dark";
  const place = (e) => Object.values(e.getBoundingClientRect().toJSON()).map(Math.round).join();
  const over = [...document.querySelectorAll(".bd-article [data-ready] canvas")].map((e) => {
    const image = e.previousElementSibling;
    return place(e) === place(image) && parseFloat(getComputedStyle(image).padding) === 0;
  });
  document.documentElement.dataset.theme = theme;
  return over.every(Boolean);
})()"""


def press(browser: Any, key: str, code: int) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def click(browser: Any, x: float, y: float) -> None:
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def state(browser: Any, box: int) -> int:
    return browser.evaluate(SHOWN)[box]["shown"]


def figures(browser: Any) -> list[dict[str, Any]]:
    """The interactive figures of the page, once their scripts have run."""
    for _ in range(100):
        found = browser.evaluate(SHOWN)
        if all(figure["ready"] for figure in found):
            break
        time.sleep(0.1)
    return found


def faults_of_figure(browser: Any, box: int) -> Iterator[str]:
    """One line for each control that a key or the mouse does not move."""
    for knob in range(9):
        it = browser.evaluate(REACH.replace("BOX", str(box)).replace("KNOB", str(knob)))
        if not it:
            break
        if not (it["focused"] and it["named"]):
            yield f"control {knob} has no name, or takes no focus"
        slider, button = it["kind"] == "range", it["kind"] in ("button", "submit")
        before = state(browser, box)
        if not button:  # downwards in a list is up in value
            press(browser, *(("ArrowUp", 38) if slider == it["low"] else ("ArrowDown", 40)))
            if before == (before := state(browser, box)):
                yield f"control {knob} does not answer a key"
        if slider or button:
            click(browser, it["left"] + (0.5 if button else it["far"]) * it["width"], it["y"])
            time.sleep(0.9 * button)
            if before == state(browser, box):
                yield f"control {knob} does not answer a click"
        if button:  # what it has started ends here
            click(browser, it["left"] + it["width"] / 2, it["y"])


def faults_of_figures(browser: Any) -> dict[str, list[str]]:
    """The faults of each interactive figure of the page that is open, by its name."""
    faults = {}
    for box, figure in enumerate(figures(browser)):
        dead = [] if figure["ready"] and figure["text"] else ["its script has not run, or it has no text"]
        faults[figure["name"]] = dead + list(faults_of_figure(browser, box))
    if not browser.evaluate(OVER):
        faults[figure["name"]].append("what moves does not lie over its picture in the dark")
    return faults
