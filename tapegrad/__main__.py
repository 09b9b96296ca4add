"""`python -m tapegrad doctor`: what this installation has, and what is wrong with it."""

import sys

from . import doctor

COMMANDS = {"doctor": doctor.main}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(
            f"python -m tapegrad COMMAND, of {', '.join(COMMANDS)}. --help after one says more.",
            file=sys.stderr,
        )
        return 2
    return COMMANDS[name](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
