// Small helps that markup alone cannot give. The pages can be read without them.

// A wide equation scrolls sideways. Let the keyboard reach it, as the theme does for code.
function reachWideEquations() {
  for (const equation of document.querySelectorAll('mjx-container[display="true"]')) {
    if (equation.scrollWidth > equation.clientWidth) equation.tabIndex = 0;
    else equation.removeAttribute("tabindex");
  }
}

// Quotation marks in prose are typeset, those of a pasted error message are not.
const plain = (text) => text.toLowerCase().replace(/[\u2018\u2019]/g, "'").replace(/[\u201c\u201d]/g, '"');

// A filter over the symptoms, by all their words: pasting an error message finds its entry.
function addSymptomFilter() {
  const symptoms = [...document.querySelectorAll("details.symptom")];
  if (!symptoms.length) return;
  const form = document.createElement("div");
  form.className = "symptom-filter";
  form.innerHTML =
    '<label for="symptom-words">Filter by your words, or paste an error message</label>' +
    '<input id="symptom-words" class="form-control" type="search" autocomplete="off">' +
    '<p role="status"></p>';
  const [, input, status] = form.children;
  const heading = symptoms[0].closest("section").querySelector("h3");
  heading.parentNode.before(form);
  input.addEventListener("input", () => {
    const words = plain(input.value).split(/\s+/).filter(Boolean);
    for (const symptom of symptoms) {
      const text = plain(symptom.textContent);
      symptom.hidden = !words.every((word) => text.includes(word));
    }
    const shown = symptoms.filter((symptom) => !symptom.hidden).length;
    status.textContent = words.length ? `${shown} of ${symptoms.length} symptoms` : "";
  });
}

// What scrolls sideways is measured when a page is loaded or resized. What was folded then
// must be measured again when it opens.
function measureAgain() {
  setTimeout(() => window.dispatchEvent(new Event("resize")));
}

document.addEventListener("toggle", measureAgain, true);
document.addEventListener("click", (click) => {
  if (click.target.closest(".admonition.dropdown")) measureAgain();
});
document.addEventListener("DOMContentLoaded", addSymptomFilter);
window.addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(reachWideEquations);
  window.addEventListener("resize", reachWideEquations);
});
