// The page without this file is a form; with it each change is shown at once.
"use strict";
const SECONDS = 0.35; // that a frame is shown at speed 1
const main = document.querySelector("main");
const players = new Map(); // panel -> {frame, playing, timer}

function query(panel) {
  const given = new URLSearchParams(new FormData(panel.querySelector(".controls")));
  return given;
}

function remember() {
  const all = [...main.querySelectorAll(".panel")].flatMap((panel) => [...query(panel)]);
  if (document.querySelector("#compare input").checked) all.push(["compare", "1"]);
  history.replaceState(null, "", "?" + new URLSearchParams(all));
}

async function renew(panel, given) {
  const prefix = panel.dataset.prefix, focused = document.activeElement, name = focused && focused.name;
  const number = (panel.asked = (panel.asked || 0) + 1);
  panel.classList.add("busy");
  const asked = new URLSearchParams(given);
  asked.set("panel", prefix);
  let html;
  try {
    const answer = await fetch("/panel?" + asked);
    html = await answer.text();
    if (!answer.ok) throw new Error(html);
  } catch (error) {
    panel.classList.remove("busy");
    const line = Object.assign(document.createElement("p"), { className: "wrong", textContent: "No answer: " + error.message });
    line.setAttribute("role", "alert");
    panel.querySelector(".shown").prepend(line);
    return;
  }
  if (panel.asked !== number) return; // a later change is on its way
  const held = document.createElement("template");
  held.innerHTML = html.trim();
  const fresh = held.content.firstElementChild;
  stop(panel);
  panel.replaceWith(fresh);
  start(fresh);
  remember();
  if (name && focused.closest(".controls")) {
    const again = fresh.querySelector(`[name="${name}"]` + (focused.type === "radio" ? ":checked" : ""));
    if (again) again.focus();
  }
}

// -- the animation ---------------------------------------------------------------------------------------
function start(panel) {
  const line = panel.querySelector(".timeline"), svg = panel.querySelector("svg.reconv");
  if (!line || !svg) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const player = { frame: 0, playing: !still, count: Number(line.dataset.frames) };
  players.set(panel, player);
  svg.classList.add("steered");
  player.marks = Array.from({ length: player.count }, (_, i) => svg.querySelectorAll(".f" + i));
  show(panel, 0);
  says(panel);
  player.timer = setTimeout(() => tick(panel), 1000 * SECONDS);
}

function stop(panel) {
  const player = players.get(panel);
  if (player) clearTimeout(player.timer);
  players.delete(panel);
}

function tick(panel) {
  const player = players.get(panel);
  if (!player) return;
  if (player.playing) show(panel, (player.frame + 1) % player.count);
  const speed = Number(panel.querySelector(".speed").value);
  player.timer = setTimeout(() => tick(panel), (1000 * SECONDS) / speed);
}

function show(panel, frame) {
  const player = players.get(panel);
  player.marks[player.frame].forEach((mark) => mark.classList.remove("on"));
  player.frame = frame;
  player.marks[frame].forEach((mark) => mark.classList.add("on"));
  const slider = panel.querySelector(".time");
  slider.value = frame;
  const told = panel.querySelector(".made-text.f" + frame);
  slider.setAttribute("aria-valuetext", told ? told.textContent : String(frame));
}

function says(panel) {
  const button = panel.querySelector(".play"), player = players.get(panel);
  button.textContent = player.playing ? "pause" : "play";
  button.setAttribute("aria-pressed", String(player.playing));
}

// -- what people do --------------------------------------------------------------------------------------
main.addEventListener("input", (event) => {
  const panel = event.target.closest(".panel");
  if (event.target.classList.contains("time")) {
    players.get(panel).playing = false;
    says(panel);
    show(panel, Number(event.target.value));
  } else if (event.target.closest(".controls")) {
    const prefix = panel.dataset.prefix, given = query(panel);
    // another kind or dimension begins with what shows it well
    const kept = { kind: ["kind", "dims"], dims: ["kind", "dims"] }[event.target.name.replace(prefix, "")];
    if (kept) for (const name of [...given.keys()]) if (!kept.includes(name.replace(prefix, ""))) given.delete(name);
    clearTimeout(panel.waiting);
    panel.waiting = setTimeout(() => renew(panel, given), event.target.type === "number" ? 150 : 0);
  }
});

main.addEventListener("click", async (event) => {
  const button = event.target.closest("button"), panel = event.target.closest(".panel");
  if (!button || !panel) return;
  if (button.classList.contains("play")) {
    const player = players.get(panel);
    player.playing = !player.playing;
    says(panel);
  } else if (button.classList.contains("copy")) {
    const code = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(code);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("code"));
      button.textContent = "selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "copy"), 2000);
  } else if (button.classList.contains("measure")) {
    measure(panel, button);
  }
});

async function measure(panel, button) {
  const place = panel.querySelector(".latency"), given = query(panel);
  given.set("panel", panel.dataset.prefix);
  button.disabled = true;
  button.textContent = "measuring …";
  let told;
  try {
    told = await (await fetch("/latency?" + given)).json();
  } catch (error) {
    told = { latency: "no answer: " + error.message };
  }
  place.textContent = [told.latency, told.kernel && "computed by: " + told.kernel, told.where].filter(Boolean).join("; ");
}

main.addEventListener("submit", (event) => event.preventDefault());

document.querySelector("#compare input").addEventListener("change", (event) => {
  const all = [...main.querySelectorAll(".panel")].flatMap((panel) => [...query(panel)]);
  if (event.target.checked) all.push(["compare", "1"], ["b.kind", "separable"]);
  location.search = "?" + new URLSearchParams(all.filter(([name], i) => event.target.checked || !name.startsWith("b.")));
});

main.querySelectorAll(".panel").forEach(start);
