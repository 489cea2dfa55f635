// Gradio's chatbot copies and edits the markup that it was given; people want the text of it.
// DOMParser makes a document that runs nothing and loads nothing.
const textOf = (markup) => new DOMParser().parseFromString("<body>" + markup, "text/html").body.textContent;
if (navigator.clipboard) {
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  navigator.clipboard.writeText = (markup) => write(textOf(markup));
}
// A page whose server was gone loads itself again: what was typed stays.
addEventListener("pagehide", () => sessionStorage.setItem("typed", document.querySelector("#box textarea")?.value ?? ""));
const NAMES = { ".submit-button": "Send", ".stop-button": "Stop", ".toggle-button": "Settings" };
new MutationObserver((changes) => {
  for (const [place, name] of Object.entries(NAMES)) // of buttons that have a picture only
    document.querySelectorAll(place).forEach((button) => {
      if (button.title !== name) button.title = button.ariaLabel = name;
    });
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    const typing = node.querySelector?.("#box textarea");
    if (typing && sessionStorage.typed)
      setTimeout(() => {
        typing.value = sessionStorage.typed;
        typing.dispatchEvent(new Event("input"));
        sessionStorage.typed = "";
      });
    const box = node.matches?.("#chat textarea") ? node : node.querySelector?.("#chat textarea");
    if (box)
      setTimeout(() => { // when Gradio has filled it
        box.value = textOf(box.value);
        box.dispatchEvent(new Event("input"));
      });
  }
}).observe(document, { childList: true, subtree: true });
