"""TLS of both sides: contexts, connections on the socket, and why a handshake failed, in words."""
