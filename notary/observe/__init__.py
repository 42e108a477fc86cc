"""notary.observe: to be described."""
