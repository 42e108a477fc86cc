"""The subcommands of ``twistd``. This file is data: it names modules and imports nothing of ours."""

from twisted.application.service import ServiceMaker

notary_server = ServiceMaker(
    "Notary server",
    "notary.server.tap",
    "The Notary server: keeps and serves signed collections (TUF metadata)",
    "notary-server",
)
