// Forms: errors at the fields of a new job while it is filled in, its draft, and the progress of an upload. Pages also
// work without this script.
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

  // The response with the estimate contains the errors of the current values. An error of a form that was sent stays
  // until its field changes.
  const showErrors = (estimate) => {
    for (const error of estimate.closest("form").querySelectorAll(".field .field-error")) {
      const input = error.closest(".field").querySelector("input, select, textarea");
      if ("live" in error.dataset || "edited" in input.dataset) clearError(error);
    }
    for (const error of [...estimate.querySelector("[data-flaws]").content.children]) showError(error);
  };

  // This tab keeps a draft of the form while the user signs in again, or after an error page.

  const form = document.querySelector("form[data-draft]");
  const place = () => `${location.pathname}${location.search} ${document.querySelector(".account").textContent}`;

  const saveDraft = () => {
    const values = [...new FormData(form)].filter(([name]) => name !== "csrf");
    sessionStorage.setItem("draft", JSON.stringify([place(), values]));
  };

  const restoreDraft = () => {
    const [draftPlace, values] = JSON.parse(sessionStorage.getItem("draft"));
    if (draftPlace !== place()) return;
    const sent = new Map(values);
    for (const input of form.querySelectorAll("[name]:not([name=csrf])")) {
      if (input.type === "checkbox") input.checked = sent.has(input.name);
      else input.value = sent.get(input.name) ?? "";
    }
  };

  if (form) {
    if (sessionStorage.getItem("interrupted") && sessionStorage.getItem("draft")) restoreDraft();
    sessionStorage.removeItem("interrupted");
    sessionStorage.removeItem("draft");
    form.addEventListener("submit", saveDraft);
    // The link to other defaults keeps what is entered in these fields.
    const link = document.querySelector("a[data-keep]");
    link?.addEventListener("click", () => {
      const url = new URL(link.href);
      for (const name of link.dataset.keep.split(" ")) url.searchParams.set(name, form.elements[name].value);
      link.href = url;
    });
    // The session has ended, so htmx reloads the page. The sign-in page appears, or this form with its input if the user
    // has signed in again in another tab.
    document.addEventListener("htmx:beforeOnLoad", (event) => {
      if (!event.detail.xhr.getResponseHeader("HX-Refresh")) return;
      saveDraft();
      sessionStorage.setItem("interrupted", "true");
    });
  }

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
