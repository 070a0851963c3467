// What every page does beside being read: it polls itself, tells times, and copies. Pages work without it.
"use strict";

(() => {
  const SLOW = 30;
  const tags = new WeakMap();
  let missed = 0;

  // Times

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  const span = (seconds) => {
    const at = UNITS.findIndex(([, length]) => seconds >= length);
    if (at < 0) return "0 s";
    const [unit, length] = UNITS[at];
    const whole = `${Math.floor(seconds / length)} ${unit}`;
    if (at === 3 || at === 0 && seconds >= 7 * 86400) return whole;
    const [next, part] = UNITS[at + 1];
    return `${whole} ${String(Math.floor((seconds % length) / part)).padStart(2, "0")} ${next}`;
  };

  const ago = (seconds) => {
    if (seconds < 10) return "just now";
    const [unit, length] = UNITS.find(([, length]) => seconds >= length);
    return `${Math.floor(seconds / length)} ${unit} ago`;
  };

  const tellTimes = () => {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[data-ago], time[data-since]")) {
      const at = new Date(time.dateTime);
      const seconds = Math.max(0, (now - at) / 1000);
      const text = "since" in time.dataset ? span(seconds) : seconds < 7 * 86400 ? ago(seconds) : at.toLocaleDateString();
      if (time.textContent !== text) time.textContent = text;
      if (!time.title) time.title = at.toLocaleString();
    }
  };

  // Polling

  const busy = (element) => element.querySelector("details[open], input:checked, pre:focus");

  const poll = () => {
    const waits = document.hidden ? SLOW : Math.min(SLOW, 2 ** missed);
    for (const element of document.querySelectorAll("[data-poll]")) {
      const pause = 1000 * Math.max(Number(element.dataset.poll), document.hidden || missed ? waits : 0);
      const last = Number(element.dataset.polled || performance.timeOrigin + performance.now());
      element.dataset.polled = last;
      if (Date.now() - last < pause || busy(element)) continue;
      element.dataset.polled = Date.now();
      htmx.trigger(element, "poll");
    }
  };

  const lost = (is) => {
    document.querySelector("[data-lost]").hidden = !is;
    missed = is ? missed + 1 : 0;
  };

  document.addEventListener("htmx:sendError", () => lost(true));
  document.addEventListener("htmx:timeout", () => lost(true));
  document.addEventListener("htmx:responseError", (event) => lost(event.detail.xhr.status >= 500));
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, elt } = event.detail;
    if (xhr.status < 400) lost(false);
    if (!elt.hasAttribute("data-poll")) return;
    const tag = xhr.getResponseHeader("ETag");
    const same = tag && tags.get(elt) === tag;
    tags.set(elt, tag);
    if (same || busy(elt)) {
      if (!same) tags.delete(elt);
      event.detail.shouldSwap = false;
    }
  });
  document.addEventListener("htmx:afterSwap", tellTimes);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-poll]")) element.dataset.polled = 0;
    poll();
  });

  // Small conveniences

  const say = (text) => { document.querySelector("[data-said]").textContent = text; };

  const copy = async (button) => {
    const source = button.parentElement.querySelector("pre");
    const label = button.querySelector("span");
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Without TLS there is no clipboard: the text is selected, and the old command copies it.
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    label.textContent = "Copied";
    say("Copied");
    setTimeout(() => { label.textContent = "Copy"; }, 1500);
  };

  const switchTheme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `theme=${root.dataset.theme}; path=/dashboard; max-age=31536000; samesite=lax`;
    say(`${root.dataset.theme} theme`);
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
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-once]")) return;
    setTimeout(() => { for (const button of event.target.querySelectorAll("button")) button.disabled = true; });
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) for (const button of document.querySelectorAll("[data-once] button")) button.disabled = false;
  });
  document.addEventListener("htmx:xhr:progress", (event) => {
    const bar = event.target.querySelector?.(".upload-progress");
    if (!bar || !event.detail.total) return;
    bar.hidden = false;
    bar.value = event.detail.loaded / event.detail.total;
  });

  // On a phone the pages fold into a menu; on a desk they are always there.
  const narrow = matchMedia("(max-width: 860px)");
  const fold = () => { for (const menu of document.querySelectorAll("[data-fold]")) menu.open = !narrow.matches; };
  narrow.addEventListener("change", fold);

  document.addEventListener("DOMContentLoaded", () => {
    fold();
    tellTimes();
    document.querySelector("#wrong")?.focus();
    setInterval(tellTimes, 1000);
    setInterval(poll, 500);
  });
})();
