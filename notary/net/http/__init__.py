"""notary.net.http.site: to be described."""
