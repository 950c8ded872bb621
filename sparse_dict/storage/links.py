"""Folders from elsewhere: nothing that is written into one may follow a link out of it."""

from pathlib import Path

from sparse_dict.errors import UserError

# What Hydra, logging and `interp.llm` write in place. All else is written by `files.replacing`,
# which replaces a link instead of following it.
IN_PLACE = (".hydra", ".hydra/*", "*.log", "multirun.yaml", "interp", "interp/*")


def refuse(folder: Path) -> None:
    """See that what is written to `folder` stays there.

    Raises:
        UserError: a file that is written in place is a link, as somebody else's study may hold.
    """
    for pattern in IN_PLACE:
        for path in folder.glob(pattern):
            if path.is_symlink():
                raise UserError(f"{path} is a link, and what is written there would go elsewhere")
