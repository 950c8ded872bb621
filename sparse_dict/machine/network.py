"""Whether a server answers. Asked first, because client libraries retry for half a minute."""

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping

TIMEOUT_S = 3.0


def status(
    url: str, seconds: float, headers: Mapping[str, str] | None = None, data: bytes | None = None
) -> int | None:
    """The HTTP status of what answers at `url` within `seconds`; None if nothing does.

    It is 0 where the TLS certificate is not accepted here, since the client that is used later may
    accept it. With `data` the request is a POST, else HEAD.
    """
    found: list[int] = []

    def ask() -> None:
        request = urllib.request.Request(url, data, dict(headers or {}))
        request.method = "HEAD" if data is None else "POST"
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                found.append(response.status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):
                found.append(0)

    # In a thread, because a name look-up has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def reachable(url: str) -> bool:
    """Whether anything answers at `url` within `TIMEOUT_S`, even with an HTTP error."""
    return status(url, TIMEOUT_S) is not None
