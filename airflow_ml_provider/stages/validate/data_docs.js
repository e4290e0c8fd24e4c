"use strict";
// The two things that the pages do with jQuery and Bootstrap: fold details, and show failures only.
document.querySelectorAll('[data-toggle="collapse"]').forEach((link) => {
  // The same id can stand in a page more than once: what is folded comes next after its link.
  const sameId = document.querySelectorAll(`[id="${CSS.escape(link.getAttribute("href").slice(1))}"]`);
  const body = [...sameId].find((e) => link.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (body) link.setAttribute("aria-expanded", String(body.classList.toggle("show")));
  });
});
const showPassed = (shown) => {
  const set = (element) => { if (element) element.style.display = shown ? "" : "none"; };
  document.querySelectorAll(".hide-succeeded-validation-target-child").forEach((e) => set(e.parentElement));
  document.querySelectorAll(".hide-succeeded-validation-target").forEach(set);
  document.querySelectorAll(".hide-succeeded-validations-column-section-target-child").forEach((e) => {
    const section = e.parentElement.parentElement;
    set(section);
    document.querySelectorAll(`a[href$="${CSS.escape(section.id)}"]`).forEach(set);
  });
};
document.querySelectorAll(".btn-group-toggle .btn").forEach((button, position, all) => {
  button.removeAttribute("onclick");
  button.addEventListener("click", () => {
    all.forEach((other) => other.classList.toggle("active", other === button));
    showPassed(position === 0);
  });
});
