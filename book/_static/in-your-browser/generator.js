// Starts the generators of a page (the directive `generator-in-browser`), each when it comes into sight, not before.
for (const part of document.querySelectorAll(".gp-generator")) {
  new IntersectionObserver(async (entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    const { Drawing } = await import("./drawing.js");
    new Drawing(part).start();
  }, { rootMargin: "200px" }).observe(part);
}
