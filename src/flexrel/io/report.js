"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripted");

  /* Marks that tell what they are when pointed at, and stay told when chosen. */
  const choosable = (marks, tell, chosen) => {
    const choose = (mark) => {
      chosen = mark;
      marks.forEach((other) => other.setAttribute("aria-pressed", String(other === mark)));
      tell(mark, true);
    };
    marks.forEach((mark, at) => {
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-pressed", "false");
      mark.addEventListener("mouseenter", () => tell(mark, false));
      mark.addEventListener("mouseleave", () => tell(chosen, false));
      mark.addEventListener("focus", () => tell(mark, false));
      mark.addEventListener("click", () => choose(mark));
      mark.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Enter" || event.key === " ") {
          choose(mark);
        } else if (step && marks[at + step]) {
          marks[at + step].focus();
        } else {
          return;
        }
        event.preventDefault();
      });
    });
    return choose;
  };

  const points = all(".point");
  const tellPoint = (mark) => {
    one("told-point").textContent = mark.dataset.told;
    one("told-command").textContent = mark.dataset.command;
    one("told-command-box").hidden = !mark.dataset.command;
  };
  if (points.length) {
    const result = points.find((mark) => mark.dataset.chosen);
    choosable(points, tellPoint, result)(result);
  }

  const figures = all(".scatter");
  const choice = one("scatter-choice");
  const show = (name) => {
    const known = figures.some((figure) => figure.dataset.layer === name);
    figures.forEach((figure) => {
      figure.hidden = known && figure.dataset.layer !== name;
    });
    if (known) {
      choice.value = name;
    }
  };
  if (figures.length) {
    choice.addEventListener("change", () => show(choice.value));
    show(figures[0].dataset.layer);
  }

  const bars = all(".bar");
  if (bars.length) {
    const tellLayer = (mark, picked) => {
      one("told-layer").textContent = mark.dataset.told;
      if (picked) {
        all("tr.picked").forEach((row) => row.classList.remove("picked"));
        one(mark.dataset.row).classList.add("picked");
        if (figures.some((figure) => figure.dataset.layer === mark.dataset.layer)) {
          show(mark.dataset.layer);
        }
      }
    };
    choosable(bars, tellLayer, bars[0])(bars[0]);
  }
})();
