"""Command lines, configs and files that are wrong, each by construction, with what was given.

`bad_inputs` draws one; the folder it stands in is prepared by `prepare`.
"""

import keyword
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

TRAIN = ("train", "--data", "data.npz", "--num_steps", "2", "--out", "new", "--report", "false",
         "--tensorboard", "false", "--compile", "false", "--progress", "false")  # fmt: skip
CLASSES = ("model", "guide", "estimator", "schedule", "optimizer", "lr_schedule")
COUNTS = ("num_steps", "log_every", "eval_every", "checkpoint_every")
INTEGERS = (*COUNTS, "batch_size", "seed", "patience", "model.latent_dim",
            "estimator.num_particles")  # fmt: skip
# What YAML takes for something else than a word, and what none of ours is called.
TAKEN = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan", "auto", "none"}


@dataclass(frozen=True)
class Bad:
    """A command line that is wrong.

    Attributes:
        kind: What is wrong with it.
        words: The command line.
        given: What the message must name, one of these.
        files: What is written before, by name.
    """

    kind: str
    words: tuple[str, ...]
    given: tuple[str, ...]
    files: dict[str, bytes | Callable[[Path], None]] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        """Writes its files."""
        for name, content in self.files.items():
            if callable(content):
                content(folder / name)
            else:
                (folder / name).write_bytes(content)


def words(alphabet=string.ascii_lowercase, min_size=4, max_size=12):
    """Words that are called like nothing that there is."""
    text = st.text(alphabet, min_size=min_size, max_size=max_size)
    return text.map(lambda word: f"qx{word}").filter(
        lambda word: word not in TAKEN and not keyword.iskeyword(word)
    )


def _shown(text):
    """As a message may show it: `repr` or as it is."""
    return (text, repr(text), repr(text)[1:-1])


@st.composite
def unknown_options(draw):
    name = draw(words(string.ascii_lowercase + "_"))
    head = draw(st.sampled_from(["", "", "model.", "guide.", "estimator.", "optimizer."]))
    value = draw(st.sampled_from([(), ("3",), ("true",), ("[1, 2]",), ("-1",), ("",)]))
    if draw(st.booleans()) and value:
        return Bad("unknown option", (*TRAIN, f"--{head}{name}={value[0]}"), (name,))
    return Bad("unknown option", (*TRAIN, f"--{head}{name}", *value), (name,))


NO_INTEGERS = st.one_of(
    words(string.ascii_letters + "._-+ é大"),
    st.floats(0.1, 9.9).map(lambda x: f"{int(x)}.5"),
    st.sampled_from(
        ["[1]", "[1, 2]", "{a: 1}", "1e400", "1_0_x", "0x", "--", "[", "{", "'1", "[1"]
    ),
    st.text("[]{}:,'\"#&*!|>%@`?- ", min_size=2, max_size=6).map(lambda text: f"q{text}"),
)


@st.composite
def no_integers(draw):
    option, value = draw(st.sampled_from(INTEGERS)), draw(NO_INTEGERS)
    if draw(st.booleans()):
        return Bad("no integer", (*TRAIN, f"--{option}={value}"), (option, option.split(".")[-1]))
    name = option.split(".")[-1]
    text = {"model": f"model: {{class_path: VAE, init_args: {{{name}: qxword}}}}",
            "estimator": f"estimator: {{class_path: Trace_ELBO, init_args: {{{name}: qxword}}}}",
            }.get(option.split(".")[0], f"{option}: qxword")  # fmt: skip
    line = tuple(w for w in TRAIN if w not in ("--num_steps", "2"))
    return Bad("no integer in a config", (*line, "--config", "c.yaml"), (name,),
               {"c.yaml": text.encode()})  # fmt: skip


@st.composite
def out_of_range(draw):
    below = st.integers(-(10**9), 0)
    option, value = draw(
        st.one_of(
            st.tuples(st.sampled_from([*COUNTS, "batch_size", "patience", "model.latent_dim",
                                       "estimator.num_particles"]), below),
            st.tuples(st.just("seed"), st.integers(-(10**9), -1)),
            st.tuples(st.just("batch_size"), st.integers(1000, 10**15)),
            st.tuples(st.sampled_from(["clip_grad_norm", "optimizer.lr", "schedule.value"]),
                      st.integers(-(10**6), -1)),
            st.tuples(st.sampled_from(["model.hidden", "guide.hidden"]),
                      st.lists(st.integers(-9, 0), min_size=1, max_size=3)),
        )
    )  # fmt: skip
    name = {"optimizer.lr": "learning rate"}.get(option, option.split(".")[-1])
    return Bad("out of range", (*TRAIN, f"--{option}={value}"), (name,))


@st.composite
def unknown_classes(draw):
    option = draw(st.sampled_from(CLASSES))
    word = draw(words(string.ascii_letters + "_"))
    name = draw(
        st.sampled_from([word, f"{word}.Class", f"ppl_vae.{word}.Class", f"ppl_vae.guides.{word}",
                         f"torch.optim.{word}", f"os.{word}", f"{word}()", f"{word}(x=1)"])
    )  # fmt: skip
    if draw(st.booleans()) and "(" not in name:
        text = draw(st.sampled_from([f"{option}: {name}", f"{option}: {{class_path: {name}}}"]))
        return Bad("unknown class in a config", (*TRAIN, "--config", "c.yaml"), (word, "os."),
                   {"c.yaml": text.encode()})  # fmt: skip
    return Bad("unknown class", (*TRAIN, f"--{option}", name), (word,))


@st.composite
def too_large(draw):
    # From 10 PB on, and on to what no computer counts to.
    number = draw(st.one_of(st.integers(10**16, 10**18), st.integers(10**19, 10**60)))
    line = draw(
        st.sampled_from([
            (*TRAIN, f"--model.latent_dim={number}"),
            (*TRAIN, f"--model.hidden=[{number}]"),
            (*TRAIN, f"--guide.hidden=[8, {number}]"),
            (*TRAIN, f"--model=VAE(latent_dim={number})"),
            (*TRAIN, f"--batch_size={number}"),
            (*TRAIN, f"--seed={number * 10**4}"),
            ("sample", "run", f"--num={number}"),
            ("evaluate", "run", f"--num_data={number}"),
            ("evaluate", "run", f"--seed={number * 10**4}"),
        ])
    )  # fmt: skip
    return Bad("too large", line, (str(number), "batch_size", "num_data", "seed"))


STRANGERS = ["os.system", "subprocess.Popen", "builtins.eval", "torch.nn.Linear", "shutil.rmtree",
             "torch.optim.os.system", "pathlib.Path", "ppl_vae.cli.main", "torch.load",
             "ppl_vae.config.importlib.import_module", "pyro.infer.elbo.ELBO"]  # fmt: skip


@st.composite
def strangers(draw):
    option, name = draw(st.sampled_from(CLASSES)), draw(st.sampled_from(STRANGERS))
    inner = draw(
        st.sampled_from([
            f"{option}: {name}",
            f"{option}: {{class_path: {name}}}",
            f"{option}: '{{class_path: {name}}}'",
            f"{option}: {{class_path: {name}, init_args: {{a: 1}}}}",
            f"model: {{class_path: VAE, init_args: {{decoder: {name}}}}}",
            f"guide: {{class_path: SemiAmortizedGuide, init_args: {{make: {name}}}}}",
            f"guide: {{class_path: FrozenGuide, init_args: {{make: {{class_path: {name}}}}}}}",
            f"{option}: &a {{class_path: {name}}}\nmodel: *a",
            f"{option}: !!python/object/apply:{name} ['true']",
            f"{option}: !!python/name:{name} ''",
        ])
    )  # fmt: skip
    short = name.rpartition(".")[2]
    return Bad("a stranger's class", (*TRAIN, "--config", "c.yaml"), (name, short, "c.yaml"),
               {"c.yaml": inner.encode()})  # fmt: skip


@st.composite
def broken_configs(draw):
    option = draw(st.sampled_from(["model", "seed", "num_steps", "data", "qxoption"]))
    content = draw(
        st.one_of(
            st.binary(min_size=1, max_size=40).map(lambda b: b"\xff" + b),
            st.sampled_from([b"", b"3", b"- 1", b"text", b"null", b"{", b"a: b: c", b"\t- a", b"%",
                             b"*a", b"&a [*a]", b"!!python/object:os.system {}", b"[" * 20_000,
                             b"model: " + b"{a: " * 400 + b"1" + b"}" * 400]),
            words().map(lambda word: f"{word}: 1".encode()),
            st.integers(10, 40).map(lambda n: "\n".join(
                [f"{option}: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]"
                                          for i in range(1, n)]).encode()),
            st.sampled_from([b"allow: [os]", b"config: other.yaml", b"out: [1]", b"3: 4",
                             b"null: 1", b"? [a]\n: 1", b"freeze: 3", b"freeze: {a: 1}",
                             b"report: maybe", b"data: [1]", b"root: {a: 1}", b"device: 17"]),
        )
    )  # fmt: skip
    return Bad("broken config", (*TRAIN, "--config", "c.yaml"),
               ("c.yaml", "out", "freeze", "report", "data", "root", "device"),
               {"c.yaml": content})  # fmt: skip


@st.composite
def bad_paths(draw):
    word = draw(st.one_of(words(string.ascii_letters + " é大'\"$`;&\\"),
                          st.just("q" * 300), st.just("q" * 5000)))  # fmt: skip
    path = draw(st.sampled_from([f"{word}.npz", f"no/{word}.npy", f"../{word}/x", f"/{word}/{word}",
                                 f"~{word[:20]}/x.npz", word]))  # fmt: skip
    option = draw(st.sampled_from(["data", "config", "run"]))
    given = (*_shown(path), *_shown(word), word[:20])
    if option == "run":
        command = draw(st.sampled_from(["evaluate", "sample", "report"]))
        return Bad("no run", (command, path), given)
    return Bad(f"no {option}", (*TRAIN, f"--{option}", path), given)


def arrays(**content):
    return lambda path: np.savez(path, **content)


GREY = np.full((40, 6), 0.5, "float32")


@st.composite
def bad_data(draw):
    size, place = draw(st.integers(1, 39)), draw(st.integers(0, 239))
    value = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1.5, -0.1, 1e30]))
    wrong = GREY.copy()
    wrong.flat[place] = value
    dtype = draw(st.sampled_from(["complex64", "S3", "U3", "datetime64[s]", "object"]))
    made = draw(
        st.sampled_from([
            {"train": wrong},
            {"train": GREY.astype(dtype) if dtype != "datetime64[s]" else
             GREY.astype("int64").astype(dtype)},
            {"train": GREY[:0]}, {"train": GREY[0]}, {"train": GREY[:, :0]}, {"train": np.array(3)},
            {"train": GREY, "valid": GREY[:size, :3]}, {"train": GREY, "test": GREY[0]},
            {"train": GREY, "valid": GREY.astype("int16")},
            {"train": GREY, "train_labels": np.zeros(size)},
            {"train": GREY, "train_labels": np.zeros((40, 2, 2))},
            {"train": GREY, "train_labels": np.array(["a"] * 40)},
            {"train": GREY, "valid_labels": np.zeros(size)},
            {"x": GREY, "y": np.zeros(size)}, {"x": GREY, "z": GREY}, {"a": GREY, "b": GREY}, {},
            {"train": np.full((40, 6), 7)}, {"x": GREY[:0]}, {"valid": GREY, "test": GREY},
        ])
    )  # fmt: skip
    kind = draw(st.sampled_from(["array", "array", "cut", "noise", "suffix", "folder", "npy"]))
    if kind == "array":
        files = {"bad.npz": arrays(**made)}
    elif kind == "cut":
        files = {"bad.npz": lambda path: _cut(path, size)}
    elif kind == "noise":
        files = {"bad.npz": draw(st.binary(max_size=200))}
    elif kind == "npy":
        files = {"bad.npy": draw(st.binary(max_size=200))}
    elif kind == "suffix":
        files = {f"bad.{draw(words(max_size=5))}": b"data"}
    else:
        files = {"bad": lambda path: path.mkdir(exist_ok=True)}
    (name,) = files
    return Bad(f"bad data: {kind}", (*TRAIN, "--data", name), ("bad", "data", "Bernoulli"), files)


def _cut(path, share):
    np.savez(path, train=GREY)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * share // 40])


@st.composite
def bad_calls(draw):
    option = draw(st.sampled_from(CLASSES))
    word = draw(words())
    call = draw(
        st.sampled_from([f"VAE({word})", "VAE(3)", "VAE(latent_dim=)", "VAE(latent_dim=3))",
                         "VAE(**{})", "VAE(*[1])", f"VAE({word}=3)", f"Adam({word}=1)",
                         f"Trace_ELBO({word}=[1)", f"Linear({word})", "VAE((((((((((1",
                         f"MeanFieldGuide(hidden={word}())"])
    )  # fmt: skip
    return Bad("bad call", (*TRAIN, f"--{option}={call}"), (option, word, call))


@st.composite
def bad_commands(draw):
    word = draw(st.one_of(words(string.ascii_letters + " é大'"), st.text(max_size=8)))
    run = draw(st.sampled_from(["evaluate", "sample", "report"]))
    number = draw(st.integers(-(10**12), 0))
    large = draw(st.integers(10**6, 10**18))
    line, given = draw(
        st.sampled_from([
            ((f"qx{word}",), ("qx",)),
            ((run, "run", f"qx{word}"), ("qx",)),
            ((run,), ("run",)),
            ((run, "run", "--checkpoint", "qxfirst"), ("checkpoint",)),
            ((run, "run", "--device", f"qx{word}"), ("device",)),
            ((run, "run", f"--seed={number - 1}"), ("seed",)),
            (("evaluate", "run", "--split", f"qx{word}"), ("split",)),
            (("evaluate", "run", f"--num_data={number}"), ("num_data",)),
            (("evaluate", "run", f"--num_data={large}"), ("num_data",)),
            (("evaluate", "run", f"--num_particles={number}"), ("num_particles",)),
            (("evaluate", "run", "--data", "other.npz"), ("other.npz", "shape")),
            (("sample", "run", f"--num={number}"), ("num",)),
            (("list", f"qx{word}"), ("qx",)),
            (("list", "runs", "--folder", f"qx{word}"), ("folder",)),
        ])
    )  # fmt: skip
    return Bad("bad command", tuple(line), given, {"other.npz": arrays(train=GREY[:, :3])})


@st.composite
def bad_grids(draw):
    word, number = draw(words()), draw(st.integers(-99, 0))
    head = ("compare", "--data", "data.npz", "--num_steps", "2", "--out", "grid")
    more, given = draw(
        st.sampled_from([
            (("--seed", "0", "0"), ("seed",)),
            ((), ("nothing to compare",)),
            (("--seed", "0", word), ("seed",)),
            (("--seed", "0", "1", "--seed", "2"), ("seed",)),
            (("--seed",), ("seed",)),
            ((f"--{word}", "0", "1"), (word,)),
            (("--guide", "MeanFieldGuide", word), (word,)),
            (("--guide", "MeanFieldGuide", f"VAE({word}"), ("guide",)),
            (("--seed", "0", "1", f"--num_workers={number}"), ("num_workers",)),
            (("--seed", "0", "1", "--num_particles", word), ("num_particles",)),
            (("--seed", "0", "1", "--split", word), ("split",)),
            (("--seed", "0", "1", "--resume", "true"), ("resume",)),
            (("--seed", "0", "1", "--baseline", word), ("baseline",)),
            (("--seed", "0", "1", "--baseline", f"{{seed: {word}}}"), ("baseline",)),
            (("--at", word, "--estimator", "Trace_ELBO"), (word, "option --data")),
            (("--seed", "0", "1", "--out", "data.npz"), ("data.npz", "out")),
            (("--config", f"{word}.yaml", "--seed", "0", "1"), (word,)),
        ])
    )  # fmt: skip
    return Bad("bad grid", (*head, *more), given)


def _flip(content, place):
    content = bytearray(content)
    content[place % len(content)] ^= 1 << (place % 8)
    return bytes(content)


FILES = ("state.json", "model.safetensors", "guide.safetensors", "optimizer.safetensors",
         "random.safetensors")  # fmt: skip


@st.composite
def damaged_runs(draw):
    name, place = draw(st.sampled_from(FILES)), draw(st.integers(0, 10**6))
    how = draw(st.sampled_from(["flip", "cut", "gone", "noise", "text"]))
    text = draw(
        st.sampled_from(["", "{}", "[]", "3", "null", "[" * 9999, '{"tree": 1, "sha256": {}}'])
    )

    def damage(path):
        path = path.parent / "run" / "checkpoint" / name
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(
                {"flip": _flip(content, place), "cut": content[: place % len(content)],
                 "noise": bytes([place % 251]) * (place % 999), "text": text.encode()}[how]
            )  # fmt: skip

    line = draw(st.sampled_from([("evaluate", "run"), ("sample", "run"), ("report", "run"),
                                 ("train", "--out", "run", "--resume")]))  # fmt: skip
    return Bad("damaged run", line, ("checkpoint",), {"any": damage})


@st.composite
def damaged_configs(draw):
    content = draw(
        st.sampled_from(["", "3", "[]", "a: [1", "model: null", "model: {class_path: 3}",
                         "model: {class_path: VAE}", "model: {class_path: os.system}",
                         "model: {class_path: ppl_vae.models.Nope}", "model: 3\nguide: 4",
                         "model: {class_path: ppl_vae.models.VAE, init_args: 3}",
                         "model: {class_path: ppl_vae.models.VAE, init_args: {qx: 3}}",
                         "model: {class_path: ppl_vae.models.VAE, init_args: {latent_dim: qx}}",
                         "model: {class_path: ppl_vae.models.VAE, init_args: {hidden: 3}}",
                         "model: {class_path: ppl_vae.models.VAE, init_args: {decoder: qx}}",
                         "model: {class_path: ppl_vae.models.VAE, init_args: {hidden: [qx]}}",
                         "model: {class_path: ppl_vae.models.VampPrior, init_args: {make: qx}}",
                         "model: {class_path: ppl_vae.models.VAE, more: 3}", "&a [*a]"])
    )  # fmt: skip
    line = draw(st.sampled_from([("evaluate", "run"), ("sample", "run"), ("report", "run")]))

    def damage(path):
        (path.parent / "run" / "config.yaml").write_text(content)

    return Bad("damaged config", line, ("config", "run"), {"any": damage})


KINDS = (unknown_options, no_integers, out_of_range, too_large, unknown_classes, strangers,
         broken_configs, bad_paths, bad_data, bad_calls, bad_commands, bad_grids, damaged_runs,
         damaged_configs)  # fmt: skip


def bad_inputs():
    """Any of them."""
    return st.one_of([kind() for kind in KINDS])
