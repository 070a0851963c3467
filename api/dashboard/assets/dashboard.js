// Behaviour of every page: polling, relative times, copy buttons, menus, theme. Pages also work without this script.
"use strict";

(() => {
  const SLOW_SECONDS = 30;
  const etags = new Map(); // by id, because new content has new elements
  let failures = 0;

  // Times

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  const formatDuration = (seconds) => {
    const at = UNITS.findIndex(([, length]) => seconds >= length);
    if (at < 0) return "0 s";
    const [unit, length] = UNITS[at];
    const first = `${Math.floor(seconds / length)} ${unit}`;
    if (at === 3 || at === 0 && seconds >= 7 * 86400) return first;
    const [next, part] = UNITS[at + 1];
    return `${first} ${String(Math.floor((seconds % length) / part)).padStart(2, "0")} ${next}`;
  };

  const formatAgo = (seconds) => {
    if (seconds < 10) return "just now";
    const [unit, length] = UNITS.find(([, length]) => seconds >= length);
    return `${Math.floor(seconds / length)} ${unit} ago`;
  };

  const formatLeft = (seconds) => {
    if (seconds <= 60) return "about a minute left";
    const minutes = Math.ceil(seconds / 60);
    return `about ${minutes < 60 ? `${minutes} min` : formatDuration(600 * Math.ceil(minutes / 10))} left`;
  };

  const formatTime = (time, now) => {
    const at = new Date(time.dateTime);
    if ("left" in time.dataset) return formatLeft((at - now) / 1000);
    const seconds = Math.max(0, (now - at) / 1000);
    if ("since" in time.dataset) return formatDuration(seconds);
    return seconds < 7 * 86400 ? formatAgo(seconds) : at.toLocaleDateString();
  };

  const updateTimes = () => {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[data-ago], time[data-since], time[data-left]")) {
      const text = formatTime(time, now);
      if (time.textContent !== text) time.textContent = text;
      if (!time.title) time.title = new Date(time.dateTime).toLocaleString();
    }
  };

  // Polling

  const isInUse = (element) => element.querySelector("details[open], input:checked, pre:focus");

  const poll = () => {
    const slow = document.hidden ? SLOW_SECONDS : Math.min(SLOW_SECONDS, 2 ** failures);
    for (const element of document.querySelectorAll("[data-poll]")) {
      const pause = 1000 * Math.max(Number(element.dataset.poll), document.hidden || failures ? slow : 0);
      const last = Number(element.dataset.polled || Date.now());
      element.dataset.polled = last;
      if (Date.now() - last < pause || isInUse(element)) continue;
      element.dataset.polled = Date.now();
      htmx.trigger(element, "poll");
    }
  };

  // New content replaces the old elements of a page. The focus and the scroll positions must stay the same.
  let restorePlace = null;
  const scrolling = () => document.querySelectorAll(".scroll, .events");
  const readPlace = () => {
    const scrolled = [...scrolling()].map(({ scrollLeft, scrollTop }) => ({ scrollLeft, scrollTop }));
    const { activeElement } = document;
    const focused = activeElement.cloneNode(false);
    const same = () => [...document.querySelectorAll(focused.tagName)].filter((each) => each.cloneNode(false).isEqualNode(focused));
    const number = same().indexOf(activeElement);
    return () => {
      scrolling().forEach((element, at) => Object.assign(element, scrolled[at]));
      if (!activeElement.isConnected) same()[number]?.focus({ preventScroll: true });
    };
  };

  // Says why the page is not up to date. An empty text means that it is.
  const setProblem = (problem) => {
    const message = document.querySelector("[data-connection-lost]");
    // On a page without polling, only the user can send the next request.
    if (problem) message.textContent = `${problem}. ${document.querySelector("[data-poll]") ? "Reconnecting…" : "Try again."}`;
    message.hidden = !problem;
    failures = problem ? failures + 1 : 0;
  };

  const reportFailure = (event) => {
    const { xhr, elt } = event.detail;
    const isRefused = xhr.status >= 400 && xhr.status < 500;
    setProblem(isRefused ? "This page is not up to date, because the service refused a request" : "Connection lost");
    if (elt.matches(".estimate")) elt.textContent = "";
  };

  // An element that requests its own page uses the address with its fragment. htmx would scroll to the fragment.
  document.addEventListener("htmx:configRequest", (event) => { event.detail.path = event.detail.path.split("#")[0]; });
  document.addEventListener("htmx:sendError", reportFailure);
  document.addEventListener("htmx:timeout", reportFailure);
  document.addEventListener("htmx:responseError", (event) => {
    const { xhr, elt } = event.detail;
    reportFailure(event);
    // The object of the page was deleted. After the reload, an error page says so.
    if (xhr.status === 404 && elt.hasAttribute("data-poll")) location.reload();
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, elt, requestConfig } = event.detail;
    if (xhr.status < 400) setProblem("");
    // An error page replaces the form.
    else if (requestConfig.elt.matches("form[hx-post]") && xhr.responseText.includes('id="main"')) Object.assign(event.detail, { shouldSwap: true, isError: false });
    if (!elt.hasAttribute("data-poll")) return;
    const etag = xhr.getResponseHeader("ETag");
    const same = etag && etags.get(elt.id) === etag;
    etags.set(elt.id, etag);
    if (same || isInUse(elt)) {
      if (!same) etags.delete(elt.id);
      event.detail.shouldSwap = false;
    }
    if (event.detail.shouldSwap) restorePlace = readPlace();
  });
  document.addEventListener("htmx:afterSwap", () => {
    updateTimes();
    restorePlace?.();
    restorePlace = null;
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-poll]")) element.dataset.polled = 0;
    poll();
  });

  // Buttons, menus and forms

  const announce = (text) => { document.querySelector("[data-announcement]").textContent = text; };

  const copy = async (button) => {
    const source = button.parentElement.querySelector("pre");
    const label = button.querySelector("span");
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Without HTTPS, browsers have no clipboard API.
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    label.textContent = "Copied";
    announce("Copied");
    setTimeout(() => { label.textContent = "Copy"; }, 1500);
  };

  const switchTheme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `theme=${root.dataset.theme}; path=/dashboard; max-age=31536000; samesite=lax`;
    announce(`${root.dataset.theme} theme`);
    document.dispatchEvent(new Event("theme"));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.matches("[data-copy]")) copy(button);
    if (button?.matches("[data-theme-switch]")) switchTheme();
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  // A form that changes something is sent once, even after a double click. htmx does the same for its own forms.
  const CHANGES = "form[method=post]:not([hx-post])";
  document.addEventListener("submit", (event) => {
    if (!event.target.matches(CHANGES)) return;
    setTimeout(() => { for (const button of event.target.querySelectorAll("button")) button.disabled = true; });
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) for (const button of document.querySelectorAll(`${CHANGES} button`)) button.disabled = false;
  });

  // A reload shows the page without its secret or its note about an action, and does not send the form again.
  if (document.querySelector("[data-shown-once]")) {
    const address = new URL(location.href);
    address.searchParams.delete("refused");
    history.replaceState(null, "", address);
  }

  // The draft of a form (form.js) is kept on a sign-in page or an error page, and deleted on any other page.
  if (document.querySelector("[data-interrupted]")) sessionStorage.setItem("interrupted", "true");
  else if (!document.querySelector("[data-draft]")) for (const name of ["draft", "interrupted"]) sessionStorage.removeItem(name);

  // On a small screen the navigation is a menu. On a larger screen it is open.
  const narrow = matchMedia("(max-width: 860px)");
  const toggleNavigation = () => { for (const menu of document.querySelectorAll("[data-nav-menu]")) menu.open = !narrow.matches; };
  narrow.addEventListener("change", toggleNavigation);

  document.addEventListener("DOMContentLoaded", () => {
    toggleNavigation();
    updateTimes();
    setInterval(updateTimes, 1000);
    setInterval(poll, 500);
  });
})();
