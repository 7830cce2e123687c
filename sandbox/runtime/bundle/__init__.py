"""The runtime's border in the field's own words: an OCI runtime-spec bundle (`config.json` and a root file system) as a container.

`sandbox-oci` offers this with runc's command line, so that other engines can drive it: create returns with the container's
process waiting, and the caller, its parent or a subreaper, gets the exit status. There is no supervisor and no init of ours:
the program itself is the container's first process, as runc's callers expect.
"""
