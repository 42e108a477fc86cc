"""notary.work: to be described."""
