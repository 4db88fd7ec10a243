"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { layers, heads, length } = data;
  const bytes = Uint8Array.from(atob(data.weights), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const readout = document.getElementById("readout");
  let query = data.query;
  let held = false;

  // The weight from token i to token j; head -1 is the mean of the layer's heads.
  function weight(layer, head, i, j) {
    if (head < 0) {
      let sum = 0;
      for (let h = 0; h < heads; h++) sum += weight(layer, h, i, j);
      return sum / heads;
    }
    return view.getUint16(2 * (((layer * heads + head) * length + i) * length + j), true) / data.unit;
  }

  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  function make(tag, text, parent) {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  // Tokens or patches that can be pointed at, held and walked over with the arrow keys.
  function interactive(elements, draw, describe, across) {
    const choose = (n) => {
      elements[query].tabIndex = -1;
      query = n;
      elements[query].tabIndex = 0;
      draw();
    };
    elements.forEach((element, n) => {
      element.tabIndex = n === query ? 0 : -1;
      element.setAttribute("role", "button");
      element.addEventListener("pointerenter", (event) => {
        if (!held && event.pointerType === "mouse") choose(n);
        else if (held) describe(n);
      });
      element.addEventListener("pointerleave", () => { if (held) describe(null); });
      element.addEventListener("click", () => {
        held = !(held && query === n);
        choose(n);
      });
      element.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
        if (!step || !elements[n + step]) return;
        event.preventDefault();
        held = true;
        choose(n + step);
        elements[n + step].focus();
      });
    });
    draw();
  }

  function texts() {
    const box = document.getElementById("tokens");
    const tokens = [...box.querySelectorAll(".token")];
    const titles = tokens.map((token) => token.title);
    const picker = document.getElementById("picker");
    const buttons = [...picker.querySelectorAll("button")];
    const tops = document.getElementById("tops");
    const rows = [];
    let layer = Math.floor(data.head / heads);
    let head = data.head % heads;

    const place = () => `layer ${layer + 1}, ${head < 0 ? "mean of the heads" : `head ${head + 1}`}`;

    function describe(n) {
      readout.textContent = "";
      make("span", `${place()}: `, readout);
      make("b", data.names[query], readout);
      if (n === null) {
        make("span", ` (token ${query + 1})${held ? ", held" : ""} attends most to `, readout);
        const shares = tokens.map((_, j) => weight(layer, head, query, j));
        const best = shares.indexOf(Math.max(...shares));
        make("b", data.names[best], readout);
        make("span", ` (token ${best + 1}), ${percent(shares[best])}`, readout);
      } else {
        make("span", ` (token ${query + 1}) gives `, readout);
        make("b", data.names[n], readout);
        make("span", ` (token ${n + 1}) ${percent(weight(layer, head, query, n))}`, readout);
      }
    }

    function draw() {
      const shares = tokens.map((_, j) => weight(layer, head, query, j));
      const most = Math.max(...shares);
      tokens.forEach((token, j) => {
        token.style.setProperty("--share", most ? (shares[j] / most).toFixed(3) : 0);
        token.classList.toggle("query", j === query);
        token.setAttribute("aria-pressed", String(held && j === query));
        token.title = `${titles[j]}, gets ${percent(shares[j])}`;
      });
      buttons.forEach((button) => {
        const on = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
        button.setAttribute("aria-pressed", String(on));
      });
      rows.forEach(({ cell, n, h }) => {
        cell.textContent = "";
        const all = tokens.map((_, j) => [weight(n, h, query, j), j]);
        all.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
        all.slice(0, 5).filter(([share]) => share > 0).forEach(([share, j]) => {
          const part = make("span", data.names[j], cell);
          part.className = "share";
          make("small", `#${j + 1}, ${percent(share)}`, part);
        });
      });
      document.getElementById("looks").textContent = `“${data.names[query]}” attends most to`;
      describe(null);
    }

    buttons.forEach((button) => button.addEventListener("click", () => {
      layer = Number(button.dataset.layer);
      head = Number(button.dataset.head);
      draw();
    }));
    for (let n = 0; n < layers; n++) {
      for (let h = 0; h < heads; h++) {
        const line = make("tr", "", tops.querySelector("tbody"));
        make("td", `layer ${n + 1}, head ${h + 1}`, line).className = "text";
        const cell = make("td", "", line);
        cell.className = "text";
        rows.push({ cell, n, h });
      }
    }
    box.setAttribute("role", "group");
    picker.hidden = tops.hidden = false;
    interactive(tokens, draw, describe, 1);
  }

  function pictures() {
    const { rows, columns, start } = data;
    const where = (n) => `row ${Math.floor(n / columns) + 1}, column ${(n % columns) + 1}`;

    function cells(board) {
      const grid = make("div", "", board);
      grid.className = "cells";
      grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
      grid.style.gridTemplateRows = `repeat(${rows}, 1fr)`;
      return Array.from({ length: rows * columns }, () => make("span", "", grid));
    }

    const main = cells(document.getElementById("board"));
    const overlays = [...document.querySelectorAll("#overlays figure")].map((figure) => {
      figure.hidden = false;
      const caption = figure.querySelector("small");
      const [layer, head] = [Number(figure.dataset.layer), Number(figure.dataset.head)];
      return { caption, layer, head, over: cells(figure.querySelector(".board")) };
    });

    function describe() {
      readout.textContent = `From ${where(query)}${held ? ", held" : ""}.`;
    }

    function draw() {
      main.forEach((cell, n) => {
        cell.classList.toggle("query", n === query);
        cell.setAttribute("aria-pressed", String(held && n === query));
        cell.setAttribute("aria-label", where(n));
        cell.title = where(n);
      });
      overlays.forEach(({ caption, layer, head, over }) => {
        const shares = over.map((_, j) => weight(layer, head, query + start, j + start));
        const most = Math.max(...shares);
        over.forEach((cell, j) => {
          cell.style.setProperty("--share", most ? (0.85 * shares[j] / most).toFixed(3) : 0);
          cell.classList.toggle("unseen", data.causal && j > query);
          cell.classList.toggle("query", j === query);
          cell.title = data.causal && j > query ? `${where(j)}: out of sight` : `${where(j)}: ${percent(shares[j])}`;
        });
        const lead = start ? `start ${percent(weight(layer, head, query + start, 0))}, ` : "";
        caption.textContent = `${lead}most ${percent(most)}`;
      });
      describe();
    }

    interactive(main, draw, describe, columns);
  }

  if (data.names) texts();
  else pictures();
})();
