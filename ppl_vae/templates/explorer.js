// The latent explorer: a map of the data in latent space; where it is touched, the page decodes.

function latentExplorer(root, given) {
  const $ = name => root.querySelector(`[data-part="${name}"]`);
  const make = (tag, attributes = {}, text = "") => {
    const found = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.textContent = text;
    return found;
  };
  const constants = readArrays(given.arrays.list, given.arrays.base64);
  const number = x => signed(x.toFixed(2));
  const images = "images" in given.data;
  const [high, wide] = images ? given.shape.slice(-2) : [0, 0];
  const planes = given.shape.length === 3 && given.shape[0] === 3 ? 3 : 1;
  const state = {site: null, z: [], datum: 0, axes: [0, 0], view: null, near: -1};
  const run = z => runProgram(state.site.program, constants, z).data;

  // ---- pictures of data

  let sheet = null;
  function paint(canvas, values) {
    const scale = Math.max(1, Math.floor(224 / Math.max(high, wide, 1)));
    const context = canvas.getContext("2d");
    if (!images) return profile(context, canvas, values);
    canvas.width = wide;
    canvas.height = high;
    canvas.style.aspectRatio = `${wide} / ${high}`;
    canvas.style.maxWidth = `${scale * wide}px`;
    const picture = context.createImageData(wide, high);
    for (let i = 0; i < wide * high; i++) {
      for (let c = 0; c < 3; c++) {
        const value = values[planes === 3 ? c * wide * high + i : i];
        picture.data[4 * i + c] = 255 * Math.min(1, Math.max(0, value));
      }
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }
  function profile(context, canvas, values) {
    [canvas.width, canvas.height] = [448, 336];
    canvas.style.imageRendering = "auto";
    const all = given.data.vectors.flat(), low = Math.min(...all), range = Math.max(...all) - low || 1;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = "#1d2126";
    context.lineWidth = 3;
    context.beginPath();
    values.forEach((value, i) => context.lineTo(
      8 + i / (values.length - 1) * (canvas.width - 16),
      canvas.height - 16 - (value - low) / range * (canvas.height - 32)));
    context.stroke();
  }
  function paintDatum(canvas, index) {
    if (!images) return paint(canvas, given.data.vectors[index]);
    canvas.width = wide;
    canvas.height = high;
    canvas.style.aspectRatio = `${wide} / ${high}`;
    canvas.style.maxWidth = $("decoded").style.maxWidth;
    if (sheet.complete) canvas.getContext("2d").drawImage(
      sheet, 0, index * high, wide, high, 0, 0, wide, high);
  }

  // ---- the map

  const map = $("map"), MARGIN = 30;
  function bounds() {
    const range = axis => {
      const xs = state.site.points.map(p => p[axis]);
      const low = Math.min(...xs, -2), top = Math.max(...xs, 2);
      return [low - 0.06 * (top - low), top + 0.06 * (top - low)];
    };
    return {x: range(state.axes[0]), y: range(state.axes[1])};
  }
  const scaleOf = () => {
    const n = map.width / devicePixelRatio || 1, {x, y} = state.view, free = n - MARGIN - 6;
    return {
      n, left: v => MARGIN + (v - x[0]) / (x[1] - x[0]) * free,
      top: v => 6 + (y[1] - v) / (y[1] - y[0]) * free,
      x: p => x[0] + (p - MARGIN) / free * (x[1] - x[0]),
      y: p => y[1] - (p - 6) / free * (y[1] - y[0]),
    };
  };
  function drawMap() {
    const n = map.clientWidth, c = blank(map, n, n), at = scaleOf(), [a, b] = state.axes;
    const text = v => signed(Number(v.toPrecision(5)).toString());
    c.textAlign = "center";
    for (const v of ticks(state.view.x, 5)) {
      c.strokeRect(at.left(v), 6, 0, n - MARGIN - 6);
      c.fillText(text(v), at.left(v), n - MARGIN + 18);
    }
    c.textAlign = "right";
    for (const v of ticks(state.view.y, 5)) {
      c.strokeRect(MARGIN, at.top(v), n - MARGIN - 6, 0);
      c.fillText(text(v), MARGIN - 5, at.top(v) + 4);
    }
    c.save();
    c.beginPath();
    c.rect(MARGIN, 6, n - MARGIN - 6, n - MARGIN - 6);
    c.clip();
    const dot = (i, radius) => {
      const p = state.site.points[i];
      c.beginPath();
      c.arc(at.left(p[a]), at.top(p[b]), radius, 0, 7);
    };
    state.site.points.forEach((_, i) => {
      c.fillStyle = given.labels ? given.labels.colors[i] : "#0072b2";
      c.globalAlpha = 0.8;
      dot(i, 3.2);
      c.fill();
    });
    c.globalAlpha = 1;
    c.strokeStyle = "#1d2126";
    c.lineWidth = 1.5;
    for (const i of new Set([state.datum, state.near])) if (i >= 0) {
      dot(i, 5.5);
      c.stroke();
    }
    const [x, y] = [at.left(state.z[a]), at.top(state.z[b])];
    c.strokeStyle = "#d55e00";
    c.lineWidth = 2;
    c.beginPath();
    c.moveTo(x - 9, y); c.lineTo(x + 9, y); c.moveTo(x, y - 9); c.lineTo(x, y + 9);
    c.stroke();
    c.restore();
  }

  // ---- sliders

  const place = u => `${state.site.name}[${u}]`;
  function drawSliders() {
    const box = $("sliders");
    box.replaceChildren();
    for (const unit of state.site.units.slice(0, 24)) {
      const [m, s] = [state.site.mean[unit], state.site.deviation[unit] || 1];
      const label = make("label"), slider = make("input", {
        type: "range", min: m - 4 * s, max: m + 4 * s, step: "any", "data-unit": unit,
        "aria-label": `unit ${place(unit)}`});
      label.append(make("span", {}, place(unit)), slider, make("output"));
      slider.addEventListener("input", () => {
        state.z[unit] = +slider.value;
        draw();
      });
      box.append(label);
    }
    const more = state.site.units.length - 24;
    if (more > 0) box.append(make("p", {class: "soft"}, `and ${more} of less variance`));
  }

  // ---- all of it

  function draw() {
    const values = run(state.z);
    paint($("decoded"), values);
    paintDatum($("datum"), state.datum);
    for (const slider of root.querySelectorAll("input[data-unit]")) {
      const value = state.z[slider.dataset.unit];
      slider.value = value;
      slider.nextElementSibling.textContent = number(value);
    }
    $("which").textContent = given.labels ? `datum ${state.datum}, ${named(state.datum)}`
      : `datum ${state.datum}`;
    drawMap();
    root.decoded = values;
  }
  const named = i => `${given.labels.name || "label"} ${given.labels.texts[i]}`;
  function take(index) {
    state.datum = index;
    state.z = state.site.points[index].slice();
    draw();
  }
  function enter(index) {
    state.site = given.sites[index];
    const units = state.site.units;
    state.axes = [units[0], units.length > 1 ? units[1] : units[0]];
    state.view = bounds();
    for (const [part, k] of [["across", 0], ["up", 1]]) {
      $(part).replaceChildren(...units.map(u => make("option", {value: u}, place(u))));
      $(part).value = state.axes[k];
    }
    drawSliders();
    take(Math.min(state.datum, given.num - 1));
  }
  const nearest = (x, y) => {
    const at = scaleOf(), [a, b] = state.axes;
    let best = -1, least = 12 ** 2;
    state.site.points.forEach((p, i) => {
      const d = (at.left(p[a]) - x) ** 2 + (at.top(p[b]) - y) ** 2;
      if (d < least) [best, least] = [i, d];
    });
    return best;
  };
  const where = event => [event.offsetX, event.offsetY];
  const goTo = (x, y) => {
    const at = scaleOf();
    [state.z[state.axes[0]], state.z[state.axes[1]]] = [at.x(x), at.y(y)];
    draw();
  };
  let held = null;
  map.addEventListener("pointerdown", event => {
    held = where(event);
    map.setPointerCapture(event.pointerId);
  });
  map.addEventListener("pointermove", event => {
    const [x, y] = where(event);
    if (held) return Math.hypot(x - held[0], y - held[1]) > 4 && goTo(x, y);
    state.near = nearest(x, y);
    map.title = state.near < 0 || !given.labels ? "" : `datum ${state.near}, ${named(state.near)}`;
    drawMap();
  });
  map.addEventListener("pointerup", event => {
    const [x, y] = where(event);
    if (held && Math.hypot(x - held[0], y - held[1]) <= 4) {
      const index = nearest(x, y);
      if (index >= 0) take(index); else goTo(x, y);
    }
    held = null;
  });
  map.addEventListener("pointercancel", () => { held = null; });
  map.addEventListener("pointerleave", () => { state.near = -1; drawMap(); });
  map.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.shiftKey) return;  // the page scrolls
    event.preventDefault();
    const at = scaleOf(), [x, y] = where(event), factor = 1.2 ** Math.sign(event.deltaY || event.deltaX);
    for (const [axis, center] of [["x", at.x(x)], ["y", at.y(y)]])
      state.view[axis] = state.view[axis].map(v => center + factor * (v - center));
    drawMap();
  }, {passive: false});
  map.addEventListener("dblclick", () => { state.view = bounds(); drawMap(); });
  for (const [part, k] of [["across", 0], ["up", 1]])
    $(part).addEventListener("change", () => {
      state.axes[k] = +$(part).value;
      state.view = bounds();
      drawMap();
    });
  $("site").append(...given.sites.map((s, i) => make("option", {value: i}, s.name)));
  $("site").addEventListener("change", () => enter(+$("site").value));
  $("another").addEventListener("click", () => take((state.datum + 1) % given.num));
  $("center").addEventListener("click", () => { state.z = state.site.mean.slice(); draw(); });
  $("walk").addEventListener("click", () => {
    // From here to the next datum along a straight line, in a second.
    const from = state.z.slice(), to = (state.datum + 1) % given.num, start = performance.now();
    const target = state.site.points[to], site = state.site;
    const frame = now => {
      if (state.site !== site) return;
      const t = Math.min(1, (now - start) / 1000);
      if (t === 1) return take(to);
      state.z = from.map((v, i) => v + t * (target[i] - v));
      draw();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
  if (given.labels) for (const [text, color] of Object.entries(given.labels.legend)) {
    const item = make("li", {}, text), mark = make("i");
    mark.style.background = color;
    item.prepend(mark);
    $("legend").append(item);
  }
  let worst = 0;
  for (const site of given.sites) {
    const found = runProgram(site.program, constants, site.checked).data;
    site.check.forEach((v, i) => { worst = Math.max(worst, Math.abs(v - found[i])); });
  }
  root.worst = worst;
  $("check").textContent = `Largest difference to what the model itself decodes, of the first datum: ${signed(worst.toExponential(0))}.`;
  root.decode = (site, z) => Array.from(runProgram(given.sites[site].program, constants, z).data);
  sheet = new Image();
  sheet.addEventListener("load", () => paintDatum($("datum"), state.datum));
  if (images) sheet.src = given.data.images;
  if (given.sites.length < 2) $("site").parentElement.hidden = true;
  root.hidden = false;
  enter(0);
  addEventListener("resize", drawMap);
}
