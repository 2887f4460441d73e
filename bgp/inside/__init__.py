"""What runs inside ExaBGP's process: what of it is mended, its commands that are ours, and its Adj-RIB-Out."""
