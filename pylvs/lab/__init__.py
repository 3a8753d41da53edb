"""Labs: a client, a director and real servers in network namespaces, real requests, and proofs by packets."""
