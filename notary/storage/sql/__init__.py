"""notary.storage.open: to be described."""
