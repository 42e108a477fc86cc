"""The signer: holds the private keys of collections, apart from what the server holds, and signs with them."""
