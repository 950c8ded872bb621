"""Is there a network? Asked first, because the download libraries retry for half a minute."""

import ssl
import threading
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


def reachable(url: str) -> bool:
    """Whether anything answers at `url` within `TIMEOUT_S`, were it an HTTP error."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            # Somebody is there; whether the certificate will do is for the real client to say.
            if isinstance(error.reason, ssl.SSLError):
                answered.set()
        except (OSError, ValueError):
            pass

    # In a thread, because a name look-up knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return answered.is_set()
