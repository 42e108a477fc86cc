"""The messages of gRPC and the format of profiles, generated from the ``.proto`` files here by ``make proto``.

Rules of this package: nothing in it is written by hand but the ``.proto`` files and this text. Only the messages are
generated; who calls what is said in ``notary.signer.rpc`` and by the server's client.
"""
