"""The words of the command line as checked options."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ppl_vae.axes import Grid, split_axes
from ppl_vae.calls import without_calls
from ppl_vae.catalogue import KINDS
from ppl_vae.choices import arguments_of
from ppl_vae.messages import explain
from ppl_vae.vetting import vet

__all__ = ["COMMANDS", "parse"]

COMMANDS = {
    "train": "train a model and a guide, evaluate them, write the run and its report",
    "evaluate": "bounds, KL and log p(x) of a run; writes results.json",
    "compare": "train a grid of runs, and compare them with error bars over seeds",
    "sample": "draw from a run's model; writes samples.npz and figures/samples.png",
    "report": "redraw a run's figures and report.html",
    "cite": "print the BibTeX of what a run used",
    "list": "what there is to choose from, and the runs that there are",
}
"""Each subcommand with what it does."""

# What `vet` lets through, since the user typed it, is still nothing of the system's: a second lock.
set_parsing_settings(import_path_denylist=["os", "subprocess", "shutil", "builtins", "sys"])

_BOOLEANS = ("true", "false", "True", "False")
_LISTS = ("--allow", "--freeze")


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Reads a command line.

    Args:
        arguments: The words behind `ppl-vae`.

    Returns:
        The subcommand, and its options by name; of `train` only those that are given. Where an
        option is a class, its value is still an entry of `class_path` and `init_args`, to be made
        with the modules in the option `allow`.

    Raises:
        ValueError: What the user got wrong, in one sentence.
        SystemExit: Help was asked for, and given.
    """
    if not arguments:
        raise ValueError(f"no command is given; accepted are {', '.join(COMMANDS)} and --help")
    if arguments[0] == "compare" and not {"-h", "--help"} & set(arguments):
        return "compare", _compared(arguments[1:])
    command, arguments, allow = arguments[0], _completed(arguments), None
    if command == "train":
        arguments = without_calls(arguments)
        # First, since jsonargparse imports whatever a config names.
        arguments, allow = vet(arguments)
    parser = _parser_of(command)
    try:
        # What is not said of a run is left to Python's defaults, and its config stays short.
        options = _parser(command, parser).parse_args(arguments, defaults=command != "train")
    except ArgumentError as error:
        raise ValueError(explain(str(error), _names(parser), arguments)) from None
    chosen = options[command].as_dict()
    chosen.pop("config", None)
    return command, chosen if allow is None else {**chosen, "allow": allow}


def _compared(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of `compare`, and of its cells what they are on each axis, and `train`'s."""
    parser = _parser_of("compare")
    grid = split_axes(arguments, [name for name in _names(parser) if name != "help"])
    try:
        chosen = parser.parse_args(grid.own).as_dict()
    except ArgumentError as error:
        raise ValueError(explain(str(error), _names(parser))) from None
    if chosen["at"]:
        _check_at(grid)
    elif not grid.axes:
        raise ValueError(
            "there is nothing to compare: no option has several values, as in --seed 0 1 2, "
            "--guide MeanFieldGuide IAFGuide"
        )
    return {**chosen, "cells": [(labels, parse(words)[1]) for labels, words in grid.cells()]}


def _check_at(grid: Grid) -> None:
    """At runs that are there already, only the estimator can be another."""
    given = [*grid.axes, *(name for name, _ in grid.base)]
    if odd := [name for name in given if name.partition(".")[0] not in ("estimator", "allow")]:
        raise ValueError(
            f"option --{odd[0]} is not for compare --at, where runs are as they are; accepted are "
            "--estimator, --num_draws, --num_data, --num_particles, --split, --out"
        )
    if "estimator" not in given:
        raise ValueError("compare --at needs --estimator with one value or several")


def _completed(arguments: Sequence[str]) -> list[str]:
    """`--resume` for `--resume true`, and `--freeze model` for `--freeze [model]`."""
    completed = []
    for index, word in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        previous = arguments[index - 1] if index else ""
        name, equals, value = word.partition("=")
        alone = not following or following.startswith("-")
        # Behind --mean the run may follow.
        if (word == "--resume" and alone) or (word == "--mean" and following not in _BOOLEANS):
            word = f"{word}=true"
        elif name in _LISTS and equals and not value.startswith("["):
            word = f"{name}=[{value}]"
        elif previous in _LISTS and not word.startswith(("[", "-")):
            word = f"[{word}]"
        completed.append(word)
    return completed


def _parser(command: str, parser: ArgumentParser) -> ArgumentParser:
    """The parser of all; the options of the other commands need not be known."""
    root = _bare("Variational autoencoders as Pyro model/guide pairs.", prog="ppl-vae")
    commands = root.add_subcommands(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_subcommand(name, parser if name == command else _bare(summary), help=summary)
    return root


def _parser_of(command: str) -> ArgumentParser:
    parser = _bare(COMMANDS.get(command, ""))
    if command == "train":
        _add_train_options(parser)
    elif command == "list":
        parser.add_argument("what", type=Literal[("all", *KINDS, "runs")], default="all", nargs="?",
                            help=f"One of {', '.join(KINDS)}, runs.")  # fmt: skip
        parser.add_argument("--folder", type=str, default="runs", help="Where the runs lie.")
    elif command == "compare":
        _add_compare_options(parser)
    elif command == "cite":
        parser.add_argument("run", type=str, help="The run's folder.")
    elif command in COMMANDS:
        _add_run_options(parser, with_data=command != "sample")
    if command == "evaluate":
        parser.add_argument("--num_particles", type=int, default=5000, help="K of log p(x).")
        parser.add_argument("--num_data", type=int | None,
                            help="Data to use, drawn at random; all if not given.")  # fmt: skip
    if command == "sample":
        parser.add_argument("--num", type=int, default=64, help="How many.")
        parser.add_argument("--mean", type=bool, default=False,
                            help="The mean of p(x | z) in place of a draw.")  # fmt: skip
    return parser


def _bare(description: str, **options: Any) -> ArgumentParser:
    # An abbreviation of --config would slip past `vet`.
    return ArgumentParser(
        description=description, exit_on_error=False, allow_abbrev=False, **options
    )


def _add_train_options(parser: ArgumentParser) -> None:
    # Here, since it brings matplotlib, which the other commands need not wait for.
    from ppl_vae.training import train

    parser.add_argument("--config", action="config", help="A YAML file of these options.")
    # A user's own guide need not say of which type its `model` is.
    parser.add_function_arguments(train, fail_untyped=False)
    parser.set_defaults(
        # Classes, so that --estimator.num_particles needs no --estimator in front.
        estimator={"class_path": "ppl_vae.estimators.Trace_ELBO"},
        optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}},
    )


def _add_compare_options(parser: ArgumentParser) -> None:
    parser.description = (
        f"{COMMANDS['compare']}. Besides the following, every option of train; one with several "
        "values is an axis of the grid: --guide MeanFieldGuide IAFGuide --estimator Trace_ELBO "
        "'TraceIWAE_ELBO(num_particles=5)' --seed 0 1 2. The same command goes on where it stopped."
    )
    parser.add_argument("--out", type=str, default="comparison", help="The folder to write.")
    parser.add_argument("--split", type=Literal["train", "valid", "test"], default="test",
                        help="On which part of the data to evaluate.")  # fmt: skip
    parser.add_argument("--num_particles", type=int, default=1000, help="K of log p(x).")
    parser.add_argument("--num_data", type=int | None,
                        help="Data to evaluate on, drawn at random; all if not given.")  # fmt: skip
    parser.add_argument("--num_workers", type=int, default=1,
                        help="Cells at once, each in a process of one thread; of --engine "
                        "local.")  # fmt: skip
    parser.add_argument("--engine", type=Literal["local", "ray"], default="local",
                        help="What runs the cells; ray needs ppl_vae[ray].")  # fmt: skip
    parser.add_argument("--address", type=str | None,
                        help="Of a Ray cluster, auto for this machine's; one of its own, if not "
                        "given.")  # fmt: skip
    parser.add_argument("--num_cpus", type=float | None,
                        help="Cores of a cell on Ray, 1 if not given.")  # fmt: skip
    parser.add_argument("--num_gpus", type=float | None,
                        help="GPUs of a cell on Ray, 0 if not given, 0.25 a fourth.")  # fmt: skip
    parser.add_argument("--num_retries", type=int | None,
                        help="How often Ray begins a cell again that is lost; 3 if not "
                        "given.")  # fmt: skip
    parser.add_argument("--at", type=list[str], default=[],
                        help="Runs at which to compare estimators, without training.")  # fmt: skip
    parser.add_argument("--num_draws", type=int, default=200,
                        help="Draws of bounds and gradients, of --at.")  # fmt: skip
    parser.add_argument("--baseline", type=dict[str, str] | None,
                        help="What to compare with, as {guide: IAFGuide}; the first row, if not "
                        "given.")  # fmt: skip


def _add_run_options(parser: ArgumentParser, *, with_data: bool) -> None:
    parser.add_argument("run", type=str, help="The run's folder.")
    if with_data:
        parser.add_argument("--data", type=str | None, help="Data in place of the run's own.")
        parser.add_argument("--root", type=str | None, help="Where named data lie.")
        parser.add_argument("--split", type=Literal["train", "valid", "test"], default="test",
                            help="Which part of the data.")  # fmt: skip
    parser.add_argument("--checkpoint", type=Literal["last", "best"] | None,
                        help="Best for a run with patience, else last, if not given.")  # fmt: skip
    parser.add_argument("--allow", type=list[str], default=[],
                        help="Modules whose classes the run may name as well.")  # fmt: skip
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="Of the draws.")


def _names(parser: ArgumentParser) -> list[str]:
    """What may stand behind `--`, the arguments of the default classes included."""
    defaults = dict(parser.get_defaults().items())
    names = [re.sub(r"\.(class_path|init_args)", "", key) for key in defaults]
    nested = [
        f"{key.removesuffix('.class_path')}.{name}"
        for key, value in defaults.items()
        if key.endswith(".class_path")
        for name in arguments_of(value)
    ]
    return [*names, *nested]
