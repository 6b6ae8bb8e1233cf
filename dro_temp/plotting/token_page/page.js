
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = document.getElementById("text");
  const card = document.getElementById("card");
  const tokens = Array.from(text.querySelectorAll(".t"));
  let open = null; // the token whose card is shown
  let kept = false; // by Enter or a click: the mouse does not take it away
  let closing = 0;

  // Only textContent, never innerHTML: the text cannot become markup.
  const element = (tag, content, className = "") => {
    const made = document.createElement(tag);
    made.textContent = content;
    made.className = className;
    return made;
  };

  const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

  const listed = (heading, candidates) => {
    const part = document.createElement("div");
    const list = document.createElement("ol");
    for (const [word, p, actual] of candidates) {
      const item = element("li", "", actual ? "actual" : "");
      const bar = document.createElement("b");
      bar.style.width = `${100 * p}%`;
      item.append(element("code", word), element("span", percent(p)), bar);
      list.append(item);
    }
    part.append(element("h3", heading), list);
    return part;
  };

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

  const show = (token) => {
    clearTimeout(closing);
    if (token === open) return;
    hide();
    open = token;
    const { token: word, tau, before, after } = data[tokens.indexOf(token)];
    const head = element("div", "", "head");
    head.append(element("code", word), element("span", tau === null ? "not predicted" : `τ = ${tau}`));
    card.replaceChildren(head);
    if (before.length || after.length) {
      const lists = element("div", "", "lists");
      lists.append(listed("before: τ = 1", before), listed(`after: τ = ${tau ?? "?"}`, after));
      card.append(lists);
      if ([...before, ...after].some(([, , actual]) => actual)) card.append(element("small", "◂ what the text says"));
    } else {
      card.append(element("small", "No prediction is shown for this token."));
    }
    token.classList.add("open");
    token.setAttribute("aria-describedby", "card");
    card.hidden = false;
    place();
  };

  // A moment's patience, so that the mouse can move onto the card. What has the focus keeps its card.
  const hideSoon = () => {
    clearTimeout(closing);
    if (!kept && open !== document.activeElement) closing = setTimeout(hide, 150);
  };

  const go = (number) => {
    const next = tokens[Math.max(0, Math.min(number, tokens.length - 1))];
    for (const token of tokens) if (token.tabIndex === 0) token.tabIndex = -1;
    next.tabIndex = 0; // Tab leads to the text once, and back to where one was
    next.focus();
  };

  const of = (event) => event.target.closest?.(".t");
  // Scrolling moves tokens under a mouse that rests; only one that moves points at something.
  const moves = (event) => event.movementX !== 0 || event.movementY !== 0;
  text.addEventListener("mousemove", (event) => of(event) && moves(event) && !kept && show(of(event)));
  text.addEventListener("mouseout", hideSoon);
  card.addEventListener("mouseenter", () => clearTimeout(closing));
  card.addEventListener("mouseleave", hideSoon);
  text.addEventListener("focusin", (event) => of(event) && show(of(event)));
  text.addEventListener("focusout", hide);
  text.addEventListener("click", (event) => {
    if (!of(event)) return;
    go(tokens.indexOf(of(event)));
    show(of(event)); // it may have had the focus, and been closed with Escape
    kept = true;
  });
  text.addEventListener("keydown", (event) => {
    const here = tokens.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (here < 0) return;
    if (to !== undefined) go(to);
    else if (event.key === "Enter" || event.key === " ") {
      show(tokens[here]);
      kept = true;
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("td a");
    if (!link) return;
    event.preventDefault();
    const token = document.getElementById(link.hash.slice(1));
    token.scrollIntoView({ block: "center" });
    go(tokens.indexOf(token));
  });
  window.addEventListener("scroll", place, { passive: true });
  window.addEventListener("resize", place);

  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = dark === "dark" ? "light" : "dark";
  });
})();
