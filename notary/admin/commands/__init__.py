"""notary.admin.commands: to be described."""
