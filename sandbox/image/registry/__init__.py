"""Images over the wire: OCI distribution registries (distribution-spec v1.1), docker's registry v2 and its token authentication.

wire (HTTP) · challenges, tokens (who we are, proven) · credentials (who we are) · hosts (which server a name means) ·
repository (the operations) · platforms, manifests (which image of an index) · fetching, pulling · uploading, pushing · indexes
· copying · searching · progress
"""
