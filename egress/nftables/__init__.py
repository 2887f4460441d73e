"""The nft table that stands behind the programs: as a value, and as text."""
