// Buttons that do something: each opens one dialog, which says what will happen and wants a reason.
"use strict";

const script = document.currentScript;
const token = document.querySelector('meta[name="evergreen-token"]').content;

async function send(route, body) {
  const answer = await fetch(`${script.dataset.base}/actions/${route}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-evergreen-token": token },
    body: JSON.stringify(body),
  });
  if (answer.ok) return answer.json();
  throw new Error((await answer.text()) || `Airflow answered ${answer.status}`);
}

function open(button) {
  const dialog = document.getElementById("act");
  const form = dialog.querySelector("form");
  const choices = dialog.querySelector("fieldset");
  const options = JSON.parse(button.dataset.options);
  form.reset();
  dialog.querySelector("h2").textContent = button.dataset.title;
  document.getElementById("act-words").textContent = button.dataset.words;
  dialog.querySelector(".said").textContent = "";
  dialog.querySelector(".do").textContent = button.textContent;
  choices.hidden = options.length === 0;
  choices.replaceChildren(choices.firstElementChild, ...options.map((option) => {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "option", value: option, required: true });
    label.append(radio, ` ${option}`);
    return label;
  }));
  form.onsubmit = (event) => {
    event.preventDefault();
    submit(dialog, form, button);
  };
  dialog.showModal();
}

async function submit(dialog, form, button) {
  const go = dialog.querySelector(".do");
  if (go.disabled) return;
  go.disabled = true;
  try {
    const told = await send(button.dataset.act, { ...JSON.parse(button.dataset.fields), ...Object.fromEntries(new FormData(form)) });
    dialog.close();
    // What is shown after the page was read anew, so that it shows what is now.
    sessionStorage.setItem("evergreen-done", JSON.stringify(told));
    window.location.reload();
  } catch (error) {
    dialog.querySelector(".said").textContent = error.message;
  } finally {
    go.disabled = false;
  }
}

function tellWhatWasDone() {
  const told = sessionStorage.getItem("evergreen-done");
  if (!told) return;
  sessionStorage.removeItem("evergreen-done");
  const { message, href } = JSON.parse(told);
  const place = document.getElementById("done");
  place.textContent = message;
  if (href) {
    const link = document.createElement("a");
    Object.assign(link, { href: script.dataset.airflow + href, textContent: "Open it", className: "out" });
    link.dataset.out = "";
    place.append(" ", link);
  }
  place.hidden = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (button) open(button);
  if (event.target.closest('#act button[value="cancel"]')) document.getElementById("act").close();
});
tellWhatWasDone();
