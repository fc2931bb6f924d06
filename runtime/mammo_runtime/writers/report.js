"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const list = byId("cards");
  const cards = Array.from(list.children);
  const controls = byId("controls");
  const number = (card, key) => Number(card.dataset[key]);

  const falling = (key) => (a, b) => number(b, key) - number(a, key);
  const inOrder = (a, b) => number(a, "order") - number(b, "order");
  const byName = new Intl.Collator(undefined, { numeric: true });
  const sorts = {
    order: inOrder,
    name: (a, b) => byName.compare(a.dataset.name, b.dataset.name),
    findings: falling("findings"),
    peak: falling("peak"),
    area: (a, b) => falling("mm2")(a, b) || falling("px")(a, b),
  };

  function wanted(card, kind, words, least) {
    const own = card.dataset.kind;
    const judged = own === "with" || own === "without";
    if (kind !== "all" && own !== kind) return false;
    if (words && !card.dataset.name.toLowerCase().includes(words)) return false;
    return !(judged && least > 0 && number(card, "peak") < least);
  }

  function filter() {
    const kind = controls.elements.kind.value;
    const words = byId("search").value.trim().toLowerCase();
    const least = Number(byId("least").value);
    byId("least-shown").textContent = least.toFixed(2);
    let shown = 0;
    for (const card of cards) {
      card.hidden = !wanted(card, kind, words, least);
      shown += card.hidden ? 0 : 1;
    }
    byId("shown").textContent = `Showing ${shown} of ${cards.length} images`
      + (shown < cards.length ? " (filtered)" : "");
  }

  function sort() {
    const compare = sorts[byId("sort").value];
    list.append(...cards.slice().sort((a, b) => compare(a, b) || inOrder(a, b)));
  }

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", filter);
  byId("sort").addEventListener("change", sort);
  // The fields take their first values only after the event.
  controls.addEventListener("reset", () => setTimeout(() => { filter(); sort(); }));

  const viewer = byId("viewer");
  let current = null;
  const pictured = () => Array.from(list.children).filter((card) => !card.hidden && card.querySelector(".picture"));

  function show(card) {
    const link = card.querySelector(".picture");
    current = card;
    byId("viewer-picture").src = link.querySelector("img").src;
    byId("viewer-picture").alt = link.querySelector("img").alt;
    byId("viewer-name").textContent = card.dataset.name;
    byId("viewer-verdict").textContent = card.querySelector(".verdict").textContent;
    byId("viewer-file").hidden = link.getAttribute("href") === "#cards";
    byId("viewer-file").href = link.getAttribute("href");
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const choice = pictured();
    show(choice[(choice.indexOf(current) + by + choice.length) % choice.length]);
  }

  list.addEventListener("click", (event) => {
    const link = event.target.closest(".picture");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link.closest(".card"));
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  viewer.addEventListener("close", () => {
    const link = current && current.querySelector(".picture");
    if (link) link.focus();
  });

  // Paper cannot be unfolded.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

  controls.hidden = false;
  controls.reset();
  filter();
})();
