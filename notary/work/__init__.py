"""Doing things elsewhere, or once: threads, processes, shared calls, back-off, the life of a service's parts."""
