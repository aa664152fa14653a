// Turns a strip of frames (gp.plots.show_frames) into a slider. Without this script the strip stays, as it does on paper.
for (const part of document.querySelectorAll(".gp-frames")) {
  const slider = part.querySelector("input");
  const frames = [...part.querySelectorAll(".gp-frame")];
  const show = () => {
    frames.forEach((frame, number) => { frame.hidden = number !== slider.valueAsNumber; });
    slider.ariaValueText = frames[slider.valueAsNumber].querySelector("figcaption").textContent;
  };
  const load = () => part.querySelectorAll("img").forEach((image) => { image.loading = "eager"; });
  new IntersectionObserver(([seen], observer) => {
    if (seen.isIntersecting) { load(); observer.disconnect(); }
  }, { rootMargin: "300px" }).observe(part);
  addEventListener("beforeprint", load);
  slider.addEventListener("input", show);
  slider.parentElement.hidden = false;
  part.classList.add("is-slider");
  show();
}
