"""reconv beside its peers: the same trained networks, the same data, the same recovery. See README.md."""
