"""The subcommands of ``twistd``. This file is data: it names modules and imports nothing of ours."""

from twisted.application.service import ServiceMaker

notary_server = ServiceMaker(
    "Notary server",
    "notary.server.tap",
    "The Notary server: keeps and serves signed collections (TUF metadata)",
    "notary-server",
)

notary_signer = ServiceMaker(
    "Notary signer",
    "notary.signer.start",
    "The Notary signer: keeps private keys and signs with them over gRPC",
    "notary-signer",
)
