
{
  const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
  const rows = (candidates) => candidates.map(([word, p, actual]) => [word, percent(p), p, actual]);

  cards(document.getElementById("text"), ".t", ({ token, tau, before, after }) => {
    const head = element("div", "", "head");
    head.append(element("code", token), element("span", tau === null ? "not predicted" : `τ = ${tau}`));
    if (!before.length && !after.length) return [head, element("small", "No prediction is shown for this token.")];
    const lists = element("div", "", "lists");
    lists.append(listed("before: τ = 1", rows(before)), listed(`after: τ = ${tau ?? "?"}`, rows(after)));
    const marked = [...before, ...after].some(([, , actual]) => actual);
    return [head, lists, ...(marked ? [element("small", "◂ what the text says")] : [])];
  });
}
