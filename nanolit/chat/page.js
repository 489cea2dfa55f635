// Gradio's chatbot copies and edits the markup that it was given; people want the text of it.
// DOMParser makes a document that runs nothing and loads nothing.
const textOf = (markup) => new DOMParser().parseFromString("<body>" + markup, "text/html").body.textContent;
if (navigator.clipboard) {
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  navigator.clipboard.writeText = (markup) => write(textOf(markup));
}
// Gradio reloads a page that lost its server: carry the text in the box over. Until the new page has taken
// it, it stays in `typed`, because the page can be reloaded again before it has a box.
let typed = sessionStorage.typed ?? "";
const retype = () => {
  const box = document.querySelector("#box textarea");
  if (typed && !box.value) {
    box.value = typed;
    box.dispatchEvent(new Event("input"));
  }
  typed = "";
};
addEventListener("pagehide", () => {
  sessionStorage.typed = document.querySelector("#box textarea")?.value || typed;
});
const NAMES = { ".submit-button": "Send", ".stop-button": "Stop", ".toggle-button": "Settings" };
new MutationObserver((changes) => {
  for (const [place, name] of Object.entries(NAMES)) // of buttons that have a picture only
    document.querySelectorAll(place).forEach((button) => {
      if (button.title !== name) button.title = button.ariaLabel = name;
    });
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    const box = node.matches?.("#chat textarea") ? node : node.querySelector?.("#chat textarea");
    if (box)
      setTimeout(() => { // when Gradio has filled it
        box.value = textOf(box.value);
        box.dispatchEvent(new Event("input"));
      });
  }
}).observe(document, { childList: true, subtree: true });
