"""The one error that ends a stage with a single line instead of a traceback."""

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """Something the user can put right: the message is one line that says what and how."""


def explained(error: Exception) -> str | None:
    """One line for a full disk, a missing permission or a failing device; None for other errors.

    numpy and safetensors tell of a failed write in words of their own, without a number.
    """
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if (
        number in _FULL
        or (isinstance(error, OSError) and text.endswith(" written"))
        or "No space left on device" in text
        or "File too large" in text
    ):
        return (
            f"{where}the disk is full or a quota is used up ({text}): what was finished is intact; "
            "make room, and the same command goes on from there"
        )
    if number in _FORBIDDEN:
        return f"{where}no permission to write or read there ({text})"
    if number == errno.EIO:
        return f"{where}the disk or the network file system fails ({text})"
    return None
