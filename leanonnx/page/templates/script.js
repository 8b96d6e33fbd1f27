"use strict";
const said = document.getElementById("said");
const text = (id) => {
  const element = document.getElementById(id);
  return element.type === "application/json" ? JSON.stringify(JSON.parse(element.textContent), null, 1) + "\n" : element.textContent;
};
const copy = async (id) => {
  try {
    await navigator.clipboard.writeText(text(id));
    said.textContent = "Copied.";
  } catch {
    said.textContent = "This browser does not let the page copy; save it instead, or select the text.";
  }
};
const save = (id, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text(id)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  said.textContent = `Saved as ${name}.`;
};
for (const button of document.querySelectorAll("button")) {
  const { copy: copied, save: saved, name } = button.dataset;
  button.addEventListener("click", () => (copied ? copy(copied) : save(saved, name)));
}
