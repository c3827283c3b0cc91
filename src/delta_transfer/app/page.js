"use strict";
// Each image is asked about by itself, so that one that is refused does not cost the others.

const form = document.getElementById("ask");
const input = document.getElementById("images");
const drop = document.getElementById("drop");
const told = document.getElementById("status");
const answers = document.getElementById("answers");
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
  answers.append(article);
}

async function askAbout(file, signal) {
  const body = new FormData();
  body.append("class", form.elements.class.value);
  body.append("images", file);
  const response = await fetch("/look", { method: "POST", body, signal });
  const text = await response.text();
  if (!response.ok) {
    refuse(file.name, `was not answered: ${text}`);
    return false;
  }
  const part = document.createElement("template");
  part.innerHTML = text; // made by the server, its values escaped
  const refused = part.content.querySelector(".refused") !== null;
  answers.append(part.content);
  return !refused;
}

async function ask() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  answers.replaceChildren();
  answers.setAttribute("aria-busy", "true");
  let good = 0;
  for (const [number, file] of chosen.entries()) {
    told.textContent = `Looking at ${number + 1} of ${chosen.length}: ${file.name}`;
    try {
      if (file.size > limit) {
        const size = (file.size / 2 ** 20).toFixed(0);
        refuse(file.name, `is too large: it has ${size} MiB, and ${limit / 2 ** 20} are taken. Scale it down.`);
      } else if (await askAbout(file, signal)) {
        good += 1;
      }
    } catch (error) {
      if (signal.aborted) return;
      refuse(file.name, `was not answered: ${error.message}. Is the command still running, and the file still there?`);
    }
  }
  answers.removeAttribute("aria-busy");
  const refused = chosen.length - good;
  told.textContent = `Looked at ${good} of ${chosen.length}${refused ? `; ${refused} refused` : ""}.`;
}

function choose(files) {
  if (!files.length) return;
  chosen = [...files];
  ask();
}

input.addEventListener("change", () => choose(input.files));
form.elements.class.addEventListener("change", () => { if (chosen.length) ask(); });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  choose(input.files);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  // Anywhere on the page: beside the field the browser would leave it for the image.
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
