"""The command line: `lightning-lr report LOGDIR`."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence

from lightning_lr.report.tables import plain
from lightning_lr.story import NothingToRead, Story, runs

FINE, NOTHING, USAGE = 0, 1, 2
"""Exit codes; the last one is also argparse's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the arguments; None for those of the process.

    Returns:
        The exit code: 0, 1 if nothing could be read, or 2 for wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="lightning-lr", description="Learning rates of PyTorch Lightning's runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report",
        help="what happened to the learning rates of runs, and why",
        description="Reads TensorBoard's event files and says how each run does: its rate and what makes it, every "
        "change with its cause, every incident.",
        epilog="exit codes: 0 fine, 1 nothing could be read, 2 wrong arguments",
    )
    report.add_argument("logdir", nargs="+", metavar="LOGDIR", help="a folder with event files in it or below it")
    report.add_argument(
        "--run", action="append", metavar="NAME", help="only this run; may be repeated, and have * and ? in it"
    )
    report.add_argument("--all", action="store_true", help="every run and every change, not the most important only")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, described in docs/report.md")
    form.add_argument("--html", metavar="FILE", help="as one page that needs nothing else")
    args = parser.parse_args(arguments)
    try:
        stories = _stories(args.logdir)
    except NothingToRead as error:
        print(f"lightning-lr: {error}", file=sys.stderr)
        return NOTHING
    if args.run:
        names = [story.name for story in stories]
        lost = [name for name in args.run if not fnmatch.filter(names, name)]
        if lost:
            some = ", ".join(plain(name) for name in names[:10]) + (
                f" and {len(names) - 10} more" if len(names) > 10 else ""
            )
            report.error(f"--run: no run has the name {lost[0]!r}. There are: {some}")
        stories = [s for s in stories if any(fnmatch.fnmatchcase(s.name, name) for name in args.run)]
    readable = []
    for story in stories:
        try:
            story.refresh()
        except OSError as error:
            print(f"lightning-lr: {plain(story.name)}: {error}", file=sys.stderr)
        else:
            readable.append(story)
    try:
        answer = _write(args, readable)
        sys.stdout.flush()
    except BrokenPipeError:
        # `... | head` has read enough; without this Python would complain again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    return answer


def _write(args: argparse.Namespace, stories: list[Story]) -> int:
    if args.json:
        from lightning_lr.report.json_report import as_json

        print(as_json(stories))
    elif args.html:
        from lightning_lr.report.html_page import page

        try:
            with open(args.html, "w", encoding="utf-8") as file:
                file.write(page(stories))
        except OSError as error:
            print(f"lightning-lr: --html: {error}", file=sys.stderr)
            return USAGE
        print(f"{args.html}: {len(stories)} run{'' if len(stories) == 1 else 's'}")
    else:
        try:
            from lightning_lr.report.terminal import show
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "rich":
                raise
            print(
                "lightning-lr: the report in the terminal needs rich: pip install rich (--html and --json don't)",
                file=sys.stderr,
            )
            return NOTHING
        show(stories, whole=args.all or bool(args.run), every=args.all)
    if any(story.last_step is not None or story.has_data for story in stories):
        return FINE
    print("lightning-lr: the event files have nothing in them that could be read", file=sys.stderr)
    return NOTHING


def _stories(logdirs: Sequence[str]) -> list[Story]:
    found = [(logdir, runs(logdir)) for logdir in dict.fromkeys(logdirs)]
    # with several folders, a run's name alone says too little
    several = len(found) > 1
    stories = []
    for logdir, own in found:
        for name, folder in own.items():
            if several:
                name = logdir if name == "." else f"{logdir.rstrip('/')}/{name}"
            elif name == ".":
                # the folder's own name says more than TensorBoard's
                name = os.path.basename(os.path.abspath(folder))
            stories.append(Story(folder, name))
    return stories
