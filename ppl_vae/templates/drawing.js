// What both kinds of picture need: round numbers for axes, and a canvas as sharp as the screen.

const signed = text => text.replace("-", "−");

function ticks([low, top], count) {
  const raw = (top - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw)), found = [];
  const step = power * [1, 2, 5, 10].find(f => f * power >= raw * 0.999);
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= top + 1e-9 * step; v += step) found.push(v);
  return found;
}

// The context of an empty white canvas, in the page's own pixels, ready for grid and numbers.
function blank(canvas, width, height) {
  const ratio = devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.font = "11px ui-sans-serif, system-ui, sans-serif";
  context.fillStyle = "#5c6670";
  context.strokeStyle = "#e9ebee";
  return context;
}
