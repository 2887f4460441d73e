"""BGP paths, Adj-RIB-Out and the ExaBGP speaker. Knows neither Kubernetes, nor YAML, nor the other rooms."""
