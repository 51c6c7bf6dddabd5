// Curves against the step: values where one points, a range of steps by dragging, all by a double click.

function curves(root, given) {
  const make = (tag, className = "") => {
    const found = document.createElement(tag);
    found.className = className;
    return found;
  };
  const all = given.panels.flatMap(p => p.series.flatMap(s => s.steps));
  const whole = [Math.min(...all), Math.max(...all)];
  let range = whole, pointed = null, drag = null;
  const LEFT = 52, BOTTOM = 22;
  const text = v => signed(Number(v.toPrecision(5)).toString());
  const panels = given.panels.map(panel => {
    const box = make("div", "panel"), canvas = make("canvas"), title = make("h4");
    const legend = make("ul", "legend");
    title.textContent = panel.title;
    panel.series.forEach(series => {
      const item = make("li"), mark = make("i"), name = make("span"), value = make("output");
      mark.style.background = series.color;
      if (series.thin) mark.style.height = "2px";
      name.textContent = series.name;
      item.append(mark, name, value);
      legend.append(item);
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", panel.title);
    box.append(title, canvas, legend);
    root.append(box);
    listen(canvas);
    return {...panel, canvas, outputs: [...legend.querySelectorAll("output")]};
  });
  // What curves do once they have settled: within five interquartile ranges of the last three
  // quarters of what is in view.
  function extent(panel) {
    let [low, top] = [Infinity, -Infinity];
    for (const {steps, values, errors} of panel.series) {
      const widest = errors ? Math.max(...errors) : 0, inside = values.filter((v, i) => v !== null && steps[i] >= range[0] && steps[i] <= range[1]);
      const settled = inside.slice(Math.floor(inside.length / 4)).sort((a, b) => a - b);
      if (!settled.length) continue;
      const at = q => settled[Math.min(settled.length - 1, Math.floor(q * settled.length))];
      const reach = panel.whole ? Infinity : 5 * (at(0.75) - at(0.25)) || settled.at(-1) - settled[0];
      for (const v of inside) if (v >= at(0.25) - reach && v <= at(0.75) + reach) {
        low = Math.min(low, v - widest);
        top = Math.max(top, v + widest);
      }
    }
    if (panel.zero) low = Math.min(low, 0);
    if (!(top > low)) [low, top] = Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
    return [low - 0.05 * (top - low), top + 0.05 * (top - low)];
  }
  const placed = canvas => ({
    left: step => LEFT + (step - range[0]) / (range[1] - range[0] || 1) * (canvas.clientWidth - LEFT - 6),
    step: x => range[0] + (x - LEFT) / (canvas.clientWidth - LEFT - 6) * (range[1] - range[0]),
  });
  function draw() {
    for (const panel of panels) {
      const {canvas} = panel, [w, h] = [canvas.clientWidth, canvas.clientHeight];
      const c = blank(canvas, w, h), at = placed(canvas);
      const y = extent(panel), top = v => 4 + (y[1] - v) / (y[1] - y[0]) * (h - BOTTOM - 8);
      c.textAlign = "right";
      for (const v of ticks(y, 4)) {
        c.strokeRect(LEFT, top(v), w - LEFT - 6, 0);
        c.fillText(text(v), LEFT - 5, top(v) + 4);
      }
      c.textAlign = "center";
      for (const v of ticks(range, Math.max(2, w / 110))) {
        c.strokeRect(at.left(v), 4, 0, h - BOTTOM - 4);
        const wide = at.left(v) > w - 20;
        c.textAlign = wide ? "right" : "center";
        c.fillText(text(v), wide ? w - 2 : at.left(v), h - 6);
      }
      c.save();
      c.beginPath();
      c.rect(LEFT, 2, w - LEFT - 4, h - BOTTOM - 2);
      c.clip();
      for (const series of panel.series) {
        c.strokeStyle = c.fillStyle = series.color;
        c.lineWidth = series.thin ? 1 : 1.8;
        if (series.errors) {
          c.globalAlpha = 0.15;
          c.beginPath();
          series.steps.forEach((s, i) => c.lineTo(at.left(s), top(series.values[i] + series.errors[i])));
          for (let i = series.steps.length - 1; i >= 0; i--)
            c.lineTo(at.left(series.steps[i]), top(series.values[i] - series.errors[i]));
          c.fill();
        }
        c.globalAlpha = series.thin ? 0.75 : 1;
        c.beginPath();
        let down = false;
        series.steps.forEach((s, i) => {
          const v = series.values[i];
          if (v === null) { down = false; return; }
          if (down) c.lineTo(at.left(s), top(v)); else c.moveTo(at.left(s), top(v));
          down = true;
        });
        c.stroke();
        if (series.steps.length <= 12) series.steps.forEach((s, i) => {
          if (series.values[i] === null) return;
          c.beginPath();
          c.arc(at.left(s), top(series.values[i]), 2.5, 0, 7);
          c.fill();
        });
        c.globalAlpha = 1;
      }
      if (drag && drag.to !== null) {
        c.fillStyle = "rgba(0, 114, 178, .12)";
        c.fillRect(at.left(drag.from), 0, at.left(drag.to) - at.left(drag.from), h - BOTTOM);
      }
      if (pointed !== null) {
        c.strokeStyle = "#7b8794";
        c.lineWidth = 1;
        c.strokeRect(at.left(pointed), 0, 0, h - BOTTOM);
      }
      c.restore();
      panel.series.forEach((series, k) => {
        const output = panel.outputs[k];
        if (pointed === null) return output.textContent = "";
        let best = 0;
        series.steps.forEach((s, i) => {
          if (Math.abs(s - pointed) < Math.abs(series.steps[best] - pointed)) best = i;
        });
        const value = series.values[best];
        output.textContent = value === null ? "not finite" : `${text(value)} at ${series.steps[best]}`;
      });
    }
  }
  function listen(canvas) {
    const step = event => placed(canvas).step(event.offsetX);
    const clamp = v => Math.min(range[1], Math.max(range[0], v));
    canvas.addEventListener("pointerdown", event => {
      drag = {from: clamp(step(event)), to: null};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      pointed = clamp(step(event));
      if (drag) drag.to = pointed;
      draw();
    });
    canvas.addEventListener("pointerup", () => {
      if (drag && drag.to !== null) {
        const chosen = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
        if (chosen[1] - chosen[0] > 0.02 * (range[1] - range[0])) range = chosen;
      }
      drag = null;
      draw();
    });
    canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
    canvas.addEventListener("pointerleave", () => { if (!drag) { pointed = null; draw(); } });
    canvas.addEventListener("dblclick", () => { range = whole; draw(); });
  }
  root.range = () => range;
  root.hidden = false;
  draw();
  addEventListener("resize", draw);
}
