"""concil, an independent client of Notary in Python, as a command: ``concilclient.py URL GUN TRUSTDIR``.

Rules of this module: it is run as a process, because concil prints, blocks and reads the environment. It verifies the
collection and writes what it has found as one line of JSON: for each role, the digest (hex) of each name.
"""

from __future__ import annotations

import base64
import json
import sys

from concil.notary import Notary


def main(url: str, gun: str, directory: str) -> None:
    """Read a collection."""
    notary = Notary(f"{url}/{gun}", config={"trust_dir": directory})
    roles = {"targets": notary.targets, **notary.delegate_targets}
    found = {
        role: {
            name: base64.b64decode(target["hashes"]["sha256"]).hex()
            for name, target in metadata.data["signed"]["targets"].items()
        }
        for role, metadata in roles.items()
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
