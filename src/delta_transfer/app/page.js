"use strict";
// Each image has its own request, so that a rejected one does not affect the others.

const form = document.getElementById("image-form");
const input = document.getElementById("images");
const drop = document.getElementById("drop");
const statusLine = document.getElementById("status");
const explanations = document.getElementById("explanations");
const limit = Number(form.dataset.limit);

let chosen = [];
let running = null;

for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
for (const part of document.querySelectorAll(".unscripted")) part.hidden = true;

function refuse(name, reason) {
  const article = document.createElement("article");
  const heading = document.createElement("h2");
  const line = document.createElement("p");
  article.className = "refused";
  heading.textContent = name;
  line.textContent = `${name} ${reason}`;
  article.append(heading, line);
  explanations.append(article);
}

async function explainFile(file, signal) {
  const body = new FormData();
  body.append("class", form.elements.class.value);
  body.append("images", file);
  const response = await fetch("/explain", { method: "POST", body, signal });
  const text = await response.text();
  if (!response.ok) {
    refuse(file.name, `was not processed: ${text}`);
    return false;
  }
  const part = document.createElement("template");
  part.innerHTML = text; // escaped by the server
  const refused = part.content.querySelector(".refused") !== null;
  explanations.append(part.content);
  return !refused;
}

async function explainAll() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  explanations.replaceChildren();
  explanations.setAttribute("aria-busy", "true");
  let good = 0;
  for (const [number, file] of chosen.entries()) {
    statusLine.textContent = `Processing ${number + 1} of ${chosen.length}: ${file.name}`;
    try {
      if (file.size > limit) {
        const size = (file.size / 2 ** 20).toFixed(0);
        refuse(file.name, `is too large: ${size} MiB, at most ${limit / 2 ** 20} are allowed. Scale it down.`);
      } else if (await explainFile(file, signal)) {
        good += 1;
      }
    } catch (error) {
      if (signal.aborted) return;
      refuse(file.name, `was not processed: ${error.message}. Check that the command is still running and the file still exists.`);
    }
  }
  explanations.removeAttribute("aria-busy");
  const refused = chosen.length - good;
  statusLine.textContent = `Processed ${good} of ${chosen.length}${refused ? `; ${refused} rejected` : ""}.`;
}

function choose(files) {
  if (!files.length) return;
  chosen = [...files];
  explainAll();
}

input.addEventListener("change", () => choose(input.files));
form.elements.class.addEventListener("change", () => { if (chosen.length) explainAll(); });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  choose(input.files);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  // Anywhere on the page: a browser would navigate to an image dropped outside the field.
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
