"""The Update Framework in Notary's dialect: bytes in, values or typed errors out.

Rules of this package: pure. No input or output, no clock (``now`` is an argument), no Twisted, no state between calls.
All errors that it raises on purpose are in :mod:`notary.errors`. ``docs/protocol.md``, sections 2, 3 and 9, holds the
facts that the code refers to.
"""
