"""ONE table from domain errors to HTTP answers (docs/protocol.md, section 1).

Rules of this module: pure. Errors of 5xx give no details to the client; the log has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from notary import errors
from notary.net.http.site import Response

JSON_UTF8 = "application/json; charset=utf-8"

BUSY = 503
RETRY_SECONDS = "5"


# -- errors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpFault:
    """The answer to one kind of error."""

    status: int
    code: str
    message: str


UNKNOWN = HttpFault(500, "UNKNOWN", "unknown error")
TOO_LARGE = HttpFault(413, "TOO_LARGE", "The request is larger than this server accepts.")
CLIENT_GONE = HttpFault(499, "CLIENT_GONE", "The client went away.")
"""Only the log and the metrics show this answer, because the client has gone."""
UNAVAILABLE = HttpFault(503, "UNAVAILABLE", "The service is not available at present; try again later.")
UPDATING = HttpFault(500, "UPDATING", "An error has occurred while updating the TUF repository.")

FAULTS: Mapping[type[Exception], HttpFault] = {
    errors.NotFound: HttpFault(404, "METADATA_NOT_FOUND", "You have requested metadata that does not exist."),
    errors.NoFilename: HttpFault(400, "NO_FILENAME", "No file/role name provided."),
    errors.InvalidRole: HttpFault(400, "INVALID_ROLE", "The role you are attempting to operate on is invalid."),
    errors.MalformedJSON: HttpFault(400, "MALFORMED_JSON", "JSON sent by the client could not be parsed by the server"),
    errors.OldVersion: HttpFault(400, "VERSION", "A newer version of metadata is already available."),
    errors.InvalidUpdate: HttpFault(400, "INVALID_UPDATE", "Update sent by the client is invalid."),
    errors.MalformedUpload: HttpFault(400, "MALFORMED_UPLOAD", "The body of your request is malformed."),
    errors.InvalidGun: HttpFault(400, "INVALID_GUN", "The server does not support actions on images of this name."),
    errors.InvalidParameters: HttpFault(400, "INVALID_PARAMETERS", "The parameters provided are not valid."),
    errors.ReadOnly: HttpFault(403, "READ_ONLY", "This server is read-only: it takes no changes and makes no keys."),
    errors.Overloaded: UNAVAILABLE,
    errors.TooDemanding: TOO_LARGE,
    errors.Unauthorized: HttpFault(401, "UNAUTHORIZED", "authentication required"),
    errors.SigningUnavailable: UNAVAILABLE,
    errors.TooManyKeys: HttpFault(429, "TOOMANYREQUESTS", "Too many requests; try again later."),
    errors.UnsupportedAlgorithm: HttpFault(
        500, "NO_KEYALGORITHM", "The server does not have a key algorithm configured."
    ),
}


def detail(error: Exception) -> Any:
    """Return the detail of an error for the client; clients parse the detail of a refused upload."""
    if isinstance(error, errors.InvalidUpdate):
        inner = {"Msg": str(error)} | ({"Missing": error.missing} if error.missing else {})
        return {"Name": error.fault.value, "Error": inner}
    if isinstance(error, errors.Unauthorized):
        return [{"Type": kind, "Class": "", "Name": name, "Action": action} for kind, name, action in error.access]
    return str(error)


def fault_response(fault: HttpFault, detail: Any = None, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return the answer to a failed call, with a JSON body in the form that every Notary client knows."""
    body = json.dumps({"errors": [{"code": fault.code, "message": fault.message, "detail": detail}]}).encode()
    return Response(fault.status, body, (("Content-Type", JSON_UTF8), *headers))


def edge_response(status: int, message: str) -> Response:
    """Return the answer to a request that never became a call (malformed, too large, too slow), in the same form."""
    fault = TOO_LARGE if status == TOO_LARGE.status else HttpFault(status, "UNKNOWN", message)
    return fault_response(fault, message, (("Retry-After", RETRY_SECONDS),) if status == BUSY else ())
