// What is wider than the page scrolls inside itself; who has no mouse scrolls it with the arrow keys, once it has the focus.
const WIDE = "main :is(table, pre, .mermaid, .output, div.math, mjx-container[display='true'], mjx-container.wide)";
const INLINE = "main mjx-container:not([display='true'])";
const mark = () => {
  document.querySelectorAll(INLINE).forEach((part) => {
    const room = part.parentElement.closest("p, li, td, dd, div").clientWidth;
    part.classList.toggle("wide", room > 0 && part.scrollWidth > room);
    if (!part.classList.contains("wide")) part.removeAttribute("tabindex");
  });
  document.querySelectorAll(WIDE).forEach((part) => {
    const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
    if (scrolls) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
};
const ready = () => {
  document.querySelectorAll("main td").forEach((cell) => cell.classList.toggle("long", cell.textContent.length > 40));
  return (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark);
};
addEventListener("load", ready);
addEventListener("resize", mark);
// what was folded has no width before it is opened
document.addEventListener("toggle", mark, true);
document.addEventListener("click", () => setTimeout(mark));
