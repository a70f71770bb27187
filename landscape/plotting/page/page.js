"use strict";
(() => {
  // The figures are made for white paper; these are the same colours on a dark ground.
  const ON_DARK = {
    "#222": "#e4e4e4", "#444": "#c4c4c4", "#555": "#9a9a9a", "#777": "#a0a0a0", "#888": "#8a8a8a", "#999": "#8a8a8a",
    "#999999": "#8a8a8a", "#ddd": "#45494f", "#e5e5e5": "#33373d", "black": "#f0f0f0", "#000000": "#f0f0f0",
    "white": "#16181c", "rgba(255,255,255,0.75)": "rgba(22,24,28,0.75)",
    "#0072B2": "#3d9fdc", "#D55E00": "#f07c2a", "#009E73": "#1fc596",
  };
  const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false };
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preference.matches);

  function recoloured(value, key) {
    if (Array.isArray(value)) return value.map(item => recoloured(item, key));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recoloured(item, name)]));
    return typeof value === "string" && /color$/.test(key) && value in ON_DARK ? ON_DARK[value] : value;
  }

  function figureOf(plot) {
    const figure = JSON.parse(document.getElementById(plot.id + "-figure").textContent);
    const shown = dark() ? recoloured(figure, "") : figure;
    const clear = "rgba(0,0,0,0)";
    const modebar = { bgcolor: clear, color: dark() ? "#888" : "#999", activecolor: dark() ? "#ddd" : "#444" };
    Object.assign(shown.layout, { paper_bgcolor: clear, plot_bgcolor: clear, modebar, uirevision: "kept" });
    const camera = cameras.get(groupOf(plot));
    if (camera && shown.layout.scene) shown.layout.scene.camera = JSON.parse(camera);
    return shown;
  }

  // --- plots are drawn when they come into view, and scenes dropped when they leave it: a browser has few of them ---

  const cameras = new Map(); // of each section whose scenes were turned, as JSON
  const groupOf = plot => plot.closest("section");
  const isDrawn = plot => plot.dataset.drawn !== undefined; // plotly's own class outlives the plot
  const waiting = new Set();
  const near = new Set(); // plots in view, or almost

  function draw(plot) {
    const { data, layout } = figureOf(plot);
    return Plotly.react(plot, data, layout, CONFIG).then(
      () => {
        plot.dataset.drawn = "yes";
        if (plot.dataset.turns === undefined) return;
        if (near.has(plot)) lock(plot);
        else drop(plot); // it left the view while it was drawn
      },
      error => { plot.textContent = "This plot could not be drawn: " + error.message; },
    );
  }

  function drop(plot) {
    Plotly.purge(plot);
    delete plot.dataset.locked;
    delete plot.dataset.drawn;
  }

  function drawNext() {
    const [plot] = waiting;
    if (plot === undefined) return;
    waiting.delete(plot);
    draw(plot).finally(() => setTimeout(drawNext));
  }

  const observer = new IntersectionObserver(entries => {
    const idle = waiting.size === 0;
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) near.add(target);
      else near.delete(target);
      if (isIntersecting && !isDrawn(target)) waiting.add(target);
      if (isIntersecting) continue;
      waiting.delete(target);
      if (isDrawn(target) && target.dataset.turns !== undefined) drop(target);
    }
    if (idle) setTimeout(drawNext);
  }, { rootMargin: "300px 0px" });
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(plot => observer.observe(plot));

  // --- the scenes of a section have one camera ---

  function lock(plot) {
    if (plot.dataset.locked) return;
    plot.dataset.locked = "yes";
    for (const event of ["plotly_relayout", "plotly_relayouting"])
      plot.on(event, change => {
        if (Object.keys(change).some(key => key.startsWith("scene.camera"))) look(groupOf(plot), plot.layout.scene.camera, plot);
      });
  }

  function look(section, camera, from) {
    const text = JSON.stringify(camera);
    if (cameras.get(section) === text) return; // the echo of our own turning
    cameras.set(section, text);
    for (const plot of section.querySelectorAll(".plot[data-turns]"))
      if (plot !== from && isDrawn(plot)) Plotly.relayout(plot, { "scene.camera": JSON.parse(text) });
  }

  const STEP = Math.PI / 12;
  function turn(section, way) {
    const first = section.querySelector(".plot[data-turns]");
    const original = JSON.parse(document.getElementById(first.id + "-figure").textContent).layout.scene.camera;
    const camera = way === "back" || !cameras.has(section) ? original : JSON.parse(cameras.get(section));
    const { x, y, z } = camera.eye;
    let [length, angle, height] = [Math.hypot(x, y, z), Math.atan2(y, x), Math.asin(z / Math.hypot(x, y, z))];
    if (way === "left") angle -= STEP;
    if (way === "right") angle += STEP;
    if (way === "up") height = Math.min(height + STEP, 1.5);
    if (way === "down") height = Math.max(height - STEP, -1.5);
    if (way === "near") length *= 0.85;
    if (way === "far") length /= 0.85;
    const across = length * Math.cos(height);
    camera.eye = way === "back" ? original.eye
      : { x: across * Math.cos(angle), y: across * Math.sin(angle), z: length * Math.sin(height) };
    look(section, camera);
  }

  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", "+": "near", "-": "far", Home: "back" };
  document.addEventListener("keydown", event => {
    if (!event.target.matches(".plot[data-turns]") || !(event.key in KEYS)) return;
    event.preventDefault();
    turn(groupOf(event.target), KEYS[event.key]);
  });
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-way]");
    if (button) turn(button.closest("section"), button.dataset.way);
  });

  // --- light and dark ---

  const switcher = document.getElementById("theme");
  const name = () => { switcher.textContent = dark() ? "Light" : "Dark"; };
  const again = () => { name(); plots.filter(isDrawn).forEach(draw); };
  switcher.hidden = false;
  switcher.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; again(); });
  preference.addEventListener("change", again);
  name();

  // --- tables ---

  function sort(heading) {
    const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
    const falls = heading.ariaSort === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent.trim() : parseFloat(cell.dataset.value);
    };
    const last = value => (Number.isNaN(value) ? 1 : 0);
    const compare = (a, b) => (typeof a === "string" || typeof b === "string"
      ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b);
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => last(a) - last(b) || (last(a) ? 0 : falls ? compare(b, a) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  }
  document.addEventListener("click", event => {
    const button = event.target.closest("th button");
    if (button) sort(button.closest("th"));
  });
})();
