"""BGP paths, Adj-RIB-Out and the ExaBGP speaker. Knows neither Kubernetes, nor YAML, nor the other rooms."""

EXABGP = "5.0.15"  # the only version that is driven: the launcher's patches are pinned to it
