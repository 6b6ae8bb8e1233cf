"use strict";

// Only textContent, never innerHTML: what is shown cannot become markup.
const element = (tag, content, className = "") => {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = className;
  return made;
};

// A list under a heading: of each row a word, what is written after it, the share of a bar, and whether it is marked.
const listed = (heading, rows) => {
  const part = document.createElement("div");
  const list = document.createElement("ol");
  for (const [word, written, share, marked] of rows) {
    const row = element("li", "", marked ? "actual" : "");
    const bar = document.createElement("b");
    bar.style.width = `${100 * share}%`;
    row.append(element("code", word), element("span", written), bar);
    list.append(row);
  }
  part.append(element("h3", heading), list);
  return part;
};

// A card for each item inside of a container, by mouse, touch or keyboard; `fill` makes its content from the data.
const cards = (container, selector, fill) => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const card = document.getElementById("card");
  const items = Array.from(container.querySelectorAll(selector));
  let open = null; // the item whose card is shown
  let kept = false; // by Enter or a click: the mouse does not take it away
  let closing = 0;

  const place = () => {
    if (!open) return;
    const at = open.getClientRects()[0] ?? open.getBoundingClientRect();
    const room = { width: document.documentElement.clientWidth, height: window.innerHeight };
    const below = at.bottom + 6;
    const top = below + card.offsetHeight <= room.height ? below : Math.max(8, at.top - 6 - card.offsetHeight);
    card.style.left = `${Math.max(8, Math.min(at.left, room.width - card.offsetWidth - 8))}px`;
    card.style.top = `${top}px`;
  };

  const hide = () => {
    clearTimeout(closing);
    open?.classList.remove("open");
    open?.removeAttribute("aria-describedby");
    card.hidden = true;
    open = null;
    kept = false;
  };

  const show = (item) => {
    clearTimeout(closing);
    if (item === open) return;
    hide();
    open = item;
    card.replaceChildren(...fill(data[items.indexOf(item)]));
    item.classList.add("open");
    item.setAttribute("aria-describedby", "card");
    card.hidden = false;
    place();
  };

  // A moment's patience, so that the mouse can move onto the card. What has the focus keeps its card.
  const hideSoon = () => {
    clearTimeout(closing);
    if (!kept && open !== document.activeElement) closing = setTimeout(hide, 150);
  };

  const go = (number) => {
    const next = items[Math.max(0, Math.min(number, items.length - 1))];
    for (const item of items) if (item.tabIndex === 0) item.tabIndex = -1;
    next.tabIndex = 0; // Tab leads here once, and back to where one was
    next.focus();
  };

  const of = (event) => event.target.closest?.(selector);
  // Scrolling moves items under a mouse that rests; only one that moves points at something.
  const moves = (event) => event.movementX !== 0 || event.movementY !== 0;
  container.addEventListener("mousemove", (event) => of(event) && moves(event) && !kept && show(of(event)));
  container.addEventListener("mouseout", hideSoon);
  card.addEventListener("mouseenter", () => clearTimeout(closing));
  card.addEventListener("mouseleave", hideSoon);
  container.addEventListener("focusin", (event) => of(event) && show(of(event)));
  container.addEventListener("focusout", hide);
  container.addEventListener("click", (event) => {
    if (!of(event)) return;
    go(items.indexOf(of(event)));
    show(of(event)); // it may have had the focus, and been closed with Escape
    kept = true;
  });
  container.addEventListener("keydown", (event) => {
    const here = items.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: items.length - 1 }[event.key];
    if (here < 0) return;
    if (to !== undefined) go(to);
    else if (event.key === "Enter" || event.key === " ") {
      show(items[here]);
      kept = true;
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("td a");
    if (!link) return;
    event.preventDefault();
    const item = document.getElementById(link.hash.slice(1));
    item.scrollIntoView({ block: "center" });
    go(items.indexOf(item));
  });
  window.addEventListener("scroll", place, { passive: true });
  window.addEventListener("resize", place);
};

{
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = dark === "dark" ? "light" : "dark";
  });
}
