"""Reading collections from another Notary by its public API."""
