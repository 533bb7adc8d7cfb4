"""The command group: errors become one line and an exit code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from sdengine.errors import Cancelled, ParameterError, SDEngineError, UnwiseWarning

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Failure(click.ClickException):
    """Something went wrong: one line on stderr."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo("error: " + " ".join(self.format_message().splitlines()), err=True)


class WrongParameter(Failure):
    """The caller can put it right."""

    exit_code = 2


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show sdengine's warnings as one line each."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, UnwiseWarning):
            click.echo(f"warning: {message}", err=True)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class Program(click.Group):
    """A command group whose commands may raise sdengine's errors."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            with _warnings_as_lines():
                return super().invoke(ctx)
        except (KeyboardInterrupt, Cancelled):
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except ParameterError as error:
            raise WrongParameter(str(error)) from error
        except SDEngineError as error:
            raise Failure(str(error)) from error
