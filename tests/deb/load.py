"""Readers of one file, each over a new connection every time, until standard input ends: ``python load.py PATH CA``.

Rules of this module: a program of its own, because it runs in the network of another machine. A read that fails is not
tried again. It prints how many reads there were, and each failure.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import threading

READERS = 4
TIMEOUT_SECONDS = 60


def main(path: str, ca: str) -> None:
    trusted = ssl.create_default_context(cafile=ca)
    over = threading.Event()
    reads, failures = [0] * READERS, []

    def read(number: int) -> None:
        while not over.is_set():
            connection = http.client.HTTPSConnection("localhost", 4443, timeout=TIMEOUT_SECONDS, context=trusted)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                if response.status != 200 or not body:
                    failures.append(f"{response.status} {body[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
            finally:
                connection.close()
            reads[number] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"{sum(reads)} reads, {len(failures)} failures\n" + "\n".join(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
