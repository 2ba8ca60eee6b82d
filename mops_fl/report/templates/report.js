"use strict";
// the slider of a heat map: weights in hundredths, as `blocks.html` writes those of the last round
for (const figure of document.querySelectorAll("[data-frames]")) {
  const frames = JSON.parse(document.getElementById(figure.dataset.frames).textContent);
  const slider = figure.querySelector("input");
  if (!slider) continue;
  const cells = figure.querySelectorAll("tbody td");
  const show = () => {
    const round = frames.rounds[slider.value];
    const when = round === 0 ? "before training" : `after round ${round}`;
    figure.querySelector("output").textContent = when;
    slider.setAttribute("aria-valuetext", when);
    frames.weights[slider.value].forEach((weight, index) => {
      cells[index].className = `h${weight === null ? 0 : Math.min(10, Math.floor((weight + 5) / 10))}`;
      cells[index].textContent = weight === null ? "–" : (weight / 100).toFixed(2);
    });
  };
  slider.value = slider.max;
  slider.addEventListener("input", show);
  slider.parentElement.hidden = false;
}
