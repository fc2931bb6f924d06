"""What every command of `mammo-train` shares: -q, -v, and errors as one line with the right exit code."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from mammo_runtime.errors import ExitCode, MammoError


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Add -q and -v, and turn errors into one line with the right exit code."""

    @click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Show a traceback when something fails.")
    @functools.wraps(function)
    def command(verbose: bool, **arguments: Any) -> None:
        try:
            function(**arguments)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to resume", err=True)
            sys.exit(ExitCode.INTERRUPTED)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:
            if verbose:
                traceback.print_exc()
            expected = isinstance(error, MammoError)
            text = str(error) if expected else f"internal error, {type(error).__name__}: {error} (-v shows where)"
            click.echo(f"error: {text}", err=True)
            sys.exit(error.exit_code if isinstance(error, MammoError) else ExitCode.INTERNAL)

    return command


def progress(quiet: bool) -> Callable[[str], None]:
    """Return what prints progress on stderr, or nothing."""
    return (lambda _text: None) if quiet else functools.partial(click.echo, err=True)
