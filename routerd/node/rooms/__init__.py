"""What rooms of a node should have, beside egress: whom BFD watches, which routes lead to other nodes. Pure."""
