"""The `gpuplan` command: finds the sub-command, and turns every ending into an exit code."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.errors import ExitCode, InputError, PlannerError

if TYPE_CHECKING:
    from types import TracebackType

COMMANDS = {
    "init": ("planner.cli.init", "Write a commented request that plans as it stands."),
    "plan": ("planner.cli.plan", "Find the cheapest mix of GPUs that serves a request within its SLOs."),
    "sweep": ("planner.cli.sweep", "Find the front of two objectives, or up to which load a plan holds its SLOs."),
    "simulate": ("planner.cli.simulate", "Replay a plan request by request: does it hold its SLOs?"),
    "explain": ("planner.cli.explain", "Say what binds a plan, what it costs, and why other GPUs are not in it."),
    "catalog": ("planner.cli.catalog", "GPUs and what renting them costs."),
    "models": ("planner.cli.models", "Model architectures that gpuplan knows."),
    "workload": ("planner.cli.workload", "Look at a request trace."),
    "profile": ("planner.cli.profile", "What one replica serves: measured, imported or estimated."),
    "adapters": ("planner.cli.adapters", "Ways to serve many adapters (LoRA) of one model, compared."),
    "schema": ("planner.cli.schema", "Print a JSON Schema, for editors and for checking documents."),
    "doctor": ("planner.cli.doctor", "Check versions, solvers, data ages and rival packages."),
}
"""Sub-command -> (module, help line). A module holds a typer app `app`, or one function `command`."""

GLOBAL_FLAGS = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose", "--no-color": "no_color"}

HELP = """Plans GPU fleets for LLM serving: which GPUs, how many, where, on which market, serving what, at what price.

Start with: gpuplan init > request.yaml, then: gpuplan plan request.yaml

Every command takes -q (only errors), -v (more detail) and --no-color; NO_COLOR is honoured.
"""

UsageError: Any = typer.BadParameter.__base__
"""typer's usage error; typer does not export it by name, and from 0.2x on it is no longer click's."""


def show_version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"gpuplan {version('gpuplan')}\n")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Carry the options of `gpuplan` itself."""


def build_app(arguments: list[str]) -> typer.Typer:
    """Return the typer app with the one sub-command that `arguments` name; the others are only listed.

    Importing all of them would cost more than answering --help.
    """
    app = typer.Typer(add_completion=False, no_args_is_help=True, help=HELP, pretty_exceptions_enable=False)
    app.callback(help=HELP)(root)
    called = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (module_name, help_line) in COMMANDS.items():
        module = importlib.import_module(module_name) if name == called else None
        if module is None:
            app.command(name, help=help_line)(root)
        elif hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=help_line, no_args_is_help=True)
        else:
            app.command(name)(module.command)
    return app


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell of an error that gpuplan did not foresee; the traceback only with -v."""
    if console.logger.isEnabledFor(logging.DEBUG):
        traceback.print_exception(kind, error, trace)
    sys.stderr.write(
        f"Error: unexpected {kind.__name__}: {error}\nThis is a bug in gpuplan: please report it with the output of"
        " the same command run with -v.\n"
    )


def split_global_flags(arguments: list[str]) -> tuple[list[str], dict[str, bool]]:
    """Return the arguments without the flags that every command takes, and those flags."""
    flags = dict.fromkeys(GLOBAL_FLAGS.values(), False)
    rest: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            rest += arguments[index:]
            break
        if argument in GLOBAL_FLAGS:
            flags[GLOBAL_FLAGS[argument]] = True
        else:
            rest.append(argument)
    return rest, flags


def interrupted() -> int:
    """Say that the user stopped the command, and return its exit code."""
    sys.stderr.write("Interrupted.\n")
    return int(ExitCode.INTERRUPTED)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    arguments, flags = split_global_flags(arguments or ["--help"])
    console.configure(**flags)
    as_json = "--json" in arguments
    try:
        # Not `app(...)`: that would put typer's own hook for tracebacks in the place of ours.
        command = typer.main.get_command(build_app(arguments))
        result = command.main(args=arguments, standalone_mode=False, prog_name="gpuplan")
    except PlannerError as error:
        console.show_error(error, as_json=as_json)
        return int(error.exit_code)
    except UsageError as error:
        context = error.ctx.command_path if error.ctx else "gpuplan"
        if message := error.format_message():  # empty where typer has shown the help of a bare group
            console.show_error(InputError(message, hint=f"See: {context} --help"), as_json=as_json)
        return int(ExitCode.BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return interrupted()
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a compiled module was loading
            return interrupted()
        raise
    if result == ExitCode.INTERRUPTED:  # stopped in the middle, or with the best plan found so far
        return interrupted()
    return result if isinstance(result, int) else int(ExitCode.OK)


def main() -> None:
    """Entry point of the `gpuplan` command."""
    sys.excepthook = report_bug
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `gpuplan ... | head` ends quietly
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
