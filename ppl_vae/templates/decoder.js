// Runs a program of ppl_vae.interactive.program on one latent. Arrays are {shape, data}, in C order.

const size = shape => shape.reduce((a, b) => a * b, 1);
const array = (shape, data) => ({shape, data: data || new Float32Array(size(shape))});

function erf(x) {
  // Series within 3, where it has 1e-12; beyond, 1 - erf(3) is 2e-5 and the continued fraction fast.
  const t = Math.abs(x);
  if (t > 6) return Math.sign(x);
  if (t < 3) {
    let term = t, sum = t;
    for (let n = 1; n < 100 && Math.abs(term) > 1e-17 * sum; n++) {
      term *= -t * t / n;
      sum += term / (2 * n + 1);
    }
    return Math.sign(x) * 2 / Math.sqrt(Math.PI) * sum;
  }
  let f = t;
  for (let n = 60; n > 0; n--) f = t + n / 2 / f;
  return Math.sign(x) * (1 - Math.exp(-t * t) / f / Math.sqrt(Math.PI));
}

const UNARY = {
  abs: Math.abs, ceil: Math.ceil, cos: Math.cos, erf, exp: Math.exp, expm1: Math.expm1,
  floor: Math.floor, log: Math.log, log1p: Math.log1p, neg: x => -x, not: x => +(x === 0),
  relu: x => Math.max(x, 0), rsqrt: x => 1 / Math.sqrt(x), sigmoid: x => 1 / (1 + Math.exp(-x)),
  sign: Math.sign, sin: Math.sin, sqrt: Math.sqrt, tanh: Math.tanh,
};
const BINARY = {
  add: (x, y) => x + y, and: (x, y) => +(x !== 0 && y !== 0), div: (x, y) => x / y,
  eq: (x, y) => +(x === y), ge: (x, y) => +(x >= y), gt: (x, y) => +(x > y),
  le: (x, y) => +(x <= y), lt: (x, y) => +(x < y), max: Math.max, min: Math.min,
  mul: (x, y) => x * y, ne: (x, y) => +(x !== y), or: (x, y) => +(x !== 0 || y !== 0),
  pow: Math.pow, sub: (x, y) => x - y,
};

// Entries of arrays that broadcast, given to f one by one.
function broadcast(f, ...xs) {
  const rank = Math.max(...xs.map(x => x.shape.length));
  const padded = xs.map(x => [...Array(rank - x.shape.length).fill(1), ...x.shape]);
  const shape = padded[0].map((_, d) => Math.max(...padded.map(s => s[d])));
  if (padded.some(s => s.some((n, d) => n === 0))) shape.fill(0);
  const steps = padded.map(s => {
    let step = 1;
    const found = Array(rank);
    for (let d = rank - 1; d >= 0; d--) {
      found[d] = s[d] === 1 ? 0 : step;
      step *= s[d];
    }
    return found;
  });
  const out = array(shape), at = xs.map(() => 0), place = Array(rank).fill(0);
  for (let i = 0; i < out.data.length; i++) {
    out.data[i] = f(...xs.map((x, k) => x.data[at[k]]));
    for (let d = rank - 1; d >= 0; d--) {
      place[d]++;
      for (let k = 0; k < xs.length; k++) at[k] += steps[k][d];
      if (place[d] < shape[d]) break;
      for (let k = 0; k < xs.length; k++) at[k] -= steps[k][d] * shape[d];
      place[d] = 0;
    }
  }
  return out;
}

function matmul(x, y) {
  const [n, k] = x.shape.slice(-2), m = y.shape[y.shape.length - 1];
  const out = array([...x.shape.slice(0, -1), m]), row = new Float64Array(m);
  const shared = y.shape.length === 2 ? 0 : k * m;
  for (let r = 0; r < size(x.shape) / k; r++) {
    const base = shared * Math.floor(r / n);
    row.fill(0);
    for (let j = 0; j < k; j++) {
      const a = x.data[r * k + j];
      if (a !== 0) for (let c = 0, b = base + j * m; c < m; c++, b++) row[c] += a * y.data[b];
    }
    out.data.set(row, r * m);
  }
  return out;
}

function convolve(x, w, bias, how) {
  const [, , H, W] = x.shape, [, C, h, v] = how.shape, out = array(how.shape);
  const [kh, kw] = w.shape.slice(2), groups = how.groups, [sh, sv] = how.stride;
  const [ph, pv] = how.padding, [dh, dv] = how.dilation;
  const ins = x.shape[1] / groups, outs = C / groups, sum = new Float64Array(out.data.length);
  for (let g = 0; g < groups; g++) for (let o = 0; o < outs; o++) for (let i = 0; i < ins; i++)
    for (let a = 0; a < kh; a++) for (let b = 0; b < kw; b++) {
      const to = (g * outs + o) * h * v, from = (g * ins + i) * H * W;
      const at = how.transposed ? ((g * ins + i) * outs + o) : ((g * outs + o) * ins + i);
      const weight = w.data[(at * kh + a) * kw + b];
      if (how.transposed) {
        for (let r = 0; r < H; r++) for (let c = 0; c < W; c++) {
          const y = r * sh - ph + a * dh, z = c * sv - pv + b * dv;
          if (y >= 0 && y < h && z >= 0 && z < v)
            sum[to + y * v + z] += weight * x.data[from + r * W + c];
        }
      } else {
        for (let y = 0; y < h; y++) for (let z = 0; z < v; z++) {
          const r = y * sh - ph + a * dh, c = z * sv - pv + b * dv;
          if (r >= 0 && r < H && c >= 0 && c < W)
            sum[to + y * v + z] += weight * x.data[from + r * W + c];
        }
      }
    }
  for (let i = 0; i < sum.length; i++)
    out.data[i] = sum[i] + (bias ? bias.data[Math.floor(i / (h * v))] : 0);
  return out;
}

// Reduced dimensions remain, of size 1.
function reduce(name, x, dims) {
  const shape = x.shape.map((n, d) => dims.includes(d) ? 1 : n), out = array(shape);
  const sums = new Float64Array(out.data.length).fill(name === "amax" ? -Infinity : 0);
  const steps = Array(shape.length);
  for (let d = shape.length - 1, step = 1; d >= 0; step *= shape[d--]) steps[d] = step;
  for (let i = 0; i < x.data.length; i++) {
    let to = 0;
    for (let d = shape.length - 1, rest = i; d >= 0; d--) {
      if (shape[d] > 1) to += steps[d] * (rest % x.shape[d]);
      rest = Math.floor(rest / x.shape[d]);
    }
    sums[to] = name === "amax" ? Math.max(sums[to], x.data[i]) : sums[to] + x.data[i];
  }
  const by = name === "mean" ? x.data.length / sums.length : 1;
  for (let i = 0; i < sums.length; i++) out.data[i] = sums[i] / by;
  return out;
}

// Entries rearranged; of index 0 comes a zero, and entries count from 1 on.
function move(sources, index, shape) {
  let all = sources[0].data;
  if (sources.length > 1) {
    all = new Float32Array(sources.reduce((n, s) => n + s.data.length, 0));
    for (let s = 0, at = 0; s < sources.length; at += sources[s++].data.length)
      all.set(sources[s].data, at);
  }
  if (!index) return array(shape, all);
  const out = array(shape);
  for (let i = 0; i < out.data.length; i++) out.data[i] = index.data[i] ? all[index.data[i] - 1] : 0;
  return out;
}

function runProgram(program, constants, z) {
  const values = [array(program.shape, Float32Array.from(z))];
  const get = place => place >= 0 ? values[place] : constants[program.constants[-place - 1]];
  const kinds = {
    unary: (name, x) => broadcast(UNARY[name], get(x)),
    binary: (name, x, y) => broadcast(BINARY[name], get(x), get(y)),
    where: (c, x, y) => broadcast((a, b, d) => a !== 0 ? b : d, get(c), get(x), get(y)),
    matmul: (x, y) => matmul(get(x), get(y)),
    convolve: (x, w, b, how) => convolve(get(x), get(w), b === null ? null : get(b), how),
    reduce: (name, x, dims) => reduce(name, get(x), dims),
    move: (xs, index, shape) => move(xs.map(get), index === null ? null : get(index), shape),
  };
  for (const [kind, ...rest] of program.steps) values.push(kinds[kind](...rest));
  return values[values.length - 1];
}

function halfToFloat(h) {
  const exponent = (h >> 10) & 31, fraction = h & 1023, sign = h >> 15 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// The arrays of a page: base64 of little-endian float16, float32 and int32, one after another.
function readArrays(list, text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return list.map(({shape, type, at}) => {
    const n = size(shape), data = type === "int32" ? new Int32Array(n) : new Float32Array(n);
    for (let i = 0; i < n; i++) {
      if (type === "float16") data[i] = halfToFloat(view.getUint16(at + 2 * i, true));
      else if (type === "float32") data[i] = view.getFloat32(at + 4 * i, true);
      else data[i] = view.getInt32(at + 4 * i, true);
    }
    return {shape, data};
  });
}
