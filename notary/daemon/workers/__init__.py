"""notary.daemon.workers: to be described."""
