// MathJax 3 breaks no lines. A long formula in a sentence may break before a relation or an operator outside all
// brackets; what does not fit even so scrolls by itself.
const LONG = 18; // characters; a shorter one goes on the next line whole
const count = (part, codes) => part.querySelectorAll(codes.map((code) => `mjx-c.mjx-c${code}`).join()).length;
const letBreak = () => document.querySelectorAll("main span.math mjx-container").forEach((formula) => {
  if (formula.textContent.trim().length < LONG) return;
  formula.classList.add("breaks");
  let open = 0;
  for (const part of [...(formula.querySelector("mjx-math")?.children ?? [])]) {
    if (!open && part.previousSibling && part.matches("mjx-mo[space='3'], mjx-mo[space='4']"))
      part.before(document.createElement("wbr"));
    open += count(part, ["28", "5B", "7B"]) - count(part, ["29", "5D", "7D"]); // ( [ { and ) ] }
  }
});
const isTooWide = (formula) => {
  const room = formula.parentElement.closest("p, li, dd, td, th, figcaption, div").getBoundingClientRect().right + 1;
  return [...formula.querySelectorAll("mjx-math > *")].some((part) => part.getBoundingClientRect().right > room);
};

// What is wider than the page scrolls inside itself; who has no mouse scrolls it with the arrow keys, once it has the focus.
const WIDE = "main :is(table, pre, .mermaid, .output, div.math, mjx-container[display='true'], span.math)";
const mark = () => {
  const formulas = [...document.querySelectorAll("main span.math")];
  formulas.forEach((formula) => formula.classList.remove("scrolls"));
  formulas.filter(isTooWide).forEach((formula) => formula.classList.add("scrolls"));
  document.querySelectorAll(WIDE).forEach((part) => {
    const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
    if (scrolls && !part.matches("span:not(.scrolls)")) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
};
// On a phone a column of sentences is as wide as a few words, and one of short phrases as wide as one or two.
const WORDS = 40, PHRASE = 12; // characters
document.querySelectorAll("main table :is(td, th)").forEach((cell) => {
  const length = cell.textContent.trim().length;
  if (length > PHRASE) cell.classList.add(length > WORDS ? "has-words" : "has-phrase");
});
const ready = () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(() => {
  letBreak();
  mark();
});
addEventListener("load", ready);
addEventListener("resize", mark);
// What was folded is measured once it is open.
addEventListener("toggle", mark, true);
addEventListener("click", (event) => event.target.closest?.(".toggle") && setTimeout(mark));
