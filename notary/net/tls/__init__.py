"""notary.net.tls.contexts: to be described."""
