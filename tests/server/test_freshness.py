"""Two instances on one database: no read, on either, may answer what was no longer true when it was asked.

A checker judges whole histories: publishes, deletes and reads go to two servers in random order, many of them at the
same time. For each read it works out which states of the collection the answer may have come from, from what had been
acknowledged before the read began and what had been begun before it ended.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults

from notary.errors import NotFound, OldVersion
from notary.storage import Update
from notary.storage.cache import OVERHEAD, CachedMetadataStore
from notary.storage.sql import open_metadata_store
from notary.tuf.model import SNAPSHOT, TARGETS, TIMESTAMP, Gun

GUNS = [Gun("example.com/a"), Gun("example.com/b")]
ROLES = (TIMESTAMP, SNAPSHOT, TARGETS)
GONE = None
STEPS = 400
AT_ONCE = 12
