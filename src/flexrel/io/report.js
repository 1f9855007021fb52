"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripted");

  /* The mark nearest to where a pointer is, if it is near: marks may lie on each other. */
  const nearest = (marks, event) => {
    const away = (mark) => {
      const box = mark.getBoundingClientRect();
      const x = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const y = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const middle = Math.hypot(
        (box.left + box.right) / 2 - event.clientX, (box.top + box.bottom) / 2 - event.clientY);
      return [Math.hypot(x, y), middle];
    };
    const near = marks.map((mark) => [mark, ...away(mark)]).filter((found) => found[1] < 14);
    near.sort((one, other) => one[1] - other[1] || one[2] - other[2]);
    return near.length ? near[0][0] : null;
  };

  /* Marks of a chart tell what they are when pointed at, and stay told when chosen. */
  const choosable = (chart, marks, tell) => {
    let chosen = null;
    const choose = (mark) => {
      chosen = mark;
      marks.forEach((other) => other.setAttribute("aria-pressed", String(other === mark)));
      tell(mark, true);
    };
    chart.addEventListener("mousemove", (event) => tell(nearest(marks, event) || chosen, false));
    chart.addEventListener("mouseleave", () => tell(chosen, false));
    chart.addEventListener("click", (event) => {
      const mark = nearest(marks, event);
      if (mark) {
        choose(mark);
      }
    });
    marks.forEach((mark, at) => {
      mark.setAttribute("role", "button");
      mark.addEventListener("focus", () => tell(mark, false));
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
    choosable(one("frontier-chart"), points, tellPoint)(result);
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
    choosable(one("layer-chart"), bars, tellLayer)(bars[0]);
  }
})();
