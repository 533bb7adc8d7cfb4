"""The command group: errors become one line and an exit code."""

from __future__ import annotations

from typing import IO, Any

import click

from sdengine.errors import Cancelled, ParameterError, SDEngineError

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


class Program(click.Group):
    """A command group whose commands may raise sdengine's errors."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Cancelled):
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except ParameterError as error:
            raise WrongParameter(str(error)) from error
        except SDEngineError as error:
            raise Failure(str(error)) from error
