"""Import all modules of the program, so that Python writes the bytecode of these and of all that they import.

The image has no other bytecode: that of the rest of the libraries would be as large again.
"""

from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages

import twisted.internet.reactor  # noqa: F401  # which no module imports at its top

import notary

for module in walk_packages(notary.__path__, "notary."):
    if not module.name.endswith(".__main__"):
        with suppress(ModuleNotFoundError):  # what needs an extra that the image has not
            import_module(module.name)
