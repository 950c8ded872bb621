"""Commands beside the four scripts: ``python -m sparse_dict.NAME``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sparse_dict.errors import UserError, lacking, one_line, printable
from sparse_dict.machine import interrupt


def ending(main: Callable[[], int]) -> NoReturn:
    """Run a command to its end; what the user or the machine must mend ends it with one line."""
    name = Path(sys.argv[0]).stem
    try:
        with interrupt.ending():
            raise SystemExit(main())
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped by Ctrl-C\n")
        raise SystemExit(130) from None
    except Exception as error:
        if not isinstance(error, UserError | OSError) and lacking(error) is None:
            raise
        sys.stderr.write(f"{name}: {printable(one_line(error))}\n")
        raise SystemExit(1) from None
