"""The parser of a command: TRL's, with a help that begins with one line, and recipes by name."""

import sys

from trl import TrlParser

from np_trl.scripts.cli import COMMANDS
from np_trl.scripts.demo import find_config


class CommandParser(TrlParser):
    """
    A [`~trl.TrlParser`] of a command of `np-trl`.

    Args:
        command (`str`):
            Name of the command. Its line in the list of commands begins its help.
        dataclass_types (`type` or `tuple[type]`):
            Dataclasses of its arguments.
    """

    def __init__(self, command: str, dataclass_types: type | tuple[type, ...]):
        usage = "%(prog)s [-h] [--config FILE] [--ARGUMENT VALUE ...]"
        text = COMMANDS[command]
        super().__init__(dataclass_types, usage=usage, description=f"{text[0].upper()}{text[1:]}.")

    def parse_args_and_config(self, args: list[str] | None = None, **kwargs) -> tuple:
        """Parse arguments as TRL does. `--config` takes a file, or the name of an installed recipe."""
        args = list(sys.argv[1:] if args is None else args)
        if "--config" in args[:-1]:
            index = args.index("--config") + 1
            args[index] = find_config(args[index])
        return super().parse_args_and_config(args, **kwargs)
