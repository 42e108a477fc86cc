"""Twisted shells that know no TUF: TLS, HTTP, gRPC, logs, and the life of a daemon."""
