"""A collection on a server in memory: what the tests of the API share."""

from datetime import UTC, datetime

from notary.storage.memory import MemoryMetadataStore
from tests.support.author import Author, make_key, server_key_from

GUN = "example.com/app"
EPOCH = datetime.fromtimestamp(0, UTC)
TUF = f"/v2/{GUN}/_trust/tuf/"


def new_store():
    return MemoryMetadataStore(lambda: EPOCH)


async def new_author(server, gun=GUN, *, snapshot="server", now=None):
    timestamp = server_key_from((await server.get(f"/v2/{gun}/_trust/tuf/timestamp.key")).body)
    held = server_key_from((await server.get(f"/v2/{gun}/_trust/tuf/snapshot.key")).body)
    return Author(gun, timestamp=timestamp, snapshot=held if snapshot == "server" else make_key(), now=now)


async def published(server, gun=GUN, **options):
    author = await new_author(server, gun, **options)
    answer = await server.upload(gun, author.first())
    assert (answer.status, answer.body) == (200, b""), answer
    return author
