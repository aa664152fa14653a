// What is wider than the page scrolls inside itself; who has no mouse scrolls it with the arrow keys, once it has the focus.
const WIDE = "main :is(table, pre, .mermaid, .output, div.math, mjx-container[display='true'])";
const mark = () => document.querySelectorAll(WIDE).forEach((part) => {
  const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
  if (scrolls) part.tabIndex = 0;
  else part.removeAttribute("tabindex");
});
const ready = () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark);
addEventListener("load", ready);
addEventListener("resize", mark);
