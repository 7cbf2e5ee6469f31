"""The `onnxq` command: finds subcommands lazily, and turns every failure into one line and an exit code.

Everything heavy (onnx, numpy, onnxruntime) is imported inside the commands, so that `onnxq --help` and shell
completion answer at once.
"""

from __future__ import annotations

import errno
import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from onnxq._version import __version__
from onnxq.signals import Terminated, end_cleanly

__all__ = ["COMMANDS", "cli", "main"]

# Name -> (module, attribute, one line of help). The help stands here so that --help imports no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "info": ("inspect", "info", "Layers, shapes, sizes and schemes of a model."),
    "fold": ("rewrite", "fold", "Simplify a model and fold its BatchNormalizations."),
    "smooth": ("rewrite", "smooth", "Even out weight ranges between channels before quantizing."),
    "quantize": ("quantize", "quantize", "Write one quantized model."),
    "decode": ("rewrite", "decode", "Turn weights that stand as bit streams back into float."),
    "apply": ("rewrite", "apply", "Run a recipe of passes on a model."),
    "sensitivity": ("sensitivity", "sensitivity", "Rank the layers by what quantizing them costs."),
    "allocate": ("allocate", "allocate", "Spend bits by the sensitivities of a run."),
    "tune": ("tune", "tune", "Search the Pareto front of quantized models."),
    "train": ("train", "train", "Train a model with quantized weights (MSQ, QAT, SMPQ; needs torch)."),
    "build": ("runs", "build", "Write any candidate of a run as an ONNX file."),
    "eval": ("evaluate", "evaluate", "Accuracy of one or more models."),
    "bench": ("bench", "bench", "Latency of one or more models, measured in turns."),
    "devices": ("devices", "devices", "List the devices that models can run on."),
    "report": ("runs", "report", "Render the report of a run again, or compare several runs."),
    "golden": ("golden", "golden", "Pin what a recipe makes of a model, for your own CI."),
    "policy": ("inspect", "policy", "Write a policy file to edit, or the one inside a quantized model."),
    "passes": ("inspect", "passes", "List the passes of recipes and their options."),
    "doctor": ("doctor", "doctor", "What is installed, and which execution providers work."),
    "completion": ("completion", "completion", "Print the completion script of a shell."),
}
_NOT_WRITABLE = {errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.ENOTDIR}


class _Sentence(click.ClickException):
    """One line on stderr; control characters in it, from names in files say, are escaped."""

    def format_message(self) -> str:
        from onnxq.cli.terminal import printable

        return printable(self.message)


class _Failure(_Sentence):
    """Bad input: the sentence of a UserError."""

    exit_code = 2


class _Unexpected(_Sentence):
    """A bug, or a library's error that nobody translated."""

    exit_code = 1


@functools.cache
def _command(name: str) -> click.Command:
    """A command; before it does anything, what was typed and is read by nothing is refused."""
    module, attribute, _ = COMMANDS[name]
    command = getattr(importlib.import_module(f"onnxq.cli.{module}"), attribute)
    assert isinstance(command, click.Command)
    callback = command.callback
    if callback is None or isinstance(command, click.Group):
        return command

    @functools.wraps(callback)
    def checked(*arguments: Any, **settings: Any) -> Any:
        from onnxq.cli.unread import refuse_unread

        refuse_unread(click.get_current_context())
        return callback(*arguments, **settings)

    command.callback = checked
    return command


class _Cli(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        return _command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from onnxq.cli.terminal import printable, say

        try:
            with _shown_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            say(f"Interrupted. {ctx.meta.get('onnxq.resume', '')}".rstrip(), err=True)
            ctx.exit(130)
        except Terminated as end:
            click.echo(err=True)
            say(f"Ended by {end.name}. {ctx.meta.get('onnxq.resume', '')}".rstrip(), err=True)
            raise
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            shown = _translated(error)
            if shown is error or (ctx.params.get("debug") and isinstance(shown, _Unexpected)):
                raise
            raise shown from error
        finally:
            # A command's models are gone by now, and with them whoever reads what passes put aside.
            spilling = sys.modules.get("passes.graph.spilling")
            if spilling is not None:
                spilling.release()


@contextmanager
def _shown_warnings() -> Iterator[None]:
    """Remarks on models (ModelWarning) as lines of our own, each once a command."""
    import warnings

    from onnxq.cli.terminal import warn

    told = set[str]()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__name__ != "ModelWarning":
                usual(message, category, *place, **more)
            elif (text := str(message).partition(": ")[2]) not in told:  # of a model and what is made of it
                told.add(text)
                warn(str(message))

        warnings.showwarning = show
        # By its text, since the class is in a module that takes long to import.
        warnings.filterwarnings("always", message="(?s).*ONNX Runtime accepts that", category=UserWarning)
        yield


def _translated(error: Exception) -> Exception:
    """What to show for an error: its one sentence, or its type and how to learn more."""
    known = sys.modules.get("passes.core.errors")
    if known is not None and isinstance(error, known.UserError):
        from onnxq.cli.flags import as_flags

        return _Failure(as_flags(str(error)))
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return error  # click ends quietly when the reader of a pipe has gone
        if error.errno in _NOT_WRITABLE:
            return _Failure(f"{error.filename or 'output'}: {error.strerror or error}")
    if isinstance(error, MemoryError):
        return _Failure(
            f"not enough memory ({error}); use smaller inputs or fewer samples, or a larger machine"
        )
    first = str(error).strip().splitlines()[0][:300] if str(error).strip() else "no message"
    return _Unexpected(f"unexpected {type(error).__name__}: {first} (onnxq --debug ... shows where)")


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 unexpected error, 2 bad input, 3 metric floor not met, 4 time budget ended "
    "or a device failed before the search was complete, 130 interrupted.",
)
@click.version_option(__version__, prog_name="onnxq")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
def cli(debug: bool) -> None:
    """Quantize ONNX models: one float model in, a Pareto front of quantized ones out.

    \b
    onnxq quantize model.onnx --data images/ --preprocess imagenet
    onnxq tune     model.onnx --data images/ --preprocess imagenet --pareto -o run
    """


def main() -> None:
    """Entry point of the console script."""
    end_cleanly()
    cli(prog_name="onnxq")
