// Forms: errors at the fields of a new job while it is filled in, and the progress of an upload. Pages also work without
// this script.
"use strict";

(() => {
  const clearError = (error) => {
    const field = error.closest(".field");
    const input = field.querySelector("input, select, textarea");
    field.classList.remove("invalid");
    input.removeAttribute("aria-invalid");
    input.setAttribute("aria-describedby", `${input.id}-help`);
    error.remove();
  };

  const showError = (error) => {
    const input = document.getElementById(error.id.replace(/-error$/, ""));
    if (!input || document.getElementById(error.id)) return;
    error.dataset.live = "";
    input.closest(".field").classList.add("invalid");
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", `${input.id}-help ${error.id}`);
    input.after(error);
    for (let part = input.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  };

  // The estimate brings the errors of the values so far. An error of a form that was sent stays until its field changes.
  const showErrors = (estimate) => {
    for (const error of estimate.closest("form").querySelectorAll(".field .field-error")) {
      const input = error.closest(".field").querySelector("input, select, textarea");
      if ("live" in error.dataset || "edited" in input.dataset) clearError(error);
    }
    for (const error of [...estimate.querySelector("[data-flaws]").content.children]) showError(error);
  };

  document.addEventListener("input", (event) => { event.target.dataset.edited = ""; });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.matches(".estimate")) showErrors(event.target);
  });
  document.addEventListener("htmx:xhr:progress", (event) => {
    const bar = event.target.querySelector?.(".upload-progress");
    if (!bar || !event.detail.total) return;
    bar.hidden = false;
    bar.value = event.detail.loaded / event.detail.total;
  });
})();
