"""notary.daemon: to be described."""
