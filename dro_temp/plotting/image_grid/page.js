
{
  cards(document.getElementById("grid"), ".i", ({ caption, tau, heading, near }) => {
    const head = element("div", "", "head");
    head.append(element("code", caption), element("span", `τ = ${tau}`));
    return near.length ? [head, listed(heading, near)] : [head];
  });
}
