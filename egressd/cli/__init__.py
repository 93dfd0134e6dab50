"""The command line: one verb, one module of this package, imported when it is used.

Every module `egressd/cli/VERB.py` holds a `command`. Nothing heavier than click is imported before a verb runs, so
that `egressd --help` answers at once. Exit codes (interface.md): 0 success, 1 the answer is no, 2 wrong usage or
settings, 3 the environment stops it.
"""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final, NoReturn

import click

from egressd import __version__
from egressd.errors import EgressError, InvalidName

__all__ = ["EXIT_ENVIRONMENT", "EXIT_NO", "EXIT_USAGE", "main"]

EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_ENVIRONMENT: Final = 3

SUMMARIES: Final[dict[str, str]] = {
    "run": "Run the daemon of one node.",
    "demo": "Show it all on this machine, in network namespaces.",
    "sandbox": "Run a command that reaches only what is allowed.",
    "check": "Validate policies.",
    "explain": "Say what a pod may reach, and why.",
    "status": "Show subjects, policies, grants and upstreams.",
    "top": "Watch who asks for what.",
    "audit": "Read and filter the audit records.",
    "suggest": "Write policies from what was seen.",
    "simulate": "Replay records against policies not yet applied.",
    "stale": "List rules that nothing has used.",
    "convert": "Turn other projects' policies into egressd's.",
    "cleanup": "Remove every trace of egressd from the kernel.",
}
"""The verbs of interface.md in its order, with one line each; those whose module is there are offered."""


class _Modules(UserDict[str, click.Command]):
    """The sub-commands by verb: there when their module is, imported when taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.verbs = tuple(verb for verb in SUMMARIES if find_spec(f"{__name__}.{verb}"))

    def __getitem__(self, verb: str) -> click.Command:
        if verb not in self.verbs:
            raise KeyError(verb)
        command: click.Command = importlib.import_module(f"{__name__}.{verb}").command
        return command

    def __contains__(self, verb: object) -> bool:
        return verb in self.verbs

    def __iter__(self) -> Iterator[str]:
        return iter(self.verbs)

    def __len__(self) -> int:
        return len(self.verbs)


class Verbs(click.Group):
    """A group that imports a sub-command when it is called, and lists them without importing any."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands = _Modules()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion for a verb that is nearly right."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0][:40], self.commands, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no verb {args[0][:40]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, SUMMARIES[verb]) for verb in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EgressError as error:
            _fail(error)


class UsageRefusal(click.ClickException):
    """Settings or names that cannot be used, told on stderr."""

    exit_code = EXIT_USAGE


class EnvironmentRefusal(click.ClickException):
    """Something that this machine lacks or refuses, told on stderr with what to do about it."""

    exit_code = EXIT_ENVIRONMENT


def _fail(error: EgressError) -> NoReturn:
    from egressd.schema import SettingsError

    usage = isinstance(error, SettingsError | InvalidName)
    raise (UsageRefusal if usage else EnvironmentRefusal)(str(error)) from error


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: egressd check config/policies",
)
@click.version_option(__version__, "-V", "--version", prog_name="egressd", message="%(prog)s %(version)s")
def main() -> None:
    """DNS-aware egress filter for the pods of a Kubernetes node."""
