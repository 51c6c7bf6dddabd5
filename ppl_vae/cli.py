"""The command line: parses, calls the library, prints."""

import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae.arguments import parse
from ppl_vae.catalogue import KINDS, catalogue
from ppl_vae.data import Splits, load
from ppl_vae.diagnosis import NonFiniteError
from ppl_vae.directory import RunDirectory
from ppl_vae.guides.cards import CARDS
from ppl_vae.interruption import Terminated, termination
from ppl_vae.memory import OutOfMemoryError, is_out_of_memory, is_uncountable
from ppl_vae.options import make_options
from ppl_vae.ranks import LostRankError, launched_rank
from ppl_vae.results import choose, evaluate_run, notes, results_table
from ppl_vae.runs import Run, load_run
from ppl_vae.writing import confined, write_bytes

__all__ = ["main"]

# Of one batch at which estimators are compared.
_NUM_DATA = 64
# What the user got wrong, in the words of the library; of Pyro, where it does not do all it could.
# What the disk refuses is said in a sentence as well.
_USER_ERRORS = (ValueError, TypeError, NotImplementedError, OSError)
# 128 and the signal's number, as a shell says it of a process that it has ended.
_TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ppl-vae`.

    Args:
        arguments: The command line; that of the process if not given.

    Returns:
        The exit code: 0; 2 for what the user got wrong, or the disk refused, said in one message;
        143 for SIGTERM; 1 for the rest.
    """
    # As `python -m` does: a guide in the user's own folder can be named.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with termination():
            command, chosen = parse(words)
            _COMMANDS[command](chosen)
            sys.stdout.flush()
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        # `ppl-vae list | head`; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # A lost rank is an OSError as well, but no fault of the user.
    except (NonFiniteError, OutOfMemoryError, LostRankError) as error:
        return _fail(str(error), 1)
    except (*_USER_ERRORS, MemoryError, RuntimeError, OverflowError) as error:
        if is_uncountable(error) or is_out_of_memory(error):
            return _fail(_too_large(words), 2)
        if not isinstance(error, _USER_ERRORS):
            raise
        return _fail(_said(error), 2)
    except Terminated as error:
        return _fail(_stopped("terminated", str(error), words), _TERMINATED)
    except KeyboardInterrupt as error:
        return _fail(_stopped("interrupted", str(error), words), 1)
    return 0


def _train(chosen: dict[str, Any]) -> None:
    from ppl_vae.training import train

    out = chosen.get("out")
    is_begun = bool(chosen.get("resume") and out) and not RunDirectory(str(out)).exists
    directory = RunDirectory(train(**make_options(chosen, chosen["allow"])))
    if is_begun:
        print(f"note: {out} held no run to resume; the training began at step 0")
    if launched_rank():
        return
    if not chosen.get("report", True):
        print(f"run     {directory.path}")
        return
    _print_results(directory.results())
    print(f"run     {directory.path}\nreport  {directory.report_path}")
    print(f"next    open the report in a browser, or: ppl-vae evaluate {directory.path}")


def _evaluate(chosen: dict[str, Any]) -> None:
    run = _load(chosen)
    results = evaluate_run(
        run,
        _data(run, chosen),
        split=chosen["split"],
        num_particles=chosen["num_particles"],
        num_data=chosen["num_data"],
        seed=chosen["seed"],
    )
    _print_results(results)
    print(f"results  {run.directory.results_path}")


def _sample(chosen: dict[str, Any]) -> None:
    from ppl_vae import plots
    from ppl_vae.report import sample_run

    run = _load(chosen)
    x = sample_run(run, num=chosen["num"], mean=chosen["mean"], seed=chosen["seed"])
    path = confined(run.directory.path / "samples.npz", run.directory.path)
    archive = io.BytesIO()
    np.savez_compressed(archive, x=x.cpu().numpy())
    write_bytes(path, archive.getvalue())
    figure = plots.save(plots.samples(x), run.directory.figure_path("samples"))
    print(f"samples  {path}\nfigure   {figure}")


def _report(chosen: dict[str, Any]) -> None:
    from ppl_vae.report import write_report

    run = _load(chosen)
    page = write_report(run, _data(run, chosen), split=chosen["split"], seed=chosen["seed"])
    print(f"report  {page}")


def _cite(chosen: dict[str, Any]) -> None:
    from ppl_vae.citations import cite

    print(cite(RunDirectory(chosen["run"]).config()))


def _compare(chosen: dict[str, Any]) -> None:
    from ppl_vae.laboratory import Cell, Evaluation, as_text, compare_cells, table_of

    at, num_draws = chosen.pop("at"), chosen.pop("num_draws")
    if at:
        _compare_at(at, num_draws, chosen)
        return
    cells = [Cell(labels, options) for labels, options in chosen.pop("cells")]
    num_workers, baseline, out = (chosen.pop(key) for key in ("num_workers", "baseline", "out"))
    engine = _engine(chosen)
    found = compare_cells(
        cells, out, Evaluation(**chosen), baseline=baseline, num_workers=num_workers, engine=engine
    )
    print(f"{as_text(table_of(found))}\n\npage  {Path(out) / 'index.html'}")


def _engine(chosen: dict[str, Any]) -> Any:
    """What is asked for by `--engine`; none for this machine's processes. Takes its options."""
    name = chosen.pop("engine")
    of_ray = ("address", "num_cpus", "num_gpus", "num_retries")
    options = {key: value for key in of_ray if (value := chosen.pop(key)) is not None}
    if name == "ray":
        from ppl_vae.laboratory.on_ray import Ray

        return Ray(**options)
    if options:
        raise ValueError(f"--{next(iter(options))} is of --engine ray; the engine is {name}")
    return None


def _compare_at(runs: Sequence[str], num_draws: int, chosen: dict[str, Any]) -> None:
    from ppl_vae.laboratory import as_text, compare_at, label_of

    estimators, allow = {}, []
    for labels, options in chosen["cells"]:
        allow = options.get("allow", [])
        name = labels.get("estimator", label_of(options["estimator"]))
        estimators[name] = make_options({"estimator": options["estimator"]}, allow)["estimator"]
    loaded = {str(path): load_run(path, allow) for path in runs}
    first = next(iter(loaded.values()))
    # One batch for all: gradients of sums over it.
    x = choose(
        first.data(),
        chosen["split"],
        _NUM_DATA if chosen["num_data"] is None else chosen["num_data"],
        seed=0,
    )
    pairs = {name: (run.model.eval(), run.guide.eval()) for name, run in loaded.items()}
    found = compare_at(
        pairs, estimators, first.like(x), num_draws=num_draws, num_particles=chosen["num_particles"]
    )
    print(f"{as_text(found.table())}\n\nwritten  {found.write(chosen['out'])}")


def _list(chosen: dict[str, Any]) -> None:
    if chosen["what"] == "runs":
        _list_runs(Path(chosen["folder"]))
        return
    for kind in KINDS if chosen["what"] == "all" else [chosen["what"]]:
        names = catalogue(kind)
        width = max(map(len, names))
        print(kind)
        for name, summary in names.items():
            print(f"  {name:<{width}}  {summary}")
            # Asked for by itself, a guide says what there is to know before it is chosen.
            for field, text in CARDS.get(name, ()) if kind == chosen["what"] else ():
                print(f"  {'':<{width}}    {field + ':':<17}{text}")


def _list_runs(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"option --folder: there is no folder {folder}; accepted is one of runs")
    for path in sorted(folder.glob("*/config.yaml")):
        elbo = RunDirectory(path.parent).results().get("elbo")
        value = elbo.get("value") if isinstance(elbo, dict) else None
        said = f"elbo {value:.2f}" if isinstance(value, float) else "not evaluated"
        print(f"{path.parent}  {said}")


def _load(chosen: dict[str, Any]) -> Run:
    return load_run(
        chosen["run"],
        chosen["allow"],
        checkpoint=chosen["checkpoint"],
        device=chosen["device"],
    )


def _data(run: Run, chosen: dict[str, Any]) -> Splits:
    if chosen["data"] is None:
        return run.data(chosen["root"])
    return load(chosen["data"], root=chosen["root"], binarize=run.config.get("binarize"))


def _print_results(results: dict[str, Any]) -> None:
    rows = results_table(results)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    for note in notes(results):
        print(f"note: {note}")


def _said(error: Exception) -> str:
    """What an error says; the system's say it with a number in front."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{str(error.filename)!r}: {error.strerror}"
    return str(error) or type(error).__name__


def _too_large(words: Sequence[str]) -> str:
    """For what takes more memory than there is, or can be, outside of the steps of a training."""
    large = [word for word in words if re.search(r"\d{7}", word)]
    given = f", as {', '.join(large)} may be" if large else ""
    return (
        f"{words[0]}: what is asked for takes more memory than there is{given}; accepted are "
        "smaller networks, fewer data or particles at once"
    )


def _stopped(how: str, where: str, words: Sequence[str]) -> str:
    # A grid goes on without being told so, and says it.
    further = ". Go on with --resume" if words[:1] == ["train"] else ""
    return f"{how}: {where}{further}" if where else how


def _fail(message: str, code: int) -> int:
    rank = launched_rank()
    who = "" if rank is None else f"rank {rank}: "
    print(f"ppl-vae: {who}{message}", file=sys.stderr)
    return code


_COMMANDS = {"train": _train, "evaluate": _evaluate, "sample": _sample, "report": _report,
             "compare": _compare, "cite": _cite, "list": _list}  # fmt: skip
