"""A Notary v1 service: TUF metadata for container images and any other content.

Two daemons, ``notary-server`` and ``notary-signer``, run as twistd plugins. ``docs/architecture.md`` draws the house;
``docs/protocol.md`` holds the wire, storage and configuration facts that the code refers to.
"""

__version__ = "0.1.0"
