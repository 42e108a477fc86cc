"""The paths of the signer's methods and the names of its health checks, once for both sides.

Rules of this module: pure. A path is ``/package.Service/Method``, as the ``.proto`` files say.
"""

from __future__ import annotations

from typing import Final

CREATE_KEY: Final = "/proto.KeyManagement/CreateKey"
DELETE_KEY: Final = "/proto.KeyManagement/DeleteKey"
GET_KEY_INFO: Final = "/proto.KeyManagement/GetKeyInfo"
SIGN: Final = "/proto.Signer/Sign"
CHECK_HEALTH: Final = "/grpc.health.v1.Health/Check"
WATCH_HEALTH: Final = "/grpc.health.v1.Health/Watch"
DESCRIBE: Final = "/notary.v1.Instance/Describe"

HEALTH_OF_KEY_MANAGEMENT: Final = "grpc.health.v1.Health.KeyManagement"
HEALTH_OF_SIGNER: Final = "grpc.health.v1.Health.Signer"
HEALTH_OF_ALL: Final = ""
"""The name in a health check of the signer as a whole."""
