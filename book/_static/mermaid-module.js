// Sphinx imports mermaid as a module; the pinned file is a classic script. Load it once and hand its global on.
await new Promise((resolve, reject) => {
  const source = new URL("mermaid/mermaid.min.js", import.meta.url).href;
  document.head.append(Object.assign(document.createElement("script"), { src: source, onload: resolve, onerror: reject }));
});
export default globalThis.mermaid;
