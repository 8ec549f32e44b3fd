// Draws each figure once it comes into view, in the colours of the page; keeps the contents at hand; says which tables are cut.
(() => {
  "use strict";
  const all = (selector) => document.querySelectorAll(selector);

  // The library lies in the page, packed; it is unpacked when the first figure is drawn.
  let unpacked = null;
  async function unpack() {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (sign) => sign.charCodeAt(0));
    const whole = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(whole).text();
    document.head.append(script);
    return window.Plotly;
  }

  function template() {
    const page = getComputedStyle(document.documentElement);
    const colour = (name) => page.getPropertyValue(name).trim();
    const text = colour("--text"), line = colour("--line"), clear = "rgba(0,0,0,0)";
    const axis = { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line, automargin: true };
    return {
      layout: {
        font: { color: text, size: 12, family: "system-ui, sans-serif" }, paper_bgcolor: clear, plot_bgcolor: clear,
        xaxis: axis, yaxis: axis, hoverlabel: { bgcolor: colour("--panel"), bordercolor: line, font: { color: text } },
      },
      data: { bar: [{ marker: { line: { color: text, width: 1 } }, error_x: { color: text }, error_y: { color: text } }] },
    };
  }

  const drawn = new Set();
  async function draw(place) {
    try {
      const { data, layout } = JSON.parse(place.querySelector("script").textContent);
      const plotly = await (unpacked ??= unpack());
      await plotly.react(place, data, { ...layout, template: template() }, { responsive: true, displayModeBar: false });
      drawn.add(place);
    } catch (error) {
      place.append("This browser cannot draw the figure; the tables have its numbers.");
      console.error(error);
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

  function watch() {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    all(".plot").forEach((place) => seen.observe(place));
  }

  const cut = new ResizeObserver((entries) => {
    for (const { target } of entries) target.classList.toggle("cut", target.scrollWidth > target.clientWidth + 1);
  });
  all(".scroll").forEach((box) => cut.observe(box));

  const menu = document.querySelector("nav details"), wide = matchMedia("(min-width: 64rem)");
  const fit = () => { menu.open = wide.matches; };
  wide.addEventListener("change", fit);
  fit();

  // A link to what is folded opens it.
  function reveal(hash) {
    const target = hash.length > 1 && document.getElementById(hash.slice(1));
    for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    if (target) target.scrollIntoView();
  }
  menu.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    if (!wide.matches) menu.open = false;
    setTimeout(() => reveal(link.hash));
  });
  addEventListener("DOMContentLoaded", () => { watch(); reveal(location.hash); });

  // The frame of a case is as high as what it holds.
  for (const frame of all("iframe")) {
    frame.closest("details").addEventListener("toggle", () => {
      if (frame.contentDocument) frame.style.height = `${frame.contentDocument.documentElement.scrollHeight + 8}px`;
    });
  }
})();
