"""Images from one place to another, byte for byte: registries, OCI layouts, archives, directories, the store."""
