"""The command `np-trl`, which runs one of the others."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module
from importlib.metadata import version


COMMANDS = {
    "dpo": "train a policy that writes for each user; without arguments, the demo",
    "reward": "train a reward model of each user; without arguments, Example 4.1 of the paper",
    "evaluate": "evaluate a saved model on users that it was not trained on",
    "generate": "write for a user who is given by a few choices",
    "embed": "embed the texts of preference pairs, once",
    "export": "write users as LoRA adapters or as plain models",
}


def build_parser() -> ArgumentParser:
    """Build the parser of the first argument; the command parses the others."""
    listed = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    parser = ArgumentParser(
        prog="np-trl",
        usage="%(prog)s [-h] [--version] COMMAND [--ARGUMENT VALUE ...]",
        description=f"Models that adapt to a new user from a few choices.\n\ncommands:\n{listed}",
        epilog="`np-trl COMMAND --help` lists the arguments of a command; `--config FILE` reads them from YAML.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('np_trl')}")
    return parser


def main() -> None:
    """Run the command that the first argument names, with the others."""
    parser = build_parser()
    command = parser.parse_args(sys.argv[1:2]).command
    if command not in COMMANDS:
        parser.print_help(sys.stderr)
        what = "no command is given" if command is None else f"there is no command {command!r}"
        parser.exit(2, f"\n{parser.prog}: error: {what}, choose one of {', '.join(COMMANDS)}\n")
    sys.argv = [f"{parser.prog} {command}", *sys.argv[2:]]
    import_module(f"np_trl.scripts.{command}").run()
