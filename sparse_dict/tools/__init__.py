"""Commands beside the four scripts: ``python -m sparse_dict.NAME``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sparse_dict.errors import lacking
from sparse_dict.machine import interrupt


def ending(main: Callable[[], int]) -> NoReturn:
    """Run a command to its end; a signal, or what the machine lacks, ends it with one line."""
    name = Path(sys.argv[0]).stem
    try:
        with interrupt.ending():
            raise SystemExit(main())
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped by Ctrl-C\n")
        raise SystemExit(130) from None
    except Exception as error:
        if (line := lacking(error)) is None:
            raise
        sys.stderr.write(f"{name}: {line}\n")
        raise SystemExit(1) from None
