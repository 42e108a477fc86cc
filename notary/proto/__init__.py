"""The messages of gRPC and the format of profiles, generated from the ``.proto`` files here by ``make proto``.

Rules of this package: people write the ``.proto`` files, ``paths.py`` and this text; all else is generated. Only the
messages are generated. The paths of the methods are in ``paths.py``, for the signer and for its clients.
"""
